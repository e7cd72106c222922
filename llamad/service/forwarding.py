"""Passing the requests for one of the router's models on to the llamad of its own unit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from llamad.clock import Clock
from llamad.service.house import listens
from llamad.service.lane_front import LaneFront
from llamad.service.reloads import raise_bug

PROBE_S = 0.1
MOST_PROBE_S = 1.0


class Forwarding:
    """Leads a lane to another llamad's socket as soon as somebody listens there. That one holds requests itself while
    the model loads.
    """

    def __init__(self, front: LaneFront, path: str, clock: Clock, wanted: Callable[[], bool]) -> None:
        """`wanted`: whether requests are still to go there."""
        self._front = front
        self._path = path
        self._clock = clock
        self._wanted = wanted
        self._task: asyncio.Task[None] | None = None

    def begin(self, reason: str) -> None:
        """Hold requests, for this reason, until somebody listens."""
        self._front.hold(reason)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._probe())
            self._task.add_done_callback(raise_bug)

    def close(self) -> None:
        """Wait for nobody."""
        if self._task is not None:
            self._task.cancel()

    async def _probe(self) -> None:
        pause_s = PROBE_S
        while self._wanted():
            if await listens(self._path):
                self._front.forward(self._path)
                return
            await self._clock.sleep(pause_s)
            pause_s = min(MOST_PROBE_S, pause_s * 1.5)
