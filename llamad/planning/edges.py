"""Where something stops to fit: the largest number for which it still does. Pure.

What is asked fits up to an edge and not beyond it. Asking costs much where a graph is replayed for it, so the search
goes by guesses that cost little, and asks about the edge itself only.
"""

from __future__ import annotations

from collections.abc import Callable

_GUESSES = 6
"""So many times a guess says where to ask next; what is left then is halved."""

Test = Callable[[int], bool]
"""Whether it fits. Once it does not, it does not with larger numbers."""


def largest_true(test: Test, low: int, high: int, *, none: int = 0) -> int:
    """The largest number from `low` to `high` that passes a test; `none` if not even `low` does."""
    if high < low or not test(low):
        return none
    if test(high):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if test(middle):
            low = middle
        else:
            high = middle
    return low


def largest_near(test: Test, near: int, low: int, high: int, *, none: int = 0) -> int:
    """The same, asking around `near` first: quick where that is near to the edge."""
    fits, fails, step = low - 1, high + 1, 1
    at = max(low, min(high, near))
    while fails - fits > 1:
        if test(at):
            fits, at = at, at + step
        else:
            fails, at = at, at - step
        step *= 2
        if not fits < at < fails:
            at = (fits + fails) // 2 if fits >= low and fails <= high else max(low, min(high, at))
            if not fits < at < fails:
                at = (fits + fails) // 2
    return fits if fits >= low else none


def largest_guessed(test: Test, guess: Test, low: int, high: int, *, none: int = 0) -> int:
    """The same, asking the test near to where `guess` sees the edge.

    `guess` is a test that may be wrong, and that is less so with each answer of the other.
    """
    fits, fails = low - 1, high + 1
    asked, near = 0, high
    while fails - fits > 1:
        if asked < _GUESSES:
            near = largest_near(guess, near, fits + 1, fails - 1, none=fits)
            at = max(fits + 1, near)
        else:
            at = (fits + fails) // 2
        if test(at):
            fits = at
        else:
            fails = at
        asked += 1
    return fits if fits >= low else none


def smallest_true(test: Test, low: int) -> int:
    """The smallest number from `low` on that passes a test which, once passed, stays passed. One must."""
    fails, step = low - 1, 1
    while not test(fails + step):
        fails, step = fails + step, 2 * step
    passes = fails + step
    while passes - fails > 1:
        middle = (passes + fails) // 2
        if test(middle):
            passes = middle
        else:
            fails = middle
    return passes


class Trend:
    """A guess at a buffer by the context, from what was computed of the same kind: a straight line."""

    def __init__(self, alike: Trend | None = None) -> None:
        """`alike`: what to go by while nothing of this kind was computed."""
        self._alike = alike
        self._cells = self._bytes = 0
        self._slope = 0

    def add(self, cells: int, computed_bytes: int) -> None:
        """What was computed with so many cells a stream."""
        if self._bytes and cells != self._cells:
            self._slope = (computed_bytes - self._bytes) // (cells - self._cells)
        self._cells, self._bytes = cells, computed_bytes
        if self._alike:
            self._alike.add(cells, computed_bytes)

    def at(self, cells: int) -> int:
        """What it may be with so many cells; 0 where nothing is known."""
        if not self._bytes and self._alike:
            return self._alike.at(cells)
        return max(0, self._bytes + self._slope * (cells - self._cells))
