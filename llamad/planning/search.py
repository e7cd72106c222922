"""The search for the best choice on given devices, or on the CPU: promises first, then as much context as fits. Pure.

Every part grows with context, slots, micro-batch and layers, so binary search finds the exact edge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from llamad.frozen import dataclass
from llamad.planning.choice import CELL_PADDING, Choice
from llamad.planning.demand import Demand, Need
from llamad.planning.plan import Parts
from llamad.planning.spread import counts_of, filled
from llamad.planning.terms import Terms, Variant
from llamad.units import MIB

_SLACK_STEP_BYTES = 16 * MIB


@dataclass(frozen=True)
class DeviceRoom:
    """What a plan may take of one device."""

    free_bytes: int
    limit_bytes: int | None = None
    """`memory`: the most that the model may take of it, its margin not counted."""
    shared: bool = False
    """Its memory is the host's, so that what it takes the host must have too."""

    def budget(self, parts: Parts) -> int:
        """What the device's parts may sum up to, margin included."""
        if self.limit_bytes is None:
            return self.free_bytes
        return min(self.free_bytes, self.limit_bytes + parts.margin_bytes)

    def missing(self, parts: Parts) -> int:
        """Bytes that it lacks; 0 or less if it has room."""
        return parts.total_bytes - self.budget(parts)


@dataclass(frozen=True)
class Room:
    """What a plan may take: of each device in order, and of the host."""

    devices: tuple[DeviceRoom, ...]
    host_bytes: int
    cache_ram_bytes: int = 0
    """A prompt cache that was promised; 0 where it may shrink to nothing."""

    def missing(self, need: Need) -> tuple[int, ...]:
        """Bytes that each device lacks; 0 or less where it has room."""
        return tuple(room.missing(parts) for room, parts in zip(self.devices, need.devices, strict=False))

    def host_missing(self, need: Need) -> int:
        """Bytes that the host lacks; 0 or less if it has room."""
        pairs = zip(self.devices, need.devices, strict=False)
        shared = sum(parts.total_bytes for room, parts in pairs if room.shared)
        return need.host.total_bytes + shared + self.cache_ram_bytes - self.host_bytes

    @property
    def shared(self) -> bool:
        """Whether what a device takes is taken from the host."""
        return any(room.shared for room in self.devices)

    def host_has(self, host: Parts) -> bool:
        """Whether the host has room for its own parts."""
        return host.total_bytes + self.cache_ram_bytes <= self.host_bytes

    def has(self, need: Need) -> bool:
        """Whether devices and host all have room."""
        return all(missing <= 0 for missing in self.missing(need)) and self.host_missing(need) <= 0


