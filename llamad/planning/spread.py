"""Which device takes how many layers: contiguous runs, in the order of the devices. Pure."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate

FitsRun = Callable[[int, int, int], bool]
"""Whether device `index` has room for the blocks from `start` up to `stop`. With more blocks it never becomes true."""


def counts_of(shares: Sequence[float], layers: int) -> tuple[int, ...]:
    """How many of `layers` llama.cpp gives to each device for `--tensor-split` shares; the output counts as a layer.

    llama-model.cpp: the first device whose cumulative share, in float32, is above the layer's place.
    """
    total = _float32(sum(map(_float32, shares)))
    sums = [_float32(part) for part in accumulate(shares)]
    ends = [_float32(part / total) for part in sums]
    counts = [0] * len(shares)
    for layer in range(layers):
        place = _float32(layer / layers)
        counts[min(bisect_right(ends, place), len(shares) - 1)] += 1
    return tuple(counts)


def filled(fits: FitsRun, devices: int, start: int, end: int) -> tuple[int, ...] | None:
    """Counts that place the blocks from `start` up to `end`, each device filled before the next; None if none do.

    Each device gets at least one block. Where needs grow with every block, this finds counts whenever there are any.
    """
    counts: list[int] = []
    for index in range(devices - 1):
        most = end - (devices - 1 - index)
        stop = _largest_stop(fits, index, start, most)
        if stop == start:
            return None
        counts.append(stop - start)
        start = stop
    return (*counts, end - start) if start < end and fits(devices - 1, start, end) else None


def _largest_stop(fits: FitsRun, index: int, start: int, most: int) -> int:
    """The largest stop up to `most` for which the run fits; `start` if not even one block does."""
    if most <= start or not fits(index, start, start + 1):
        return start
    low, high = start + 1, most
    while low < high:
        middle = (low + high + 1) // 2
        if fits(index, start, middle):
            low = middle
        else:
            high = middle - 1
    return low


def _float32(number: float) -> float:
    value: float = struct.unpack("f", struct.pack("f", number))[0]
    return value
