"""Waking up when the ledger changes: the kernel's notifications for its folder, with no library but libc.

A lease that is written is seen as a renamed file, one that ends as a removed one; and the death of its last process
as the end of a writer of its lock file. A host that has no more watches is polled.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

_CLOSE_WRITE, _MOVED_TO, _DELETE = 0x8, 0x80, 0x200
_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC
_EVENT = 16
"""Bytes of an event before its name: watch, mask, cookie, length of the name."""


class Watch:
    """Tells that something in a folder has changed. `fd` becomes readable then; -1 where it cannot be watched."""

    def __init__(self, folder: Path) -> None:
        self.fd = -1
        self.problem = ""
        libc = ctypes.CDLL(None, use_errno=True)
        fd = libc.inotify_init1(_NONBLOCK_CLOEXEC)
        if fd < 0:
            self.problem = os.strerror(ctypes.get_errno())
            return
        mask = ctypes.c_uint32(_CLOSE_WRITE | _MOVED_TO | _DELETE)
        if libc.inotify_add_watch(fd, os.fsencode(folder), mask) < 0:
            self.problem = os.strerror(ctypes.get_errno())
            os.close(fd)
            return
        self.fd = fd

    def read(self) -> bool:
        """Take in what has happened; whether any of it was about a model's file."""
        try:
            data = os.read(self.fd, 64 << 10)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EINTR):
                return False
            raise
        found, at = False, 0
        while at + _EVENT <= len(data):
            length = int.from_bytes(data[at + 12 : at + 16], "little")
            name = data[at + _EVENT : at + _EVENT + length].rstrip(b"\0")
            found = found or not name.startswith(b".")  # an overflow has no name
            at += _EVENT + length
        return found

    def close(self) -> None:
        """Stop watching."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
