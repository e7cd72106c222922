"""How many tokens an answer took, as llama-server says at its end. Pure.

Only the beginning and the end of an answer are looked at, so a stream is never gathered. Text of the model cannot
pass for figures: inside a JSON string every quotation mark has a backslash before it.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

TAIL_BYTES = 4096
HEAD_BYTES = 512
_OBJECT_BYTES = 2048
_DECODER = json.JSONDecoder()
_NUMBERS = (int, float)
_PROMPT = ("prompt_tokens", "input_tokens")
_OUTPUT = ("completion_tokens", "output_tokens")
_CACHED = ("cached_tokens", "cache_read_input_tokens")


class Usage(NamedTuple):
    """Tokens of one request. cached: of the prompt, not computed again.  output_s: the time that the output took,
    0 where it is not known."""

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    output_s: float


def read_usage(head: bytes, tail: bytes) -> Usage | None:
    """From the first and the last bytes of an answer; None where nothing is told."""
    told = _object(tail, b'"timings":')
    if "prompt_n" in told and "predicted_n" in told:
        cached, output_ms = int(_number(told.get("cache_n"))), _number(told.get("predicted_ms"))
        prompt = int(_number(told["prompt_n"])) + cached
        return Usage(prompt, cached, int(_number(told["predicted_n"])), output_ms / 1000)
    for part in (tail, head):
        told = _object(part, b'"usage":')
        if any(key in told for key in _PROMPT):
            details = told.get("prompt_tokens_details")
            cached = max(_count(told, _CACHED), _count(details, _CACHED) if isinstance(details, dict) else 0)
            return Usage(_count(told, _PROMPT), cached, _count(told, _OUTPUT), 0.0)
    return None


def _object(text: bytes, key: bytes) -> dict[str, Any]:
    """The last object that stands behind this key; {} where there is none, or not all of it."""
    at = text.rfind(key + b"{")
    if at < 0:
        return {}
    try:
        found, _ = _DECODER.raw_decode(text[at + len(key) : at + len(key) + _OBJECT_BYTES].decode("ascii", "replace"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _count(told: dict[str, Any], keys: tuple[str, ...]) -> int:
    """The first number under one of these keys; 0 where there is none that makes sense."""
    return next((int(number) for key in keys if (number := _number(told.get(key)))), 0)


def _number(value: Any) -> float:
    return value if isinstance(value, _NUMBERS) and 0 <= value < 1e15 else 0
