"""Small JSON caches: written atomically, never needed; and each user's own folder for them.

Own caches are safe by who may write them. Each user has a folder of his own; root's is in /var/cache/llamad, a folder
of root's that the service's user cannot write to. So whatever the service's user leaves anywhere, root never reads.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LIMIT_BYTES = 4 << 20
_MODE = 0o600


def load_cache(path: Path, *, owner: int | None = None) -> Any:
    """The JSON value in `path`; None if there is none, or what is there is no JSON of a sane size.

    With `owner`, also None for a file that is another user's or that others may write: what is opened is judged.
    """
    try:
        with open(path, "rb", opener=_opened) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return None
            if owner is not None and (status.st_uid != owner or status.st_mode & 0o022):
                return None
            return json.loads(file.read(LIMIT_BYTES))
    except (OSError, ValueError, RecursionError):
        return None


def read_regular(path: Path, most_bytes: int, *, follow: bool = False) -> bytes:
    """The beginning of a file that another user may have put there: no pipe is waited for, and no link followed
    unless `follow`.

    Raises OSError, also for what is no regular file.
    """
    flags = 0 if follow else os.O_NOFOLLOW
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | flags)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "no regular file", str(path))
        return file.read(most_bytes)


def _opened(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)  # a FIFO there must not hold anybody up


def store_cache(path: Path, value: object) -> bool:
    """Replace `path` by `value` in one step, for its owner alone. False where that was not possible.

    A cache may always be missing, so nothing is raised; a value that `load_cache` would not read is not written.
    """
    text = json.dumps(value, separators=(",", ":")).encode("ascii")
    if len(text) > LIMIT_BYTES:
        return False
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, _MODE)
        with os.fdopen(fd, "wb") as file:
            file.write(text)
        scratch.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        return False
    return True


def sync_folder(folder: Path) -> None:
    """Have the names in a folder outlive a power cut. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Where this user's cache is: root's in the system's folder, everybody else's at home; or as the caller says."""
    if environ.get("CACHE_DIRECTORY"):
        return Path(environ["CACHE_DIRECTORY"])
    if os.geteuid() == 0:
        return Path("/var/cache/llamad")
    base = environ.get("XDG_CACHE_HOME") or os.path.join(environ.get("HOME") or "/nonexistent", ".cache")
    return Path(base) / "llamad"


def is_ours(folder: Path) -> bool:
    """Whether only we can put files there; a home without a cache folder yet gets one."""
    if not folder.is_dir() and os.geteuid() != 0:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            return False
    try:
        status = folder.lstat()
    except OSError:
        return False
    return (
        stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022
    )


def own_folder(environ: Mapping[str, str], *names: str) -> Path | None:
    """A folder in this user's cache that only he can put files into, made where it is missing; None if it cannot be."""
    folder = cache_folder(environ)
    if not is_ours(folder):
        return None
    for name in names:
        folder /= name
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            if not is_ours(folder):
                return None
        except OSError:
            return None
    return folder
