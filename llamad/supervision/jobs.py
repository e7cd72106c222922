"""The tasks of one state: leaving it cancels them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine


class Jobs:
    """Tasks that run beside the loop that started them. What one of them did not expect is a bug: it is handed to the
    event loop's exception handler, which ends the daemon.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._detached: set[asyncio.Task[None]] = set()
        """The event loop itself keeps no task alive."""

    def start(self, work: Coroutine[None, None, None]) -> None:
        """Run this until it ends or the state does."""
        self._tasks.add(self.detach(work))

    def detach(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run this whatever the states do."""
        task = asyncio.create_task(work)
        self._detached.add(task)
        task.add_done_callback(self._done)
        return task

    def cancel(self) -> None:
        """The state is left."""
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._detached.discard(task)
        if not task.cancelled() and (error := task.exception()):
            raise error
