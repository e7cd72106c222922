"""Reading the missing bytes of a file into its part, with one connection or several, until all of them are there."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator

from llamad.frozen import dataclass
from llamad.models.part import Part, Span
from llamad.models.remote import Changed, Remote, ask
from llamad.models.web import Answer, Interrupted, Web
from llamad.units import MIB

_READ_BYTES = MIB


@dataclass(frozen=True)
class Patience:
    """How long, how often, how slowly, how much."""

    tries: int = 8
    """In a row without a byte; each byte that comes is worth a new row of tries."""
    first_tries: int = 3
    """Before anything has come at all: a name that is wrong should not take a minute."""
    first_delay_s: float = 0.5
    most_delay_s: float = 30.0
    slow_window_s: float = 30.0
    slow_bytes: int = 30 * 1024
    """Fewer bytes than that in a window is a connection that crawls: it is given up for a new one."""
    restarts: int = 3
    """How often a content that changes is begun anew."""
    checkpoint_s: float = 5.0
    show_s: float = 0.2
    piece_bytes: int = 64 * MIB
    """Of a file that several connections read, what one of them reads at a time."""

    def delay_s(self, failures: int, after_s: float) -> float:
        """Seconds before the next try: more each time, not in step with others, and not before the server wants it."""
        delay_s = min(self.most_delay_s, self.first_delay_s * (1 << min(20, max(0, failures - 1))))
        return max(delay_s * random.uniform(0.5, 1.0), after_s)


class _Crawls(Interrupted):
    """Bytes come, and far too slowly."""


class Reading:
    """One go at what is missing, of one content. `sure`: a mistake will be found by the file's hash."""

    def __init__(
        self,
        web: Web,
        url: str,
        remote: Remote,
        part: Part,
        patience: Patience,
        *,
        sure: bool,
        with_token: bool,
    ) -> None:
        self._web = web
        self._url = url
        self._remote = remote
        self._part = part
        self._patience = patience
        self._sure = sure
        self._with_token = with_token
        self._generation = part.generation
        self._stop = threading.Event()
        self._pieces: queue.SimpleQueue[Span] = queue.SimpleQueue()
        self._ended: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def run(self, connections: int, show: Callable[[], None]) -> None:
        """Read until nothing is missing. This thread calls `show` and writes down what has come; others read.

        Raises Changed, LlamadError; whatever it is, what has come is written down, and the threads end by themselves.
        """
        many = connections if self._remote.ranges else 1
        for start, end in self._part.missing():
            step = self._patience.piece_bytes if many > 1 else end - start
            for at in range(start, end, step):
                self._pieces.put((at, min(at + step, end)))
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(many)]
        try:
            for thread in threads:
                thread.start()
            self._attend(many, show)
        finally:
            self._stop.set()
            self._part.checkpoint()

    def _attend(self, working: int, show: Callable[[], None]) -> None:
        """Show and write down until all threads have ended, or one with an error, which is raised."""
        written_s = time.monotonic()
        while working:
            try:
                problem = self._ended.get(timeout=self._patience.show_s)
                working -= 1
                if problem is not None:
                    raise problem
            except queue.Empty:
                pass
            show()
            if time.monotonic() - written_s >= self._patience.checkpoint_s:
                self._part.checkpoint()
                written_s = time.monotonic()

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    start, end = self._pieces.get_nowait()
                except queue.Empty:
                    break
                self._piece(start, end)
            self._ended.put(None)
        except Exception as error:
            self._ended.put(error)

    def _piece(self, start: int, end: int) -> None:
        """Read one piece, with as many connections one after another as it takes."""
        failures = 0
        while start < end and not self._stop.is_set():
            before = start
            try:
                for data in self._came(start, end):
                    self._part.write(start, data, self._generation)
                    start += len(data)
                if start < end and not self._stop.is_set():
                    raise Interrupted("the connection ended early")
            except Interrupted as error:
                if start > before and not self._remote.validator and not self._sure:
                    raise Changed(
                        f"{error.why}, and the server has no way to go on with the same file"
                    ) from error
                few = start - before < self._patience.slow_bytes
                failures = failures + 1 if start == before or isinstance(error, _Crawls) else 0
                if failures >= self._patience.tries:
                    raise error.final(f"cannot fetch {self._part.target.name}") from error
                if few or error.after_s:
                    self._stop.wait(self._patience.delay_s(failures, error.after_s))

    def _came(self, start: int, end: int) -> Iterator[bytes]:
        """The bytes of one answer, from `start` on and not beyond `end`."""
        answer, skip_bytes = ask(
            self._web, self._url, self._remote, start, end, with_token=self._with_token, same=self._sure
        )
        try:
            yield from self._body(answer, skip_bytes, end - start)
        finally:
            answer.close()

    def _body(self, answer: Answer, skip_bytes: int, count: int) -> Iterator[bytes]:
        """`count` bytes of an answer after `skip_bytes` that are there already; fewer where it ends."""
        since_s, came_bytes = time.monotonic(), 0
        while count and not self._stop.is_set():
            data = answer.read(min(_READ_BYTES, skip_bytes or count))
            if not data:
                return
            came_bytes += len(data)
            if skip_bytes:
                skip_bytes -= len(data)
            else:
                count -= len(data)
                yield data
            passed_s = time.monotonic() - since_s
            if passed_s >= self._patience.slow_window_s:
                if came_bytes < self._patience.slow_bytes:
                    raise _Crawls(f"{came_bytes} bytes came in {passed_s:.0f} s")
                since_s, came_bytes = time.monotonic(), 0
