"""One lane of the router's front, as the supervisor of its model sees it, and what the router hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from llamad.config.loaded import Loaded
from llamad.front.holding import Refusal
from llamad.front.keys import KeySet
from llamad.front.lane import Lane
from llamad.front.settings import FrontSettings, ModelDescription, RequestRecord
from llamad.front.several import SwitchFront
from llamad.service.front import REOPEN_S, settings_of
from llamad.service.opening import count_or_none, opening_of
from llamad.service.requests import RequestFigures, RequestLog
from llamad.supervision.launch import Launch


def _nothing() -> None:
    """Nobody listens yet."""


class LaneFront:
    """The gate of one lane. The supervisor works it while the model is loaded here, the resident otherwise."""

    def __init__(
        self,
        front: SwitchFront,
        settings: FrontSettings,
        keys: KeySet,
        describe: Callable[[], ModelDescription],
    ) -> None:
        self.on_waiting: Callable[[], None] = _nothing
        self.on_finished: Callable[[], None] = _nothing
        self.on_forward_lost: Callable[[], None] = _nothing
        self.figures = RequestFigures()
        self.log: RequestLog | None = None
        """Where requests are written down; None for nowhere."""
        self.child_lives: Callable[[], bool] = lambda: False
        self.has_answered = False
        """Whether anything was answered since it was opened last."""
        self.launch: Launch | None = None
        """What serves; None where nothing of this process does."""
        self._open = False
        self._generation = self._since = 0
        self._progress = 0
        self._front = front
        self.lane: Lane = front.add(settings, keys, self, describe)

    # -- the supervisor's side --------------------------------------------------------------------------

    def hold(self, reason: str) -> None:
        self._open = False
        self.lane.gate.hold(reason)

    def open(self, launch: Launch) -> None:
        self.launch, self._open = launch, True
        self.has_answered = False
        self.lane.passes_keys = False
        self._generation = self._since = self.lane.open(launch.socket_path, **opening_of(launch))

    def quiet_s(self) -> float:
        return self.lane.idle_s()

    def at_work(self) -> int:
        return self.lane.at_work(self._since)

    def progress_count(self) -> int:
        return self._progress

    def refuse(self, message: str) -> None:
        self.refuse_with(Refusal(503, "model_failed", message))

    def explain(self, cause: str, message: str) -> None:
        self.lane.explain(self._generation, cause, message)

    async def farewell(self, deadline_s: float) -> None:
        """The model goes, the address stays: what comes from now on waits until it is known who serves it next."""
        self.hold("the model is being unloaded")
        if await self.lane.drain(deadline_s):
            self.lane.cut("unloaded", f"the request ran longer than drain_s ({deadline_s:g} s)")

    async def drain(self, deadline_s: float, *, former: bool = False) -> int:
        return await self.lane.drain(deadline_s, before=self._before(former))

    def cut(self, cause: str, message: str, *, former: bool = False) -> None:
        self.lane.cut(cause, message, before=self._before(former))

    async def close_upstreams(self, *, former: bool = False) -> None:
        await self.lane.close_upstreams(before=self._before(former))

    def _before(self, former: bool) -> int | None:
        return self._since if former else None

    # -- the resident's side ----------------------------------------------------------------------------

    @property
    def is_wanted(self) -> bool:
        """Whether any request is there, waiting or in flight."""
        return bool(self.lane.exchanges)

    def apply(self, loaded: Loaded, keys: KeySet) -> None:
        """Use other settings and keys from the next request on."""
        self._front.change(self.lane, settings_of(loaded), keys)
        if self.log is not None:
            self.log.level = loaded.definition.log.requests

    def refuse_with(self, refusal: Refusal) -> None:
        """Answer every request with this until the lane is held or opened."""
        self._open = False
        self.launch = None
        self.lane.gate.refuse(refusal)

    def forward(self, socket_path: str) -> None:
        """Pass requests on to another llamad, which asks for the keys itself."""
        self.launch, self._open = None, False
        self.lane.passes_keys = True
        self._generation = self.lane.open(socket_path)

    # -- what the relay tells ---------------------------------------------------------------------------

    def request_waiting(self) -> None:
        self.on_waiting()

    def request_finished(self, record: RequestRecord) -> None:
        self.figures.finished(record)
        if self.log is not None and not self.lane.passes_keys:  # else the other llamad writes it down
            self.log.finished(record)
        self.on_finished()

    async def count_tokens(self, socket_path: str, path: str, body: bytes) -> int | None:
        return await count_or_none(socket_path, path, body)

    def progress(self) -> None:
        """Counted for the watch over hangs."""
        self._progress += 1
        self.has_answered = True

    def upstream_lost(self, generation: int) -> None:
        """The supervisor hears of a dead child by itself; a live one that dropped a connection is used again."""
        if generation != self._generation:
            return
        if self.launch is None:
            self.on_forward_lost()
        else:
            asyncio.get_running_loop().call_later(REOPEN_S, self._reopen, self.launch)

    def _reopen(self, launch: Launch) -> None:
        if self._open and launch is self.launch and self.child_lives():
            self._generation = self.lane.open(launch.socket_path, **opening_of(launch), same_server=True)
