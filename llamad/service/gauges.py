"""What a model is doing now, as a small file of numbers that everybody may read: `llamad status` and `top` need no
root, and who looks asks the daemon nothing. No text, no ids: how many requests, how many tokens.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from llamad.front.settings import RequestRecord
from llamad.service.paths import GAUGES
from llamad.store import read_regular

WINDOW_S = 10
"""Over so many whole seconds the rate is taken."""
_MAGIC = 0x31_65_67_75_61_67  # "gauge1"
_ACTIVE, _WAITING, _REQUESTS, _OUTPUT, _RING = 1, 2, 3, 4, 8
_BUCKETS = 16
_NUMBERS = _RING + 2 * _BUCKETS
_FORM = struct.Struct(f"={_NUMBERS}Q")
_TOKENS_S, _REQUESTS_S = 0.1, 0.02
"""What comes so soon after a write is written with the next one. The first request and the last are at once."""
_MOST = 1 << 50


class Activity(NamedTuple):
    """What was read."""

    active_requests: int
    waiting_requests: int
    requests: int
    """That are over, since llamad started."""
    output_tokens: int
    """Of those."""
    tokens_per_s: float
    """Generated in the last seconds, by all requests together."""


class Gauges:
    """The writer. It is called on the loop, often: a write of some hundred bytes now and then, that nobody waits for.

    `folder` None: nobody is told.
    """

    def __init__(self, folder: Path | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self._numbers = array("Q", [_MAGIC, *[0] * (_NUMBERS - 1)])
        self._now = now
        self._written_s = float("-inf")
        self._fd = _create(folder / GAUGES) if folder is not None else -1
        self._write(now())

    def counts(self, active: int, waiting: int) -> None:
        """So many requests are with llama-server and at the gate."""
        was_idle = self._is_idle
        self._numbers[_ACTIVE], self._numbers[_WAITING] = active, waiting
        self._write_unless_within(0.0 if was_idle else _REQUESTS_S, self._now())

    def token(self) -> None:
        """One more event of a stream has passed."""
        now_s = self._now()
        self._generated(1, now_s)
        self._write_unless_within(_TOKENS_S, now_s)

    def finished(self, record: RequestRecord) -> None:
        """A request is over; what was not seen of its answer as a stream is counted now."""
        now_s = self._now()
        self._numbers[_REQUESTS] += 1
        if record.usage is not None:
            tokens = max(0, min(record.usage.output_tokens, _MOST))
            self._numbers[_OUTPUT] += tokens
            self._generated(max(0, tokens - record.events), now_s)
        self._write_unless_within(0.0 if self._is_idle else _REQUESTS_S, now_s)

    @property
    def _is_idle(self) -> bool:
        return not (self._numbers[_ACTIVE] or self._numbers[_WAITING])

    def close(self) -> None:
        """Write no more."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _generated(self, tokens: int, now_s: float) -> None:
        second = int(now_s)
        at = _RING + 2 * (second % _BUCKETS)
        if self._numbers[at] != second:
            self._numbers[at], self._numbers[at + 1] = second, 0
        self._numbers[at + 1] += tokens

    def _write_unless_within(self, pause_s: float, now_s: float) -> None:
        if now_s - self._written_s >= pause_s:
            self._write(now_s)

    def _write(self, now_s: float) -> None:
        self._written_s = now_s
        if self._fd >= 0:
            with contextlib.suppress(OSError):  # a full /run: the numbers are old, no more
                os.pwrite(self._fd, self._numbers, 0)


def _create(path: Path) -> int:
    """A file of our own, whatever was there; -1 where none can be made."""
    try:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        os.fchmod(fd, 0o644)  # the umask is 0077
    except OSError:
        return -1
    return fd


def read_activity(folder: Path, now_s: float | None = None) -> Activity | None:
    """What the daemon whose folder this is wrote last; None where there is nothing sane."""
    try:
        numbers = _FORM.unpack(read_regular(folder / GAUGES, _FORM.size + 1))
    except (OSError, struct.error):
        return None
    if numbers[0] != _MAGIC or max(numbers[1:_RING]) > _MOST:
        return None
    this = int(time.monotonic() if now_s is None else now_s)
    ring = zip(numbers[_RING::2], numbers[_RING + 1 :: 2], strict=True)
    tokens = sum(min(count, _MOST) for second, count in ring if 0 < this - second <= WINDOW_S)
    return Activity(
        numbers[_ACTIVE], numbers[_WAITING], numbers[_REQUESTS], numbers[_OUTPUT], round(tokens / WINDOW_S, 1)
    )
