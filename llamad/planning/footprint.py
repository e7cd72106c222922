"""One choice's bytes on each device, for any run of layers. Pure.

A search asks the same choice about many runs: what does not depend on the run is worked out once. What it computes
costs most to tell, so there are sums without it, and with a guess at it.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from llamad.planning.choice import Choice
from llamad.planning.edges import Trend
from llamad.planning.layers import Layer
from llamad.planning.plan import Parts

if TYPE_CHECKING:
    from llamad.planning.demand import Demand

Size = tuple[int, int]
"""Bytes of a device's parts in all, and the margin among them."""


ComputedAt = tuple[bool, bool, frozenset[Layer]]
"""On the first device or a later one, with the output or not, and kinds of layers."""
Computed = dict[ComputedAt, dict[int, int]]
"""Bytes of compute buffers by the cells of a stream."""


class Footprint:
    """One choice's parts on each device for any run of layers: what does not depend on the run is worked out once."""

    def __init__(self, demand: Demand, choice: Choice) -> None:
        self._demand = demand
        self._choice = choice
        self._blocks = demand.weights.n_layers
        self._costs = () if choice.host_cache else demand.cache.costs(choice)
        self._weights = demand.weights.device_sums(choice)
        self._cells = choice.stream_cells
        self._overheads: dict[int, int] = {}
        self._growths: dict[str, int] = {}
        self._trends: dict[tuple[bool, bool], Trend] = {}
        self._sizes: dict[tuple[int, int, int], Size] = {}

    @cached_property
    def _computed(self) -> Computed:
        return self._demand.computed(self._choice)

    @cached_property
    def host(self) -> Parts:
        """The host's parts beside the devices."""
        return self._demand.host_parts(self._choice)

    def parts(self, index: int, start: int, stop: int) -> Parts:
        """The parts of device `index` with the blocks from `start` up to `stop`; block n_layers is the output."""
        demand, choice = self._demand, self._choice
        if max(0, start) >= stop:  # a device that is there and computes nothing still has the driver's context
            return Parts(overhead_bytes=self._overhead(index), margin_bytes=demand.margin_bytes(index, 0))
        weights, context = self._held(start, stop)
        compute = self._compute(index, start, stop)
        margin = demand.margin_bytes(index, weights + context + compute)
        parts = Parts(weights, context, compute, self._overhead(index), margin)
        return demand.with_beside(parts, choice, index, start, stop) if demand.beside else parts

    def size(self, index: int, start: int, stop: int) -> Size:
        """What these parts sum up to."""
        key = (index, start, stop)
        if key not in self._sizes:
            self._sizes[key] = self._size(*key)
        return self._sizes[key]

    def least(self, index: int, start: int, stop: int) -> Size:
        """As `size` without what is computed: never more, and quickly told."""
        held = self.held(start, stop)
        over = self._overheads.get(index) or self._overhead(index)
        margin = self._demand.margin_bytes(index, held)
        return held + over + margin, margin

    def held(self, start: int, stop: int) -> int:
        """Weights and context of a run."""
        if start >= stop or stop <= 0:
            return 0
        weights, context = self._held(start, stop)
        return weights + context

    def guessed(self, index: int, start: int, stop: int) -> Size:
        """As `size` with a guess at what is computed: as it was for similar choices."""
        key = (index, start, stop)
        if key in self._sizes:
            return self._sizes[key]
        total, margin = self.least(index, start, stop)
        if max(0, start) < stop:
            total += self._trend(index == 0, stop > self._blocks).at(self._cells)
        return total, margin

    def _trend(self, first: bool, outputs: bool) -> Trend:
        place = (first, outputs)
        if place not in self._trends:
            self._trends[place] = self._demand.trend(self._choice, first=first, outputs=outputs)
        return self._trends[place]

    def _size(self, index: int, start: int, stop: int) -> Size:
        if self._demand.beside or max(0, start) >= stop:
            parts = self.parts(index, start, stop)
            return parts.total_bytes, parts.margin_bytes
        held = self.held(start, stop) + self._compute(index, start, stop)
        margin = self._demand.margin_bytes(index, held)
        return held + self._overhead(index) + margin, margin

    def _held(self, start: int, stop: int) -> tuple[int, int]:
        """Weights and context of a run that is not empty."""
        first = start if start > 0 else 0
        blocks = stop if stop < self._blocks else self._blocks
        context = 0
        if first < blocks:
            for sums, count in self._costs:
                context += (sums[blocks] - sums[first]) * count
        return self._weights[stop] - self._weights[first], self._demand.surely_cached(context)

    def _overhead(self, index: int) -> int:
        if index not in self._overheads:
            self._overheads[index] = self._demand.overhead_bytes(self._choice, index, self._growths)
        return self._overheads[index]

    def _place(self, index: int, start: int, stop: int) -> ComputedAt:
        return index == 0, stop > self._blocks, self._demand.kinds_between(max(0, start), stop)

    def _compute(self, index: int, start: int, stop: int) -> int:
        demand, choice = self._demand, self._choice
        place = self._place(index, start, stop)
        known = self._computed.setdefault(place, {})
        if self._cells not in known:
            first, outputs, kinds = place
            known[self._cells] = demand.computed_bytes(choice, kinds, first=first, outputs=outputs)
            self._trend(first, outputs).add(self._cells, known[self._cells])
        blocks = min(stop, self._blocks)
        borrowed = demand.borrowed_bytes(choice, min(max(0, start), blocks), blocks)
        return demand.corrected(index, known[self._cells]) + borrowed
