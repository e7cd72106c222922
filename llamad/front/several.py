"""The front of several models behind one address: the room's other public face (see `relay`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llamad.clock import Clock
from llamad.front.errand import LocalService
from llamad.front.keys import KeySet
from llamad.front.lane import Lane
from llamad.front.relay import Address
from llamad.front.settings import FrontObserver, FrontSettings, ModelDescription
from llamad.front.shared import Shared
from llamad.front.switch import Branch, Switch


class SwitchFront(Address):
    """Several models behind one set of listening sockets; the owner works the gate of each lane."""

    def __init__(
        self,
        settings: FrontSettings,
        keys: KeySet,
        observer: FrontObserver,
        clock: Clock,
        not_ready: Callable[[], Sequence[str]],
        local: LocalService | None = None,
    ) -> None:
        """`settings`, `keys`: of the address; `observer` is told of what it answers itself, `local`
        answers `/metrics` and `/admin/`."""
        shared = Shared(settings, keys, observer, clock, _nothing, local)
        shared.switch = self.switch = Switch(shared, not_ready)
        super().__init__(shared, clock)

    def add(
        self,
        settings: FrontSettings,
        keys: KeySet,
        observer: FrontObserver,
        describe: Callable[[], ModelDescription],
    ) -> Lane:
        """A way to one more model, which holds its requests until its gate is opened."""
        lane = Lane(settings, observer, self._clock, self._shared.pulse)
        self.switch.put(settings.name, Branch(lane, keys, describe))
        return lane

    def change(self, lane: Lane, settings: FrontSettings, keys: KeySet) -> None:
        """Use other settings and keys for a model from the next request on."""
        lane.apply(settings)
        self.switch.set_keys(settings.name, keys)

    def leave(self, lane: Lane) -> None:
        """Let no request find a model any more; those that it has go on."""
        self.switch.leave(lane.settings.name)

    def remove(self, lane: Lane) -> None:
        """Know a model no more. None of its requests may be left."""
        self.switch.remove(lane.settings.name)

    def apply(self, settings: FrontSettings, keys: KeySet) -> None:
        """Use these for the address from the next request on."""
        self._shared.apply(settings, keys)


def _nothing() -> ModelDescription:
    return ModelDescription("")
