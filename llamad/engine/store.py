"""Small JSON caches: written atomically, never needed."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

_LIMIT_BYTES = 4 << 20


def load_cache(path: Path) -> Any:
    """The JSON value in `path`; None if there is none, or what is there is no JSON of a sane size."""
    try:
        with path.open("rb") as file:
            return json.loads(file.read(_LIMIT_BYTES))
    except (OSError, ValueError, RecursionError):
        return None


def store_cache(path: Path, value: object) -> bool:
    """Replace `path` by `value` in one step. False if that was not possible: a cache may always be missing."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(json.dumps(value, separators=(",", ":")))
        scratch.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        return False
    return True
