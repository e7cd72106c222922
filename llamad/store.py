"""Small JSON caches: written atomically, never needed."""

from __future__ import annotations

import contextlib
import json
import os
import stat
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
