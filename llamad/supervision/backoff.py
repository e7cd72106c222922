"""How long to wait before a child is started again, and when to give up. Pure: the time is brought in."""

from __future__ import annotations

from collections.abc import Callable

FIRST_S = 0.5
LONGEST_S = 30.0
READY_LONG_ENOUGH_S = 10.0


class Backoff:
    """Doubling delays with up to a tenth of jitter; none for the first death of a child that had served."""

    def __init__(self, restarts: int, jitter: Callable[[], float]) -> None:
        self.restarts = restarts
        """How many may be counted before it is given up."""
        self._jitter = jitter
        self._failures = 0
        self._ready_at_s: float | None = None

    def ready_at(self, now_s: float) -> None:
        """The child became ready at this moment."""
        self._ready_at_s = now_s

    def forgive(self) -> None:
        """The child has been stable: earlier failures do not count any more."""
        self._failures = 0

    def may_retry(self) -> bool:
        """Whether one more death is followed by a start."""
        return self._failures < self.restarts

    def next_delay_s(self, now_s: float) -> float:
        """Count a failure; seconds to wait before the next start."""
        ready_s = now_s - self._ready_at_s if self._ready_at_s is not None else 0.0
        first = self._failures == 0 and self._ready_at_s is not None and ready_s >= READY_LONG_ENOUGH_S
        self._failures += 1
        self._ready_at_s = None
        if first:
            return 0.0
        delay_s = min(LONGEST_S, FIRST_S * 2.0 ** min(self._failures - 1, 16))
        return delay_s * (1.0 + 0.1 * self._jitter())
