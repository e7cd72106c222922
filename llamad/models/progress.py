"""How far a download or a check has come, for a terminal as a line that moves, for a log as a line now and then."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from typing import TextIO

from llamad.text import shown
from llamad.units import format_bytes

_BAR = 20
_TERMINAL_EVERY_S = 0.2
_LOG_EVERY_S = 15.0
_RATE_OVER_S = 15.0


class Progress:
    """Writes to `out`, by default standard error. Say `end` before anything else is printed there."""

    def __init__(self, out: TextIO | None = None, *, terminal: bool | None = None) -> None:
        self._out = out or sys.stderr
        self._terminal = self._out.isatty() if terminal is None else terminal
        self._what = ("", "")
        self._samples: deque[tuple[float, int]] = deque()
        self._shown_s = 0.0
        self._width = 0

    def progress(self, name: str, what: str, done_bytes: int, size_bytes: int) -> None:
        """Some more of it; most calls print nothing."""
        now_s = time.monotonic()
        if self._what != (name, what):
            self.end()
            self._what = (name, what)
            self._samples.clear()
            self._shown_s = float("-inf") if self._terminal else now_s
        self._samples.append((now_s, done_bytes))
        while len(self._samples) > 2 and now_s - self._samples[1][0] > _RATE_OVER_S:
            self._samples.popleft()
        if now_s - self._shown_s < (_TERMINAL_EVERY_S if self._terminal else _LOG_EVERY_S):
            return
        self._shown_s = now_s
        self._print(self._line(name, what, done_bytes, size_bytes))

    def note(self, text: str) -> None:
        """A line of its own."""
        self.end()
        print(shown(text, 500), file=self._out, flush=True)

    def end(self) -> None:
        """Take the moving line away."""
        if self._width:
            print("\r" + " " * self._width + "\r", end="", file=self._out, flush=True)
            self._width = 0

    def _line(self, name: str, what: str, done_bytes: int, size_bytes: int) -> str:
        share = done_bytes / size_bytes if size_bytes else 1.0
        rate = self._rate()
        words = [f"{format_bytes(done_bytes)} of {format_bytes(size_bytes)} ({share:.0%})"]
        if rate > 0:
            words.append(f"{format_bytes(rate)}/s")
            words.append(f"{time_text((size_bytes - done_bytes) / rate)} left")
        if not self._terminal:
            return f"{shown(name, 200)}: {what}: {', '.join(words)}"
        bar = "#" * round(share * _BAR)
        return f"{what} {shown(name, 40)} [{bar:<{_BAR}}] {', '.join(words)}"

    def _rate(self) -> float:
        """Bytes a second of late."""
        (first_s, first), (last_s, last) = self._samples[0], self._samples[-1]
        return max(0.0, (last - first) / (last_s - first_s)) if last_s > first_s else 0.0

    def _print(self, line: str) -> None:
        if not self._terminal:
            print(line, file=self._out, flush=True)
            return
        line = line[: self._columns() - 1]
        print(f"\r{line:<{self._width}}", end="", file=self._out, flush=True)
        self._width = len(line)

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._out.fileno()).columns or 80
        except (OSError, ValueError):
            return 80


def time_text(seconds: float) -> str:
    """`40 s`, `3 min 20 s`, `2 h 5 min`, `more than 2 days`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 172_800:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return "more than 2 days"
