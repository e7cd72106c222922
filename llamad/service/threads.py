"""Blocking work off the loop, where no thread may be had either."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from llamad.errors import BusyError

T = TypeVar("T")


async def in_thread(work: Callable[..., T], *args: object) -> T:
    """`asyncio.to_thread`; raises BusyError where the kernel gives no thread (TasksMax=, a fork bomb beside us)."""
    try:
        return await asyncio.to_thread(_kept_apart, work, *args)
    except _Raised as raised:
        raise raised.error from None
    except RuntimeError as error:
        raise BusyError(
            "no thread can be started", why=str(error), fix="raise TasksMax= or LimitNPROC=; see who made so many"
        ) from error


async def in_time(work: Coroutine[Any, Any, T], bound_s: float, late: Callable[[], None]) -> T:
    """What such work gives. Raises TimeoutError after `bound_s`: its thread cannot be ended, and `late` is called when
    it has come to an end all the same, so that what it was for can be done once more.
    """

    def ended(task: asyncio.Task[T]) -> None:
        if not task.cancelled():
            task.exception()  # looked at: it will be met again
            late()

    task = asyncio.create_task(work)
    if not (await asyncio.wait({task}, timeout=bound_s))[0]:
        task.add_done_callback(ended)
        raise TimeoutError
    return task.result()


class _Raised(Exception):
    """What the work itself raised, whatever it is: only the lack of a thread is ours to explain."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


def _kept_apart(work: Callable[..., T], *args: object) -> T:
    try:
        return work(*args)
    except Exception as error:
        raise _Raised(error) from error
