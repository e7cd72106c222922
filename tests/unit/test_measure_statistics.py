"""Medians, spreads, ratings, and when one setting is better than another."""

from __future__ import annotations

import itertools
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamad.measure.statistics import beats, chance, gain, is_promising, median, rating, spread


@pytest.mark.parametrize(
    ("tokens_s", "word"),
    [(0.1, "Slow"), (4.99, "Slow"), (5, "Okay"), (14.9, "Okay"), (15, "Good"), (29.9, "Good"), (30, "Fast"),
     (60, "Fast"), (60.1, "Excellent"), (4000, "Excellent")],
)  # fmt: skip
def test_ratings(tokens_s: float, word: str) -> None:
    assert rating(tokens_s) == word


def test_the_spread_ignores_one_round_that_was_disturbed() -> None:
    assert spread([100.0]) == 0
    assert spread([100, 100, 100, 100, 1]) == 0
    assert spread([90, 95, 100, 105, 110]) == pytest.approx(0.05)
    assert median([3, 1, 2]) == 2


def by_counting(before: list[int], after: list[int]) -> Fraction:
    """The share of all ways to deal the ranks in which `after` wins as many pairs, by trying each."""
    wins = sum(a > b for a in after for b in before)
    places = range(len(before) + len(after))
    deals = list(itertools.combinations(places, len(after)))
    good = sum(
        sum(a > b for a in deal for b in set(places) - set(deal)) >= wins for deal in deals
    )
    return Fraction(good, len(deals))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.lists(st.integers(0, 9), min_size=1, max_size=4))
def test_chance_is_what_counting_all_orders_gives(before: list[int], after: list[int]) -> None:
    assert chance(before, after) == pytest.approx(float(by_counting(before, after)))


def test_few_values_decide_nothing() -> None:
    assert not beats([], [])
    assert not beats([1], [2])
    assert not beats([1, 1], [2, 2])
    assert beats([1, 1.1, 1.2], [2, 2.1, 2.2])
    assert not beats([1, 1.1, 2.05], [2, 2.1, 2.2])


def test_a_gain_that_is_sure_and_small_is_none() -> None:
    slow, fast = [100 + n / 100 for n in range(6)], [102 + n / 100 for n in range(6)]
    assert chance(slow, fast) < 0.01
    assert gain(slow, fast) == pytest.approx(0.02, abs=0.001)
    assert not beats(slow, fast)
    assert beats(slow, [value * 1.05 for value in slow])


def test_noise_alone_wins_no_more_often_than_it_may() -> None:
    source = random.Random(7)
    won = sum(beats([source.gauss(100, 20) for _ in range(6)], [source.gauss(100, 20) for _ in range(6)])
              for _ in range(4000))  # fmt: skip
    assert won / 4000 <= 0.055


def test_promising_needs_a_gain_beyond_the_spread() -> None:
    assert is_promising([100, 101, 102], [110, 111, 112])
    assert not is_promising([100, 150, 200], [110, 165, 220])
    assert not is_promising([100, 101, 102], [])
