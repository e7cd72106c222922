"""The search for the best choice on given devices, or on the CPU: promises first, then as much context as fits. Pure.

Every part grows with context, slots, micro-batch and layers, so binary search finds the exact edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llamad.frozen import dataclass
from llamad.planning.choice import CELL_PADDING, Choice
from llamad.planning.demand import Demand, Need
from llamad.planning.edges import Test, largest_guessed, largest_true, smallest_true
from llamad.planning.footprint import Size
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
        return parts.total_bytes - self.missing(parts)

    def missing(self, parts: Parts) -> int:
        """Bytes that it lacks; 0 or less if it has room."""
        return self.lacks((parts.total_bytes, parts.margin_bytes))

    def lacks(self, size: Size) -> int:
        """The same of parts with these bytes in all, and this margin."""
        total, margin = size
        if self.limit_bytes is None:
            return total - self.free_bytes
        return total - min(self.free_bytes, self.limit_bytes + margin)


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

    def _spread(self, choice: Choice, slack_bytes: int = 0, *, host: bool = True) -> Choice | None:
        """As `placed`, but a device may get nothing: whether that fits once stops with more tokens or layers.

        Without `host` the devices alone are looked at.
        """
        if len(self.room.devices) > 1 and choice.layers > 0:
            if self.surely_lacks(choice, slack_bytes) > 0:
                return None
            if host and not self.room.host_has(self.demand.footprint(choice).host):
                return None
            split = self._split(choice, slack_bytes)
            if split is None:
                return None
            choice = replace(choice, split=split)
            return choice if not self.room.shared or self.room.has(self.demand.need(choice)) else None
        if self.room.devices and choice.layers > 0 and self.surely_lacks(choice, slack_bytes) > 0:
            return None
        need = self.demand.need(choice)
        if host and self.room.host_missing(need) > 0:
            return None
        return choice if all(missing <= -slack_bytes for missing in self.room.missing(need)) else None

    def surely_lacks(self, choice: Choice, slack_bytes: int = 0) -> int:
        """Bytes that all devices together lack at least, whatever is computed, or negative; quickly told.

        A device that gets nothing lacks nothing, and may keep nothing free.
        """
        footprint, end = self.demand.footprint(choice), self.demand.weights.n_layers + 1
        start = end - choice.layers
        if len(self.room.devices) == 1:
            return self.room.devices[0].lacks(footprint.least(0, start, end)) + slack_bytes
        rooms = enumerate(self.room.devices)
        left = (room.lacks(footprint.least(index, end, end)) + slack_bytes for index, room in rooms)
        return footprint.held(start, end) + sum(lacks for lacks in left if lacks < 0)

    def _may_fit(self, choice: Choice) -> bool:
        """A guess whether `_spread` finds room, from buffers that were computed for similar choices."""
        if not self.room.devices or choice.layers <= 0:
            return True
        if len(self.room.devices) == 1:
            end = self.demand.weights.n_layers + 1
            size = self.demand.footprint(choice).guessed(0, end - choice.layers, end)
            return self.room.devices[0].lacks(size) <= 0
        if self.terms.tensor_split:
            return True
        return self.surely_lacks(choice) <= 0 and bool(self._guessed_split(choice))

    def _guessed_split(self, choice: Choice) -> tuple[int, ...]:
        """How the layers might be spread, by the same guess; () if they might not fit."""
        rooms, footprint = self.room.devices, self.demand.footprint(choice)
        end = self.demand.weights.n_layers + 1

        def fits(index: int, first: int, stop: int) -> bool:
            return rooms[index].lacks(footprint.guessed(index, first, stop)) <= 0

        return filled(fits, len(rooms), end - choice.layers, end, self._near) or ()

    def _split(self, choice: Choice, slack_bytes: int) -> tuple[int, ...] | None:
        end = self.demand.weights.n_layers + 1
        start = end - choice.layers

        footprint = self.demand.footprint(choice)

        def fits(index: int, first: int, stop: int) -> bool:
            room = self.room.devices[index]
            return (
                room.lacks(footprint.least(index, first, stop)) <= -slack_bytes
                and room.lacks(footprint.size(index, first, stop)) <= -slack_bytes
            )

        if self.terms.tensor_split:
            counts = counts_of(self.terms.tensor_split, choice.layers)
            at, ends = start, []
            for count in counts:
                ends.append((at, at + count))
                at += count
            return counts if all(fits(index, *run) for index, run in enumerate(ends)) else None
        found = filled(fits, len(self.room.devices), start, end, self._near or self._guessed_split(choice))
        self._near = found or self._near
        return found

    def nearest(self, choice: Choice) -> Choice:
        """A choice that may not fit, spread so that the device which lacks most lacks as little as possible."""
        if len(self.room.devices) < 2 or choice.layers < len(self.room.devices):
            return choice
        fewest = max(1, -(-self.surely_lacks(choice) // (len(self.room.devices) * _SLACK_STEP_BYTES)))
        found: dict[int, tuple[int, ...]] = {}

        def spreads(steps: int) -> bool:
            split = self._split(choice, -steps * _SLACK_STEP_BYTES)
            if split:
                found[steps] = split
            return split is not None

        return replace(choice, split=found[smallest_true(spreads, fewest)])

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

        largest_true(leaves, 1, max(1, most))
        return best

    def best(
        self, layers: int, host_experts: int | None = None, least_tokens: int = 0, *, any_does: bool = False
    ) -> Choice | None:
        """The best choice with `layers` layers on the devices; None if none keeps all promises.

        The first variant that reaches the comfortable context wins; if none does, the one with the largest. One whose
        context is below `least_tokens` and not comfortable need not be found. `any_does`: whether there is one is all
        that is asked.
        """
        terms = self.terms
        best: Choice | None = None
        least = max(terms.context_min_tokens, min(least_tokens, terms.comfort_tokens))
        for variant in self._variants(layers, host_experts):
            found = self._largest(variant, layers, host_experts, least)
            if found and (any_does or found.context_tokens >= terms.comfort_tokens):
                return found
            if found and (best is None or found.context_tokens > best.context_tokens):
                best, least = found, found.context_tokens + 1
        return best

    def _variants(self, layers: int, host_experts: int | None) -> Sequence[Variant]:
        """The variants that differ with so many layers on the devices."""
        tokens = self.terms.floor_tokens
        found: dict[Choice, Variant] = {}
        for variant in self.terms.variants:
            found.setdefault(self.choice(variant, tokens, layers, host_experts), variant)
        return tuple(found.values())

    def best_with_host_experts(self, most: int | None = None, *, any_does: bool = False) -> Choice | None:
        """All layers on the devices, the experts of as few blocks as possible on the host, and of at most `most`.

        `any_does`: its context does not matter.
        """
        blocks = self.demand.weights.n_layers
        least = 0 if most is None else blocks - most
        total = self.terms.layers_total

        def room_for(on_devices: int) -> bool:
            """Turned round: with more experts on the devices it once stops to fit."""
            return self._floor_fits(total, blocks - on_devices)

        def guess(on_devices: int) -> bool:
            return self._floor_may_fit(total, blocks - on_devices)

        on_devices = self._most(room_for, guess, 0, least, blocks - 1)
        return self.best(total, blocks - on_devices, any_does=any_does) if on_devices >= 0 else None

    def best_partial(self, least: int = 1, *, any_does: bool = False) -> Choice | None:
        """The most layers on the devices that keep the promises at the smallest context, then the best with them.

        Of a mixture of experts all experts stay on the host then: they came first in the order of sacrifice. None
        if that are fewer than `least` layers. `any_does`: its context does not matter.
        """
        experts = self.demand.weights.n_layers if self.demand.weights.has_experts else None
        most = self._most(
            lambda layers: self._floor_fits(layers, experts),
            lambda layers: self._floor_may_fit(layers, experts),
            1,
            least,
            self.terms.layers_total - 1,
        )
        return self.best(most, experts, any_does=any_does) if most >= 1 else None

    def _most(self, fits: Test, guess: Test, low: int, least: int, high: int) -> int:
        """The largest number from `low` to `high` that fits; -1 if it is below `least`.

        Written shares and a draft that takes shares as well may fit with more layers where they do not with fewer:
        then the order in which is asked decides, and goes by no guess.
        """
        if self.terms.tensor_split or self.demand.beside:
            found = largest_true(fits, low, high, none=-1)
            return found if found >= least else -1
        return largest_guessed(fits, guess, least, high, none=-1)

    def _floor_choices(self, layers: int, host_experts: int | None) -> Sequence[Choice]:
        """What differs at the smallest context; what takes least comes first."""
        floor = self.terms.floor_tokens
        found = dict.fromkeys(self.choice(way, floor, layers, host_experts) for way in self.terms.variants)
        return tuple(found)[::-1]

    def _floor_fits(self, layers: int, host_experts: int | None) -> bool:
        """Whether any variant fits the devices at the smallest context.

        What the host lacks it lacks even more of with less on the devices, so it is looked at in the end. Not where
        they share its memory.
        """
        host = self.room.shared
        choices = self._floor_choices(layers, host_experts)
        return any(self._spread(choice, host=host) is not None for choice in choices)

    def _floor_may_fit(self, layers: int, host_experts: int | None) -> bool:
        return any(self._may_fit(choice) for choice in self._floor_choices(layers, host_experts))

    def larger_context(self, choice: Choice, step_tokens: int = 4096) -> Choice | None:
        """The same choice with the next larger round context; None at the trained length."""
        wanted = (choice.context_tokens // step_tokens + 1) * step_tokens
        wanted = min(wanted, self.terms.context_limit_tokens)
        return replace(choice, context_tokens=wanted) if wanted > choice.context_tokens else None

    def _largest(
        self, variant: Variant, layers: int, host_experts: int | None, least_tokens: int
    ) -> Choice | None:
        """The largest context that fits: a promised one or none, else in steps of 256 per stream."""
        tokens = self.terms.context_tokens
        if tokens is None:
            tokens = self.largest_tokens(variant, layers, host_experts, least_tokens)
            if not tokens:
                return None
        found = self.placed(self.choice(variant, tokens, layers, host_experts))
        # A device that gets nothing is none of the set: the smaller set is tried by itself.
        return found if found and (all(found.counts) or not found.layers or self.terms.tensor_split) else None

    def largest_tokens(
        self, variant: Variant, layers: int, host_experts: int | None = None, least_tokens: int = 1
    ) -> int:
        """The largest context that fits, whatever was promised; 0 if not even `least_tokens` do."""
        limit = self.terms.largest_tokens
        step = CELL_PADDING * (1 if self.terms.unified else self.terms.slots)

        def choice(steps: int) -> Choice:
            return self.choice(variant, min(steps * step, limit), layers, host_experts)

        least, most = -(-least_tokens // step), -(-limit // step)
        if least_tokens > limit:
            return 0
        if self.room.devices and layers > 0 and self.surely_lacks(choice(least)) > 0:
            return 0
        steps = largest_guessed(
            lambda steps: self._spread(choice(steps)) is not None,
            lambda steps: self._may_fit(choice(steps)),
            least,
            most,
        )
        return min(steps * step, limit)
