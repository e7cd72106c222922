"""The ledger's folder: what its files are called, and how they are locked, read and written.

`NAME.lock` is the life of a lease, `NAME.json` its content, `NAME.owner` says which process serves the model. What
begins with a dot is no model's. Files are written and removed only under the ledger's lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
from pathlib import Path

from llamad.config.names import NAME_PATTERN
from llamad.errors import os_error
from llamad.text import printable

LEDGER_LOCK = ".ledger"
DEPARTED = ".departed"
_BLOCK_BYTES = 4096
_LIMIT_BYTES = 64 << 10
SECONDS = ("+1", "+2")
"""What follows a model's name in that of the lease for a second llama-server, beside the one that serves."""
_NAME = re.compile(NAME_PATTERN + r"(?:\+[12])?")
_SUFFIXES = (".lock", ".json", ".owner")
_FIX = "check /run/llamad/ledger (`systemd-tmpfiles --create`)"


def name_of(file_name: str) -> tuple[str, str]:
    """Model and suffix of a file of the ledger; ("", "") for what is none of a model."""
    stem, dot, word = file_name.rpartition(".")
    if dot + word in _SUFFIXES and _NAME.fullmatch(stem):
        return stem, dot + word
    return "", ""


def open_lock(path: Path) -> int:
    """A descriptor of a lock file, which is made if it is missing. Raises AccessError, BusyError."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise os_error(f"cannot open {path}", error, _FIX) from error


def try_lock(fd: int) -> bool:
    """Take the lock of an open file if nobody has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(fd: int) -> None:
    """Give the lock of an open file back."""
    fcntl.flock(fd, fcntl.LOCK_UN)


def is_held(path: str) -> bool:
    """Whether a lock file's lock is held by anybody. Only under the ledger's lock: it is tried for a moment.

    The file is opened for reading, because the end of a writer is what waiting models are woken by.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return not try_lock(fd)
    finally:
        os.close(fd)


def sign(fd: int, text: str) -> None:
    """Write into a lock file who holds it; for people, so a full disk does not matter."""
    with contextlib.suppress(OSError):
        os.ftruncate(fd, 0)
        os.pwrite(fd, text.encode("ascii", "replace"), 0)


def signature(fd: int) -> str:
    """Who signed a lock file last."""
    try:
        text = os.pread(fd, 100, 0).decode("ascii", "replace").strip()
    except OSError:
        return "unknown"
    return printable(text) or "unknown"


def read(path: Path | str) -> bytes:
    """The beginning of a file; b"" if there is none, or none that can be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        return os.read(fd, _LIMIT_BYTES)
    except OSError:  # a folder, or a pipe that nobody fills
        return b""
    finally:
        os.close(fd)


def write(path: Path, text: str, mode: int = 0o600) -> None:
    """Replace a file in one step. Raises OSError and leaves the old one and nothing else.

    On a full disk a file that is there already is written over in place: it has a block of its own, and what a model
    gives back must be told even then.
    """
    scratch = path.with_name(f".{path.name.lstrip('.')}.new")
    try:
        fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        try:
            os.fchmod(fd, mode)
            data = text.encode()
            while data:
                data = data[os.write(fd, data) :]
        finally:
            os.close(fd)
        os.replace(scratch, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(scratch)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not _overwrite(path, text):
            raise


def _overwrite(path: Path, text: str) -> bool:
    data = text.encode()
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        whole = os.fstat(fd).st_size > 0 and len(data) <= _BLOCK_BYTES and os.pwrite(fd, data, 0) == len(data)
        if whole:
            os.ftruncate(fd, len(data))
        return whole
    except OSError:
        return False
    finally:
        os.close(fd)


def remove(path: Path) -> None:
    """Remove a file that may be gone."""
    with contextlib.suppress(OSError):
        os.unlink(path)
