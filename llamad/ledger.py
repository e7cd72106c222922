"""Who serves what on this host. Today: one process a name. Liveness is a flock, never a pid."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from llamad.errors import os_error


class NameLock:
    """Held while a process serves a model; the kernel releases it when the process is gone."""

    def __init__(self, folder: Path, name: str) -> None:
        self._path = folder / f"{name}.lock"
        self._fd = -1

    def take(self) -> str:
        """Take the lock; "" when it is ours, else the holder's process id in words. Raises AccessError, BusyError."""
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise os_error(f"cannot open {self._path}", error, "check /run/llamad/ledger") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 20, 0).decode("ascii", "replace").strip()
            self.release()
            return holder or "unknown"
        os.ftruncate(self._fd, 0)
        with contextlib.suppress(OSError):  # the number is for people; the lock holds without it
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)
        return ""

    @property
    def held(self) -> bool:
        """Whether the lock is ours."""
        return self._fd >= 0

    def release(self) -> None:
        """Let go; the file stays, so that no two processes lock different files of one name."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