class Search:
    """Finds choices that keep `terms` and fit `room`."""

    def __init__(self, terms: Terms, demand: Demand, room: Room) -> None:
        self.terms = terms
        self.demand = demand
        self.room = room
        self._near: tuple[int, ...] = ()

    def choice(
        self, variant: Variant, context_tokens: int, layers: int, host_experts: int | None = None
    ) -> Choice:
        """A choice from a variant, on one device or not spread over several yet."""
        terms = self.terms
        experts = terms.host_experts if host_experts is None else host_experts
        whole = layers >= terms.layers_total and not experts and not terms.host_ffn
        return Choice(
            context_tokens=context_tokens,
            slots=terms.slots,
            unified=terms.unified,
            type_k=variant.type_k,
            type_v=variant.type_v,
            ubatch_tokens=variant.ubatch_tokens,
            batch_tokens=variant.batch_tokens if whole or not variant.pipeline else variant.ubatch_tokens,
            flash_attention=terms.flash_attention,
            layers=layers,
            pipeline=variant.pipeline and whole,
            host_experts=experts,
            host_ffn=terms.host_ffn,
            guessed_tokens=terms.guessed_tokens,
            rollback=terms.rollback,
            full_windows=terms.full_windows,
            host_cache=terms.host_cache,
        )

    def placed(self, choice: Choice, slack_bytes: int = 0) -> Choice | None:
        """The choice with its layers spread so that every device keeps `slack_bytes` free; None where none do.

        The host is looked at too.
        """
        spread = self._spread(choice, slack_bytes)
        # A device that gets nothing is none of the set: the smaller set is tried by itself.
        return None if spread and len(spread.split) > 1 and not self._all_used(spread) else spread

    def _all_used(self, choice: Choice) -> bool:
        return all(choice.split) or bool(self.terms.tensor_split)

    def _spread(self, choice: Choice, slack_bytes: int = 0) -> Choice | None:
        """As `placed`, but a device may get nothing: whether that fits once stops with more tokens or layers."""
        if len(self.room.devices) > 1 and choice.layers > 0:
            if not self.room.host_has(self.demand.host_parts(choice)):
                return None
            split = self._split(choice, slack_bytes)
            if split is None:
                return None
            choice = replace(choice, split=split)
            return choice if not self.room.shared or self.room.has(self.demand.need(choice)) else None
        need = self.demand.need(choice)
        fits = self.room.host_missing(need) <= 0 and all(m <= -slack_bytes for m in self.room.missing(need))
        return choice if fits else None

    def _split(self, choice: Choice, slack_bytes: int) -> tuple[int, ...] | None:
        end = self.demand.weights.n_layers + 1
        start = end - choice.layers

        footprint = self.demand.footprint(choice)

        def fits(index: int, first: int, stop: int) -> bool:
            parts = footprint.parts(index, first, stop)
            return self.room.devices[index].missing(parts) <= -slack_bytes

        if self.terms.tensor_split:
            counts = counts_of(self.terms.tensor_split, choice.layers)
            at, ends = start, []
            for count in counts:
                ends.append((at, at + count))
                at += count
            return counts if all(fits(index, *run) for index, run in enumerate(ends)) else None
        found = filled(fits, len(self.room.devices), start, end, self._near)
        self._near = found or self._near
        return found

    def nearest(self, choice: Choice) -> Choice:
        """A choice that may not fit, spread so that the device which lacks most lacks as little as possible."""
        if len(self.room.devices) < 2 or choice.layers < len(self.room.devices):
            return choice
        lack = _SLACK_STEP_BYTES
        while (split := self._split(choice, -lack)) is None:
            lack *= 2
        low = 0 if lack == _SLACK_STEP_BYTES else lack // 2
        while lack - low > _SLACK_STEP_BYTES:
            middle = (lack + low) // 2
            if found := self._split(choice, -middle):
                split, lack = found, middle
            else:
                low = middle
        return replace(choice, split=split)

    def balanced(self, choice: Choice) -> Choice:
        """The same choice with the layers spread so that the fullest device has as much left as possible."""
        if len(choice.split) < 2 or self.terms.tensor_split:
            return choice
        most = min(room.free_bytes for room in self.room.devices) // _SLACK_STEP_BYTES
        best = choice

        def leaves(steps: int) -> bool:
            nonlocal best
            found = self.placed(replace(choice, split=()), steps * _SLACK_STEP_BYTES)
            best = found or best
            return found is not None

        _largest_true(leaves, 1, max(1, most))
        return best

    def best(self, layers: int, host_experts: int | None = None) -> Choice | None:
        """The best choice with `layers` layers on the devices; None if none keeps all promises.

        The first variant that reaches the comfortable context wins; if none does, the one with the largest.
        """
        best: Choice | None = None
        for variant in self.terms.variants:
            found = self._largest(variant, layers, host_experts)
            if found and found.context_tokens >= self.terms.comfort_tokens:
                return found
            if found and (best is None or found.context_tokens > best.context_tokens):
                best = found
        return best

    def best_with_host_experts(self) -> Choice | None:
        """All layers on the devices, the experts of as few blocks as possible on the host."""
        blocks = self.demand.weights.n_layers

        def room_for(on_devices: int) -> bool:
            """Turned round: with more experts on the devices it once stops to fit."""
            return self._floor_fits(self.terms.layers_total, blocks - on_devices)

        if not room_for(0):
            return None
        fewest = blocks - _largest_true(room_for, 0, blocks - 1, none=0)
        return self.best(self.terms.layers_total, fewest)

    def best_partial(self) -> Choice | None:
        """The most layers on the devices that keep the promises at the smallest context, then the best with them.

        Of a mixture of experts all experts stay on the host then: they came first in the order of sacrifice.
        """
        experts = self.demand.weights.n_layers if self.demand.weights.has_experts else None
        most = _largest_true(
            lambda layers: self._floor_fits(layers, experts), 1, self.terms.layers_total - 1
        )
        return self.best(most, experts) if most else None

    def _floor_fits(self, layers: int, host_experts: int | None) -> bool:
        """Whether any variant fits at the smallest context."""
        floor = self.terms.floor_tokens
        choices = (self.choice(variant, floor, layers, host_experts) for variant in self.terms.variants)
        return any(self._spread(choice) is not None for choice in choices)

    def larger_context(self, choice: Choice, step_tokens: int = 4096) -> Choice | None:
        """The same choice with the next larger round context; None at the trained length."""
        wanted = (choice.context_tokens // step_tokens + 1) * step_tokens
        wanted = min(wanted, self.terms.context_limit_tokens)
        return replace(choice, context_tokens=wanted) if wanted > choice.context_tokens else None

    def _largest(self, variant: Variant, layers: int, host_experts: int | None) -> Choice | None:
        """The largest context that fits: a promised one or none, else in steps of 256 per stream."""
        terms = self.terms
        tokens = terms.context_tokens
        if tokens is None:
            tokens = self.largest_tokens(variant, layers, host_experts)
            if tokens < terms.context_min_tokens:
                return None
        found = self.placed(self.choice(variant, tokens, layers, host_experts))
        # A device that gets nothing is none of the set: the smaller set is tried by itself.
        return found if found and (all(found.counts) or not found.layers or self.terms.tensor_split) else None

    def largest_tokens(self, variant: Variant, layers: int, host_experts: int | None = None) -> int:
        """The largest context that fits, whatever was promised; 0 if not even one step does."""
        limit = self.terms.context_limit_tokens
        step = CELL_PADDING * (1 if self.terms.unified else self.terms.slots)

        def room_for(steps: int) -> bool:
            choice = self.choice(variant, min(steps * step, limit), layers, host_experts)
            return self._spread(choice) is not None

        return min(_largest_true(room_for, 1, -(-limit // step)) * step, limit)


def _largest_true(test: Callable[[int], bool], low: int, high: int, *, none: int = 0) -> int:
    """The largest number from `low` to `high` that passes a test which, once failed, stays failed; `none` if none."""
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
