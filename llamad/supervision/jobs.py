"""The supervisor's tasks: those of one state, which end with it, and those that outlive it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine


class Jobs:
    """Runs them. What a task did not expect goes to the loop's exception handler at once, which ends the daemon."""

    def __init__(self) -> None:
        self._of_the_state: set[asyncio.Task[None]] = set()
        self._lasting: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[None, None, None]) -> None:
        """Run it until it ends, or `cancel`."""
        self._run(work, self._of_the_state)

    def start_lasting(self, work: Coroutine[None, None, None]) -> None:
        """Run it until it ends, whatever the states do meanwhile."""
        self._run(work, self._lasting)

    def cancel(self) -> None:
        """The state is left: its tasks end."""
        for task in self._of_the_state:
            task.cancel()
        self._of_the_state.clear()

    def _run(self, work: Coroutine[None, None, None], tasks: set[asyncio.Task[None]]) -> None:
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(_raise_bug)


def _raise_bug(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        raise error
