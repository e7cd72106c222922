"""Blocking work off the loop, in threads of our own: a dead file server, or a driver that hangs, can neither take the
threads of other work nor hold up the end of the process. Both can with the executor of asyncio.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from llamad.errors import BusyError

T = TypeVar("T")
MOST_AT_ONCE = 4
"""Threads for one piece of work (a function, a method of one object). Who comes then waits until one of them is back:
its caller has a deadline, and other work has threads of its own."""


async def in_thread(work: Callable[..., T], *args: object) -> T:
    """What `work(*args)` returns or raises, in a thread. Raises BusyError where the kernel gives none (TasksMax=, a
    fork bomb beside us). A thread whose caller is cancelled is left behind with its work.
    """
    loop = asyncio.get_running_loop()
    key = _key(work)
    await _LINES.enter(key, loop)
    done: asyncio.Future[T] = loop.create_future()
    run = contextvars.copy_context().run

    def carry_out() -> None:
        result, error = None, None
        try:
            result = run(work, *args)
        except BaseException as raised:
            error = raised
        _LINES.leave(key)
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits
            loop.call_soon_threadsafe(_settle, done, result, error)

    thread = threading.Thread(target=carry_out, name=getattr(work, "__name__", "work"), daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        _LINES.leave(key)
        raise BusyError(
            "no thread can be started", why=str(error), fix="raise TasksMax= or LimitNPROC=; see who made so many"
        ) from error
    return await done


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


class _Lines:
    """Who works, and who waits, by pieces of work. Entered on a loop, left from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._working: dict[object, int] = {}
        self._waiting: dict[object, deque[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]]] = {}

    async def enter(self, key: object, loop: asyncio.AbstractEventLoop) -> None:
        """Return when there is a thread to be used, first come first served."""
        with self._lock:
            working = self._working.get(key, 0)
            if working < MOST_AT_ONCE:
                self._working[key] = working + 1
                return
            turn: asyncio.Future[None] = loop.create_future()
            self._waiting.setdefault(key, deque()).append((loop, turn))
        try:
            await turn
        except asyncio.CancelledError:
            self._give_up(key, (loop, turn))
            raise

    def leave(self, key: object) -> None:
        """The place of a thread goes to who has waited longest, or is free."""
        with self._lock:
            waiting = self._waiting.get(key)
            while waiting:
                loop, turn = waiting.popleft()
                with contextlib.suppress(RuntimeError):  # a loop that has ended waits for nothing
                    loop.call_soon_threadsafe(self._call, key, turn)
                    return
            self._waiting.pop(key, None)
            self._working[key] -= 1
            if not self._working[key]:
                del self._working[key]

    def _call(self, key: object, turn: asyncio.Future[None]) -> None:
        """On the loop of who waits: it has the place now, unless it has just given up."""
        if turn.done():
            self.leave(key)
        else:
            turn.set_result(None)

    def _give_up(self, key: object, place: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]) -> None:
        """Who waits is cancelled: before its turn, or with it."""
        if not place[1].cancelled():
            self.leave(key)
            return
        with self._lock, contextlib.suppress(KeyError, ValueError):  # or its turn is on the way: see _call
            self._waiting[key].remove(place)


_LINES = _Lines()


def _key(work: Callable[..., object]) -> object:
    """What tells a piece of work from others: its code, and the object that it is a method of."""
    while isinstance(work, partial):
        work = work.func
    function = getattr(work, "__func__", work)
    return getattr(function, "__code__", function), id(getattr(work, "__self__", None))


def _settle(done: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    if done.done():
        return
    if isinstance(error, StopIteration):  # a future does not take it
        error = RuntimeError(repr(error))
    if error is not None:
        done.set_exception(error)
    else:
        done.set_result(result)
