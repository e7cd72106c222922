"""Which device takes how many layers: contiguous runs, in the order of the devices. Pure."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate

from llamad.planning.edges import largest_near

FitsRun = Callable[[int, int, int], bool]
"""Whether device `index` has room for the blocks from `start` up to `stop`. With more blocks it never becomes true."""


def counts_of(shares: Sequence[float], layers: int) -> tuple[int, ...]:
    """How many of `layers` llama.cpp gives to each device for `--tensor-split` shares; the output counts as a layer.

    llama-model.cpp: the first device whose cumulative share, in float32, is above the layer's place.
    """
    return _counts_of(tuple(shares), layers)


@lru_cache(maxsize=128)
def _counts_of(shares: tuple[float, ...], layers: int) -> tuple[int, ...]:
    total = _float32(sum(map(_float32, shares)))
    sums = [_float32(part) for part in accumulate(shares)]
    ends = [_float32(part / total) for part in sums]
    counts = [0] * len(shares)
    for layer in range(layers):
        place = _float32(layer / layers)
        counts[min(bisect_right(ends, place), len(shares) - 1)] += 1
    return tuple(counts)


def filled(
    fits: FitsRun, devices: int, start: int, end: int, near: Sequence[int] = ()
) -> tuple[int, ...] | None:
    """Counts that place the blocks from `start` up to `end`, each device filled before the next; None if none do.

    Where needs grow with every block, this finds counts whenever there are any. A device may get none.
    `near`: counts that were found for something similar; looking near them is quicker.
    """
    counts: list[int] = []
    for index in range(devices - 1):
        stop = _largest_stop(fits, index, start, end, near[index] if index < len(near) else 0)
        counts.append(stop - start)
        start = stop
    return (*counts, end - start) if start == end or fits(devices - 1, start, end) else None


def _largest_stop(fits: FitsRun, index: int, start: int, most: int, near: int) -> int:
    """The largest stop up to `most` for which the run fits; `start` if not even one block does."""
    guess = start + near if near > 1 else (start + most) // 2
    return largest_near(lambda stop: fits(index, start, stop), guess, start + 1, most, none=start)


def _float32(number: float) -> float:
    value: float = struct.unpack("f", struct.pack("f", number))[0]
    return value
