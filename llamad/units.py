"""Bytes, durations and counts: parsing what admins write and printing what they read. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(B|[KMGT]i?B?)?\s*$", re.IGNORECASE)
_SIZE_FACTORS = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": 1 << 40}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|sec|min|m|h|d|days?|hours?|minutes?|seconds?)")
_DURATION_FACTORS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_size(text: str) -> int:
    """Bytes of `512MiB`, `15.6GiB`, `10G`, `1024` (bytes). Units are powers of 1024. Raises ValueError."""
    match = _SIZE.match(text)
    if not match:
        raise ValueError(f'not a size: "{text}" (write for example 512MiB or 10GiB)')
    unit = (match[2] or "").upper().removesuffix("B").removesuffix("I")
    size_bytes = float(match[1]) * _SIZE_FACTORS[unit]
    if size_bytes >= 1 << 63:
        raise ValueError(f'too large for a size: "{text}"')
    return int(size_bytes)


def parse_duration(text: str) -> float:
    """Seconds of `30min`, `1h 30min`, `250ms`, `60s` or `60`. Raises ValueError."""
    stripped = text.strip().lower()
    if re.fullmatch(r"\d+(\.\d+)?", stripped):
        return _finite(float(stripped), text)
    parts = _DURATION_PART.findall(stripped)
    if not parts or _DURATION_PART.sub("", stripped).strip():
        raise ValueError(f'not a duration: "{text}" (write for example 60s or 30min)')
    found = sum(float(n) * _DURATION_FACTORS["ms" if unit == "ms" else unit[0]] for n, unit in parts)
    return _finite(found, text)


def _finite(seconds: float, text: str) -> float:
    if math.isinf(seconds):
        raise ValueError(f'too long for a duration: "{text}"')
    return seconds


def mib(size_bytes: float) -> float:
    """MiB of bytes, for printing: two decimals."""
    return round(size_bytes / MIB, 2)


def format_bytes(size_bytes: float) -> str:
    """`11.9 GiB`, `512 MiB`, `3.4 KiB`, `17 B`: three significant places at most, for people."""
    for unit, factor in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(size_bytes) >= factor:
            value = size_bytes / factor
            return f"{value:.1f} {unit}" if value < 100 and unit != "KiB" else f"{value:.0f} {unit}"
    return f"{size_bytes:.0f} B"


def listed(words: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`; empty for none."""
    *others, last = list(words) or [""]
    return f"{', '.join(others)} and {last}" if others else last


def pad(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is not below `value` (GGML_PAD)."""
    return -(-value // multiple) * multiple


def sane_number(text: str, factor: int = 1) -> float:
    """The number that hostile digits and dots stand for, times `factor`; 0 where that is none, or 2**50 and more."""
    try:
        value = float(text) * factor
    except ValueError:
        return 0
    return value if value < 1 << 50 else 0
