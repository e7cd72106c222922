"""Waiting for a state that callbacks change, with a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from llamad.clock import Clock


class Pulse:
    """Wakes those who wait until something about the connections has changed."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._sleepers: list[asyncio.Future[None]] = []

    def fire(self) -> None:
        """Something has changed."""
        if self._sleepers:
            sleepers, self._sleepers = self._sleepers, []
            for sleeper in sleepers:
                if not sleeper.done():
                    sleeper.set_result(None)

    async def until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until `condition()`, at most `timeout_s`; whether it came true."""
        if condition() or timeout_s <= 0:
            return condition()
        loop = asyncio.get_running_loop()
        timer = loop.create_task(self._clock.sleep(timeout_s))
        try:
            while not condition() and not timer.done():
                sleeper = loop.create_future()
                self._sleepers.append(sleeper)
                await asyncio.wait((sleeper, timer), return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
        return condition()
