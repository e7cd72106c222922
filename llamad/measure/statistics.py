"""What repeated measurements say: the middle, the spread, and whether one setting really beats another. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import cache
from math import comb

MIN_GAIN = 0.03
"""A gain below this is not worth a setting, however sure it is."""
MOST_CHANCE = 0.05
"""How probable the better ranks may be by chance alone."""

_RATINGS = ((5.0, "Slow"), (15.0, "Okay"), (30.0, "Good"), (60.0, "Fast"))


def median(values: Sequence[float]) -> float:
    """The middle of at least one value."""
    return float(statistics.median(values))


def spread(values: Sequence[float]) -> float:
    """Half the distance between the quartiles as a share of the median: half of all values are within it.

    0 for fewer than two values.
    """
    middle = median(values)
    if len(values) < 2 or middle == 0:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / 2 / abs(middle)


def rating(tokens_s: float) -> str:
    """A speed of generation in a word, as a reader of the answer feels it: people read 5 to 10 tokens a second."""
    return next((word for limit, word in _RATINGS if tokens_s < limit), "Excellent" if tokens_s > 60 else "Fast")


def gain(before: Sequence[float], after: Sequence[float]) -> float:
    """By what share the median grew: 0.1 is a tenth."""
    base = median(before)
    return median(after) / base - 1 if base > 0 else 0.0


def chance(before: Sequence[float], after: Sequence[float]) -> float:
    """How probable ranks of `after` as high as these, or higher, would be if both came from one source.

    The exact one-sided test of Mann and Whitney (Wilcoxon's rank sum), ties counted against `after`. 1 for no values.
    """
    if not before or not after:
        return 1.0
    wins = sum(high > low for high in after for low in before)
    most = len(before) * len(after)
    as_good = sum(_ways(len(after), len(before), u) for u in range(wins, most + 1))
    return as_good / comb(len(before) + len(after), len(after))


def beats(before: Sequence[float], after: Sequence[float], *, min_gain: float = MIN_GAIN) -> bool:
    """Whether `after` is better by more than its noise: by rank and by size. More is better.

    With fewer than three values on a side nothing can be told apart from chance.
    """
    return chance(before, after) <= MOST_CHANCE and gain(before, after) >= min_gain


def is_promising(before: Sequence[float], after: Sequence[float]) -> bool:
    """Whether a few values of each are better by more than they spread: enough to go on with, not to decide."""
    if not before or not after:
        return False
    return gain(before, after) >= max(MIN_GAIN, (spread(before) + spread(after)) / 2)


@cache
def _ways(m: int, n: int, u: int) -> int:
    """In how many orders of m and n values the m win exactly u of the pairs."""
    if u < 0:
        return 0
    if m == 0 or n == 0:
        return int(u == 0)
    return _ways(m - 1, n, u - n) + _ways(m, n - 1, u)
