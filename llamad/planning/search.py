"""The search for the best choice on one device, or on the CPU: promises first, then as much context as fits. Pure.

Every part grows with context, slots, micro-batch and layers, so binary search finds the exact edge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from llamad.planning.choice import CELL_PADDING, Choice
from llamad.planning.demand import Demand, Need
from llamad.planning.terms import Terms, Variant


@dataclass(frozen=True)
class Room:
    """What a plan may take. `shared`: the device's memory is the host's, so both together must fit the host."""

    device_bytes: int
    host_bytes: int
    limit_bytes: int | None = None
    """`memory`: the most that the model may take of the device, its margin not counted."""
    cache_ram_bytes: int = 0
    """A prompt cache that was promised; 0 where it may shrink to nothing."""
    shared: bool = False

    def device_budget(self, need: Need) -> int:
        """What the device's parts may sum up to, margin included."""
        if self.limit_bytes is None:
            return self.device_bytes
        return min(self.device_bytes, self.limit_bytes + need.device.margin_bytes)

    def device_missing(self, need: Need) -> int:
        """Bytes that the device lacks; 0 or less if it has room."""
        return need.device.total_bytes - self.device_budget(need)

    def host_missing(self, need: Need) -> int:
        """Bytes that the host lacks; 0 or less if it has room."""
        taken = need.device.total_bytes if self.shared else 0
        return need.host.total_bytes + taken + self.cache_ram_bytes - self.host_bytes


class Search:
    """Finds choices that keep `terms` and fit `room`."""

    def __init__(self, terms: Terms, demand: Demand, room: Room) -> None:
        self.terms = terms
        self.demand = demand
        self.room = room

    def fits(self, choice: Choice) -> bool:
        """Whether device and host both have room."""
        need = self.demand.need(choice)
        return self.room.device_missing(need) <= 0 and self.room.host_missing(need) <= 0

    def choice(self, variant: Variant, context_tokens: int, layers: int) -> Choice:
        """A choice from a variant."""
        terms = self.terms
        return Choice(
            context_tokens=context_tokens,
            slots=terms.slots,
            unified=terms.unified,
            type_k=variant.type_k,
            type_v=variant.type_v,
            ubatch_tokens=variant.ubatch_tokens,
            batch_tokens=variant.batch_tokens,
            flash_attention=terms.flash_attention,
            layers=layers,
        )

    def best(self, layers: int) -> Choice | None:
        """The best choice with `layers` layers on the device; None if none keeps all promises.

        The first variant that reaches the comfortable context wins; if none does, the one with the largest.
        """
        best: Choice | None = None
        for variant in self.terms.variants:
            found = self._largest(variant, layers)
            if found and found.context_tokens >= self.terms.comfort_tokens:
                return found
            if found and (best is None or found.context_tokens > best.context_tokens):
                best = found
        return best

    def best_partial(self) -> Choice | None:
        """The most layers on the device that keep the promises at the smallest context, then the best with them."""
        most = 0
        for variant in self.terms.variants:
            floor = self.choice(variant, self.terms.floor_tokens, 0)

            def room_for(layers: int, floor: Choice = floor) -> bool:
                # The host is left to `best`: it needs less with every layer that it gives away.
                return self.room.device_missing(self.demand.need(replace(floor, layers=layers))) <= 0

            most = max(most, _largest_true(room_for, 1, self.terms.layers_total - 1))
        return self.best(most) if most else None

    def larger_context(self, choice: Choice, step_tokens: int = 4096) -> Choice | None:
        """The same choice with the next larger round context; None at the trained length."""
        wanted = (choice.context_tokens // step_tokens + 1) * step_tokens
        wanted = min(wanted, self.terms.context_limit_tokens)
        return replace(choice, context_tokens=wanted) if wanted > choice.context_tokens else None

    def _largest(self, variant: Variant, layers: int) -> Choice | None:
        """The largest context that fits: a promised one or none, else in steps of 256 per stream."""
        terms = self.terms
        if terms.context_tokens is not None:
            promised = self.choice(variant, terms.context_tokens, layers)
            return promised if self.fits(promised) else None
        tokens = self.largest_tokens(variant, layers)
        return self.choice(variant, tokens, layers) if tokens >= terms.context_min_tokens else None

    def largest_tokens(self, variant: Variant, layers: int) -> int:
        """The largest context that fits, whatever was promised; 0 if not even one step does."""
        limit = self.terms.context_limit_tokens
        step = CELL_PADDING * (1 if self.terms.unified else self.terms.slots)

        def room_for(steps: int) -> bool:
            return self.fits(self.choice(variant, min(steps * step, limit), layers))

        return min(_largest_true(room_for, 1, -(-limit // step)) * step, limit)


def _largest_true(test: Callable[[int], bool], low: int, high: int) -> int:
    """The largest number from `low` to `high` that passes a test which, once failed, stays failed; 0 if none does."""
    if high < low or not test(low):
        return 0
    if test(high):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if test(middle):
            low = middle
        else:
            high = middle
    return low
