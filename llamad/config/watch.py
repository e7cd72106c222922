"""Notices that definitions were edited: hints from inotify, a look at the contents, a poll as the backstop.

What inotify says is only ever a hint to look: editors replace files, `sed -i` and dpkg rename, a ConfigMap swaps one
link, folders go and come back. A look reads all that is watched and compares the hash; what has the same contents
has not changed. The watches are made anew with each look, before it reads, so that none is ever left on a folder that
is no more, and nothing is missed between the two. What a look reads is in `watched`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from llamad.clock import Clock
from llamad.config.watched import Seen, Subject
from llamad.errors import BusyError
from llamad.threads import in_thread

DEBOUNCE_S = 0.3
"""An edit is over when nothing has moved for so long,"""
LONGEST_DEBOUNCE_S = 2.0
"""or in any case after this."""
GONE_S = 2.0
"""A definition that is missing or empty for less was being replaced."""
POLL_S = 30.0
_READ_BYTES = 64 << 10

OffTheLoop = Callable[..., Coroutine[Any, Any, Any]]


class Hints(Protocol):
    """Tells that something may have moved in a folder."""

    def watch(self, folders: Sequence[str]) -> None:
        """Watch these from now on, and no others. Blocking. Raises OSError, ImportError; nothing is watched then."""
        ...

    def attach(self) -> None:
        """Hear of what `watch` watches. On the loop."""
        ...

    def close(self) -> None:
        """Watch nothing any more. On the loop."""
        ...


class Watch:
    """Watches its subject until `run` is cancelled."""

    def __init__(
        self,
        subject: Subject,
        clock: Clock,
        *,
        edited: Callable[[str], None],
        blind: Callable[[OSError | ImportError], None],
        hints: Callable[[Callable[[], None]], Hints] | None = None,
        off_the_loop: OffTheLoop = in_thread,
    ) -> None:
        """`edited` is called with the digest of new contents; `blind` once when folders cannot be watched and only
        the poll is left, and again when that happens after it had worked. `off_the_loop` runs blocking work, and may
        raise BusyError.
        """
        self._subject = subject
        self._clock = clock
        self._edited = edited
        self._blind = blind
        self._off_the_loop = off_the_loop
        self._moved = asyncio.Event()
        self._hints = (hints or InotifyHints)(self._moved.set)
        self._told_blind = False
        self._last = Seen("", True)

    async def run(self, digest: str) -> None:
        """Watch. `digest`: of the contents that are in force."""
        self._last = Seen(digest, True)
        try:
            while True:
                seen = await self._look()
                if seen.digest != digest and not seen.present:
                    seen = await self._look_again()
                if seen.digest != digest:
                    digest = seen.digest
                    self._edited(digest)
                await self._wait()
        finally:
            self._hints.close()

    def hint(self) -> None:
        """Look soon: there may be more to be watched."""
        self._moved.set()

    async def _look_again(self) -> Seen:
        """After a definition was not there: it is gone if it does not come back soon."""
        until_s = self._clock.monotonic() + GONE_S
        while True:
            await self._clock.sleep(DEBOUNCE_S)
            seen = await self._look()
            if seen.present or self._clock.monotonic() >= until_s:
                return seen

    async def _look(self) -> Seen:
        self._moved.clear()
        try:
            trouble, self._last = await self._off_the_loop(self._look_blocking)
        except BusyError:
            return self._last  # no thread is to be had: the next look will find it
        if trouble is None:
            self._hints.attach()
            self._told_blind = False
        elif not self._told_blind:
            self._told_blind = True
            self._blind(trouble)
        return self._last

    def _look_blocking(self) -> tuple[OSError | ImportError | None, Seen]:
        trouble: OSError | ImportError | None = None
        try:
            self._hints.watch(self._subject.folders())
        except (OSError, ImportError) as error:
            trouble = error
        return trouble, self._subject.look()

    async def _wait(self) -> None:
        """Until something may have moved, and has come to rest; or until it is time for a look."""
        if not await self._moves_within(POLL_S):
            return
        until_s = self._clock.monotonic() + LONGEST_DEBOUNCE_S
        while self._clock.monotonic() < until_s:
            self._moved.clear()
            if not await self._moves_within(DEBOUNCE_S):
                return

    async def _moves_within(self, patience_s: float) -> bool:
        moved = asyncio.ensure_future(self._moved.wait())
        time_out = asyncio.ensure_future(self._clock.sleep(patience_s))
        try:
            await asyncio.wait({moved, time_out}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            moved.cancel()
            time_out.cancel()
        return self._moved.is_set()


class InotifyHints:
    """One inotify descriptor on the loop, with watchdog's binding of the kernel's calls; no thread of its own."""

    def __init__(self, moved: Callable[[], None]) -> None:
        self._moved = moved
        self._fd = -1
        self._attached = False
        self._watches: set[Any] = set()

    def watch(self, folders: Sequence[str]) -> None:
        # Here, not above: it is not for a start, and there may be none.
        from ctypes import get_errno

        from watchdog.observers import inotify_c as calls

        if self._fd < 0:
            self._fd = _checked(calls.inotify_init(), get_errno, "inotify")
            os.set_inheritable(self._fd, False)
            os.set_blocking(self._fd, False)
        kinds = calls.InotifyConstants
        # Not what reading does: it would hint at itself.
        mask = (
            kinds.IN_CREATE | kinds.IN_DELETE | kinds.IN_MODIFY | kinds.IN_CLOSE_WRITE | kinds.IN_ATTRIB
            | kinds.IN_MOVE | kinds.IN_DELETE_SELF | kinds.IN_MOVE_SELF | kinds.IN_ONLYDIR | kinds.IN_EXCL_UNLINK
        )  # fmt: skip
        former, self._watches = self._watches, set()
        for folder in folders:
            # A folder that is watched already gets the same number again; one of the same name another.
            watch = calls.inotify_add_watch(self._fd, os.fsencode(folder), mask)
            if watch < 0 and get_errno() in _PASSING:
                continue
            self._watches.add(_checked(watch, get_errno, folder))
        for stale in former - self._watches:
            calls.inotify_rm_watch(self._fd, stale)

    def attach(self) -> None:
        if not self._attached:
            self._attached = True
            asyncio.get_running_loop().add_reader(self._fd, self._read)

    def close(self) -> None:
        if self._attached:
            asyncio.get_running_loop().remove_reader(self._fd)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._attached = -1, False

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError, InterruptedError):
            os.read(self._fd, _READ_BYTES)
        self._moved()


_PASSING = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP)
"""The folder went meanwhile, or may not be read: the poll sees what comes of it."""


def _checked(result: int, get_errno: Callable[[], int], what: str) -> int:
    if result < 0:
        raise OSError(get_errno(), os.strerror(get_errno()), what)
    return result
