"""Layers over devices: llama.cpp's own rule for shares, and filling one device after the other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamad.planning.spread import counts_of, filled


@pytest.mark.parametrize(
    ("shares", "layers", "counts"),
    [((1, 1), 41, (21, 20)), ((3, 1), 41, (31, 10)), ((1, 1, 1), 33, (11, 11, 11)), ((0.1, 0.9), 10, (1, 9)), ((5,), 7, (7,))],
)
def test_shares(shares: tuple[float, ...], layers: int, counts: tuple[int, ...]) -> None:
    assert counts_of(shares, layers) == counts


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6))
def test_integer_counts_are_reproduced_exactly(counts: list[int]) -> None:
    """What llamad writes into --tensor-split is what llama.cpp makes of it, in spite of its float32 sums."""
    assert counts_of(counts, sum(counts)) == tuple(counts)


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=40),
    st.lists(st.integers(0, 60), min_size=2, max_size=4),
    st.lists(st.integers(0, 30), max_size=4),
)
def test_filling_finds_counts_whenever_there_are_any(sizes: list[int], rooms: list[int], near: list[int]) -> None:
    def fits(index: int, start: int, stop: int) -> bool:
        return sum(sizes[start:stop]) <= rooms[index]

    found = filled(fits, len(rooms), 0, len(sizes), near)
    assert found == filled(fits, len(rooms), 0, len(sizes))
    if found is None:
        assert not _any(sizes, rooms)
    else:
        assert sum(found) == len(sizes)
        at = 0
        for index, count in enumerate(found):
            assert not count or fits(index, at, at + count)
            at += count


def _any(sizes: list[int], rooms: list[int]) -> bool:
    """Every way to cut the blocks into runs."""
    if len(rooms) == 1:
        return sum(sizes) <= rooms[0]
    return any(sum(sizes[:cut]) <= rooms[0] and _any(sizes[cut:], rooms[1:]) for cut in range(len(sizes) + 1))
