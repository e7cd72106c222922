"""Small JSON caches: written atomically, never needed."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

LIMIT_BYTES = 4 << 20
_MODE = 0o600


def load_cache(path: Path) -> Any:
    """The JSON value in `path`; None if there is none, or what is there is no JSON of a sane size."""
    try:
        with path.open("rb") as file:
            return json.loads(file.read(LIMIT_BYTES))
    except (OSError, ValueError, RecursionError):
        return None


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
