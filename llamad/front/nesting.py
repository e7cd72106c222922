"""JSON of clients, read with a bound on its depth: how deep the standard library goes depends on its version. Pure."""

from __future__ import annotations

import json
from typing import Any

MOST_LEVELS = 500


def parsed(text: bytes) -> Any:
    """The value. Raises ValueError for what is no JSON, RecursionError for what is nested too deeply."""
    value = json.loads(text)
    if text.count(b"[") + text.count(b"{") > MOST_LEVELS and _is_deeper(value):
        raise RecursionError
    return value


def _is_deeper(value: object) -> bool:
    level = [value]
    for _ in range(MOST_LEVELS):
        level = [
            inner
            for one in level
            for inner in (one.values() if isinstance(one, dict) else one if isinstance(one, list) else ())
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True
