"""Tells a client that has only finished sending (half-close) from one that is gone.

Both look like end-of-file. Once a connection has read that, asyncio no longer watches it, so a client that then
goes away would be noticed with the next write, which for an answer that takes minutes comes too late.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable


class HangupWatch:
    """Calls back when a watched socket is closed at both ends or broken. Linux: epoll reports that unasked."""

    def __init__(self) -> None:
        self._epoll: select.epoll | None = None
        self._callbacks: dict[int, Callable[[], None]] = {}

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call `callback`, once, when the socket `fd` is gone. The owner unwatches before it closes `fd`."""
        if self._epoll is None:
            self._epoll = select.epoll()
            asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._ready)
        self._callbacks[fd] = callback
        self._epoll.register(fd, 0)

    def unwatch(self, fd: int) -> None:
        """Forget `fd`. Harmless where it is not watched."""
        if self._callbacks.pop(fd, None) is not None and self._epoll is not None:
            self._epoll.unregister(fd)

    def close(self) -> None:
        """Stop watching for good."""
        if self._epoll is not None:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None
            self._callbacks.clear()

    def _ready(self) -> None:
        assert self._epoll is not None
        for fd, _ in self._epoll.poll(0):
            callback = self._callbacks.get(fd)
            self.unwatch(fd)
            if callback is not None:
                callback()
