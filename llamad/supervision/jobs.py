"""Tasks of a supervisor: those of one state, which end with it, and those that outlive it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class Jobs:
    """What an unexpected exception in any of them does is the loop's exception handler's to say: it is a bug."""

    def __init__(self) -> None:
        self._of_the_state: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Have something done until `cancel`."""
        self._of_the_state.add(self.follow(work))

    def follow(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Have something done to its end."""
        task = asyncio.create_task(work)
        task.add_done_callback(self._done)
        return task

    def cancel(self) -> None:
        """The state is another one."""
        for job in self._of_the_state:
            job.cancel()
        self._of_the_state.clear()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._of_the_state.discard(task)
        if not task.cancelled() and (error := task.exception()):
            raise error
