"""One model's definition and keys in force, and how others get there: in place, with another address, or by the
supervisor. What cannot be leaves the old ones in force, and one record why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from llamad.config.changes import Takes, changes, in_words, takes
from llamad.config.loaded import Loaded
from llamad.errors import ConfigError, LlamadError
from llamad.front.keys import KeySet
from llamad.service.keys import new_in
from llamad.service.move import Move, Relay, carry_over
from llamad.supervision.reload import Reverted

TOPIC = "definition"
"""What its remarks in the status are about."""
FILES = "the files of the model"


class Model(Protocol):
    """The supervisor, or who stands for it while there is none."""

    @property
    def loaded(self) -> Loaded:
        """The definition in force."""
        ...

    def remark(self, topic: str, text: str) -> None:
        """Say this in the status, in place of what was said of the topic."""
        ...

    def adopt(self, loaded: Loaded) -> None:
        """Use a definition that asks for no other child."""
        ...

    async def reload(self, loaded: Loaded, changed: str, *, replaced: bool) -> None:
        """Put a definition into force. `replaced`: its files are others than those that were loaded. Raises
        LlamadError; the old one is in force then.
        """
        ...


class Address(Protocol):
    """The relay's part of a model."""

    def apply(self, loaded: Loaded, keys: KeySet) -> None:
        """Use other settings and keys from now on."""
        ...


class Teller(Protocol):
    """The journal."""

    def event(self, name: str, message: str, **fields: str) -> None:
        """One record of the catalog's event `name`."""
        ...


def _is_told_keys(running: Loaded, loaded: Loaded) -> bool:
    """Whether llama-server owns the address: it reads its key file once. Raises ConfigError where that changes."""
    if running.definition.front != loaded.definition.front:
        fix = f"systemctl restart llamad@{loaded.name}"
        raise ConfigError("front: who owns the address is settled when the unit starts", fix=fix)
    return loaded.definition.is_direct


class InForce:
    """See the module. To be called on the loop, for one change at a time."""

    def __init__(self, model: Model, address: Address, teller: Teller, keys: KeySet) -> None:
        """`keys` are in force, as the model's definition is."""
        self._model = model
        self._address = address
        self._teller = teller
        self.keys = keys

    async def change(
        self,
        loaded: Loaded,
        keys: KeySet,
        *,
        asked: bool = False,
        replaced: bool = False,
        move: tuple[Callable[[Loaded, Loaded], Move], Relay] | None = None,
    ) -> None:
        """Put these into force, or say why not. `asked`: by somebody, who may have mended what had failed.
        `replaced`: files of the model are others than those that were loaded. `move`: what binds an address that has
        changed, where the model has one of its own, and who serves it.
        """
        try:
            await self._put(loaded, keys, asked=asked, replaced=replaced, move=move)
            self._model.remark(TOPIC, "")
        except Reverted as error:
            self._model.remark(TOPIC, f"reload reverted: {error.why}")
        except LlamadError as error:
            self.refused(str(error))

    def refused(self, why: str) -> None:
        """Another definition, or its keys, cannot be used."""
        self._model.remark(TOPIC, f"reload refused: {why}")
        self._teller.event("reload-refused", f"Reload refused, nothing changed: {why}", CAUSE=why)

    async def _put(
        self,
        loaded: Loaded,
        keys: KeySet,
        *,
        asked: bool,
        replaced: bool,
        move: tuple[Callable[[Loaded, Loaded], Move], Relay] | None,
    ) -> None:
        running = self._model.loaded
        found = changes(running, loaded)
        needs, new_keys = takes(found), new_in(keys, self.keys)
        told_keys = _is_told_keys(running, loaded) and bool(new_keys)
        restarts = replaced or told_keys or Takes.RESTART in needs
        moving = move[0](running, loaded) if move and Takes.REBIND in needs else None
        if moving is None:
            self._address.apply(loaded, keys)
        try:
            if asked or restarts:
                parts = in_words(found), FILES if replaced else "", new_keys if told_keys else ""
                changed = ", ".join(filter(None, parts))
                await self._model.reload(loaded, changed, replaced=replaced or told_keys)
            else:
                self._model.adopt(loaded)
        except LlamadError:
            if moving is not None:
                moving.give_up()
            # With the keys that were in force: their file may be what is wrong now.
            self._address.apply(running, self.keys)
            raise
        if moving is not None and move is not None:
            await carry_over(moving, move[1], lambda some: self._address.apply(loaded, some), keys, self.keys)
        self.keys = keys
        if (words := in_words(found) or new_keys) and not restarts:
            self._teller.event(
                "reload-applied", f"In force, without touching llama-server: {words}", CHANGED=words
            )
