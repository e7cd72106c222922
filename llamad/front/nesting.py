"""JSON of clients, read with a bound on its depth: how deep the standard library goes depends on its version. Pure."""

from __future__ import annotations

import json
from typing import Any

MOST_LEVELS = 500
_DECODER = json.JSONDecoder()


def parsed(text: bytes) -> Any:
    """The value. Raises ValueError for what is no JSON, RecursionError for what is nested too deeply."""
    value = _loads(text)
    if text.count(b"[") + text.count(b"{") > MOST_LEVELS and _is_deeper(value):
        raise RecursionError
    return value


def _loads(text: bytes) -> Any:
    """The same as `json.loads`, which first has to find out in what encoding nearly everybody sends UTF-8."""
    if text[:1] != b"{" or text[1:2] == b"\0":
        return json.loads(text)
    characters = text.decode("utf-8", "surrogatepass")
    value, end = _DECODER.raw_decode(characters)
    if characters[end:].strip(" \t\r\n"):
        raise ValueError("more behind the value")
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
