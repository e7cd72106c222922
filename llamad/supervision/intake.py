"""A child's log on its way in: split, understood, remembered a little, and passed on within bounds.

Called from the pipe's callback, so nothing here awaits, blocks or grows.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from llamad.engine.log import LineSplitter, LoadObserver, LogLine, Sign, parse_line, shortened
from llamad.engine.telling import telling_lines
from llamad.errors import BusyError
from llamad.supervision.launch import Reporter
from llamad.supervision.ring import Ring

TELLING_LINES = 100
KINDS_OF_LINES = 300
"""A load prints some dozens."""
BURST_SECONDS = 10
PAUSE_S = 0.002
"""Between two looks at the log of a busy child: a look for each of some fifty lines a request would cost more than the
request. What llama-server prints meanwhile has room in its pipe."""
_LOUD = frozenset({"warning", "error", "raw"})


class Intake:
    """The log of one child. `quiet` after it became ready: then only warnings and worse are passed on."""

    def __init__(
        self, reporter: Reporter, lines_per_s: int, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.observer = LoadObserver()
        self.loaded = asyncio.Event()
        self.line_count = 0
        self.progress_count = 0
        """Grows with the first line of each kind while loading. Talk does not count."""
        self.quiet = False
        self.pid = 0
        self.memory: dict[str, tuple[int, int]] = {}
        """Bytes held and free by the plan's devices, when they were last looked at while it loaded."""
        self.on_sign: Callable[[Sign, LogLine], None] = lambda _sign, _line: None
        """Told what lines of a child that serves mean."""
        self._reporter = reporter
        self._records_on_stdout = False
        self._kinds: set[str] = set()
        self._ring = Ring()
        self._first_telling: list[str] = []
        self._last_telling: deque[str] = deque(maxlen=TELLING_LINES)
        self._splitters = {1: LineSplitter(), 2: LineSplitter()}
        self.lines_per_s = lines_per_s
        """How many lines are passed on in the long run."""
        self._tokens = float(lines_per_s * BURST_SECONDS)
        self._now = now
        self._filled_at_s = now()
        self._suppressed = 0
        self._told_at_s: float | None = None

    def feed(self, stream: int, data: bytes) -> float:
        """Bytes of stdout (1) or stderr (2); b"" ends the stream. Returns for how long the next ones may wait, in
        seconds."""
        splitter = self._splitters[stream]
        if data and self.quiet and stream == 1 and self._records_on_stdout and self._is_dull(splitter, data):
            return PAUSE_S
        for raw in splitter.feed(data) if data else splitter.flush():
            line = parse_line(raw, may_be_json=stream == 1 or not self._records_on_stdout)
            if stream == 1 and not self._records_on_stdout:
                self._records_on_stdout = raw.startswith(b'{"type":"log"')
            self._line(line)
        if not data:
            self._tell_suppressed()
        return 0.0

    def recent(self) -> list[str]:
        """The last lines, oldest first."""
        return self._ring.texts()

    def _is_dull(self, splitter: LineSplitter, data: bytes) -> bool:
        """Take in what a child says that serves, where it is all records: looking only at the lines that tell. The
        others are remembered as they are."""
        block = splitter.whole_lines(data)
        if block is None:
            return False
        if not block:
            return True
        telling = telling_lines(block)
        if telling is None:
            for raw in block.removesuffix(b"\n").split(b"\n"):
                self._line(parse_line(shortened(raw)))
            return True
        self.line_count += telling.lines - len(telling.places)
        start = 0
        for place in telling.places:
            end = block.find(b"\n", place)
            self._ring.block(block[start:place])
            self._line(parse_line(shortened(block[place:end])))
            start = end + 1
        self._ring.block(block[start:] if start else block)
        return True

    def evidence(self) -> list[str]:
        """What may tell why the child ends, oldest first: the first lines above information, and the last."""
        return [*self._first_telling, *self._last_telling]

    def served(self) -> None:
        """The child is ready: what it said while loading decides nothing any more."""
        self.quiet = True
        self.observer.forget_failures()
        self._first_telling.clear()
        self._last_telling.clear()

    def check_allocations(self) -> None:
        """Raise BusyError if a buffer could not be allocated: llama-server may call itself ready all the same."""
        failures = self.observer.observed().alloc_failures
        if failures:
            fix = "see what else uses the device; or lower `context` in [placement]"
            raise BusyError("a buffer could not be allocated", why=failures[0].text, fix=fix)

    def _line(self, line: LogLine) -> None:
        self.line_count += 1
        self._ring.line(line.text)
        if line.level in _LOUD:
            few = not self.quiet and len(self._first_telling) < TELLING_LINES
            (self._first_telling if few else self._last_telling).append(line.text)
        if not self.quiet:
            self._count_progress(line.text)
        sign = self.observer.line(line)
        if sign in (Sign.MODEL_LOADED, Sign.LISTENING):
            self.loaded.set()
        if sign is not None and self.quiet:
            self.on_sign(sign, line)
        if self.quiet and line.level not in _LOUD:
            return
        if self._may_pass():
            self._reporter.child_line(line.level, line.text, self.pid)
        else:
            self._suppressed += 1

    def _count_progress(self, text: str) -> None:
        kind = text[:32].partition(":")[0].rstrip("0123456789 ")
        if len(self._kinds) < KINDS_OF_LINES and kind not in self._kinds:
            self._kinds.add(kind)
            self.progress_count += 1

    def _may_pass(self) -> bool:
        now_s = self._now()
        burst = self.lines_per_s * BURST_SECONDS
        self._tokens = min(burst, self._tokens + (now_s - self._filled_at_s) * self.lines_per_s)
        self._filled_at_s = now_s
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        if self._suppressed and (self._told_at_s is None or now_s - self._told_at_s >= BURST_SECONDS):
            self._told_at_s = now_s  # not with every line that passes: that would be as many records again
            self._tell_suppressed()
        return True

    def _tell_suppressed(self) -> None:
        if self._suppressed:
            count, self._suppressed = self._suppressed, 0
            self._reporter.event("lines-suppressed", f"{count} lines of llama-server were not passed on")

