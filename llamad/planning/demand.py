"""What a choice needs, on each device and on the host, part by part. Pure; prepared once, asked many times."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING

from llamad.frozen import dataclass
from llamad.gguf.facts import ModelFacts
from llamad.hardware.device import Device
from llamad.planning import overhead
from llamad.planning.architectures import shape_of
from llamad.planning.backends import Backend, backend_of
from llamad.planning.cache import CacheMap
from llamad.planning.choice import Choice
from llamad.planning.compute import (
    Place,
    borrowed_bytes,
    cpu_compute_bytes,
    device_compute_bytes,
    has_late_masks,
    host_compute_bytes,
    hosted_copies_bytes,
    output_bytes,
)
from llamad.planning.layers import Layer, ModelShape
from llamad.planning.plan import BuildGates, Parts
from llamad.planning.weights import WeightMap

if TYPE_CHECKING:
    from llamad.planning.beside import Beside
    from llamad.planning.graphs.hosted import Kept


@dataclass(frozen=True)
class Need:
    """Bytes that a choice takes: of each device in order (none for a run on the CPU alone), and of the host."""

    devices: tuple[Parts, ...]
    host: Parts


@dataclass(frozen=True)
class Known:
    """What is known of one device, or of the host, beyond the formulas. Bytes."""

    overhead_bytes: int | None = None
    """What a former load took outside its buffers; replaces driver context and growth."""
    correction_bytes: int = 0
    """How far computed buffers were from a better source; added to compute."""


_NOTHING = Known()


class Demand:
    """The bytes of one model on devices of one backend, in their order, or on the CPU alone (no device)."""

    def __init__(
        self,
        facts: ModelFacts,
        devices: Sequence[Device],
        gates: BuildGates,
        weights: WeightMap | None = None,
        *,
        shape: ModelShape | None = None,
        vram_margin: str = "auto",
        op_offload: bool = True,
        checkpoints: int = 0,
        known: Sequence[Known] = (),
        known_host: Known = _NOTHING,
        beside: Beside | None = None,
    ) -> None:
        """`weights` and `shape`: prepared before, for the devices' backend. `known`: of each device in order.

        `op_offload`: devices compute with copies of weights that stay on the host. `checkpoints`: how many of each
        slot the host must have room for. `beside`: what is there beside the model.
        """
        backend = devices[0].backend if devices else "CPU"
        self._devices = tuple(devices)
        self._gates = gates
        self._facts = facts
        self._backend = backend
        self._rules = backend_of(backend)
        self._copies_weights = self._rules.copies_weights and op_offload
        self._checkpoints = checkpoints
        self._vram_margin = vram_margin
        self._known = tuple(known) or (_NOTHING,) * len(self._devices)
        self._known_host = known_host
        self.beside = beside
        self.shape: ModelShape = shape or shape_of(facts)
        self.weights = weights or WeightMap(facts, backend, mtp_skipped=gates.mtp_skipped)
        self.cache = CacheMap(self.shape, facts.n_layers)
        self._unpacked = overhead.unpacked_bytes(facts) if self._rules.cache_scratch else 0
        kinds = {layer: index for index, layer in enumerate(dict.fromkeys(self.shape.layers))}
        self._kinds: tuple[Layer, ...] = tuple(kinds)
        self._kind_of = tuple(kinds[layer] for layer in self.shape.layers)
        self._kind_sets: dict[frozenset[int], frozenset[Layer]] = {}
        self._owners = _owners(self.shape.layers)

    def need(self, choice: Choice) -> Need:
        """All parts of a choice, margins included."""
        if not self._devices or choice.layers <= 0:
            return Need((), self._cpu_parts(choice))
        ends = list(accumulate(choice.counts, initial=self.weights.n_layers + 1 - choice.layers))
        footprint = self.footprint(choice)
        devices = tuple(
            footprint.parts(index, ends[index], ends[index + 1]) for index in range(len(choice.counts))
        )
        return Need(devices, self.host_parts(choice))

    def footprint(self, choice: Choice) -> Footprint:
        """The choice's parts on each device, for any run of layers."""
        return Footprint(self, choice)

    def exact(self, choice: Choice) -> bool:
        """Whether the computed bytes are llama.cpp's own to the MiB or so, not a bound on the safe side."""
        if self.shape.proof != "proved" or not choice.flash_attention or choice.host_cache or choice.rollback:
            return False
        copied = self._copied_kinds(choice)
        if copied:
            at_border = len(choice.counts) > 1 and any(layer.recurrent for layer in self.shape.layers)
            return bool(self._hosted(choice)) and not self._owners and not at_border
        on_host = self.weights.host_layers(choice.layers) > 0 or choice.overrides
        if any(self.shape.expert_matrices) and choice.host_experts and has_late_masks(self.shape):
            return False
        return not (
            (self._owners and len(choice.counts) > 1) or (on_host and (self._owners or self.shape.kept_copies))
        )

    def compute_bytes(self, choice: Choice, index: int, kinds: Collection[Layer], *, outputs: bool) -> int:
        """The compute buffer of device `index` with layers of these kinds, and the output or not."""
        computed = self._compute_bytes(choice, index, kinds, outputs=outputs)
        return max(0, computed + self._known[index].correction_bytes)

    def _compute_bytes(self, choice: Choice, index: int, kinds: Collection[Layer], *, outputs: bool) -> int:
        copying = self._copies_weights
        partial = self.weights.host_layers(choice.layers) > 0
        copied = self.weights.largest_on_host(choice) if copying and index == 0 else 0
        hosted = self._hosted(choice) if index == 0 else ()
        place = Place(
            embeds=index == 0 and (copying or not partial),
            copies=choice.pipeline,
            copied_bytes=copied,
            copied_kinds=self._copied_kinds(choice) if index == 0 else frozenset(),
            scratch=self._rules.cache_scratch,
            outputs=outputs,
            hosted=hosted,
            own=self._own_layers(choice, kinds) if hosted else (),
        )
        if not hosted:
            return device_compute_bytes(self.shape, kinds, choice, self._gates, place)
        heights = self.shape.hosted_heights
        key = (self._backend, self._gates, replace(choice, split=()), frozenset(kinds), outputs)
        if key not in heights:
            heights[key] = device_compute_bytes(self.shape, kinds, choice, self._gates, place)
        return heights[key]

    def context_bytes(self, choice: Choice, start: int, stop: int) -> int:
        """Caches and states of the blocks from `start` up to `stop`; without a formula half as much again."""
        size = self.cache.bytes_between(choice, start, stop)
        return size if self.shape.proof != "unknown" else size + size // 2

    def borrowed_bytes(self, choice: Choice, start: int, stop: int) -> int:
        """Copies of caches that the blocks from `start` up to `stop` read and blocks before them own."""
        borrowers = (index for index, owner in self._owners.items() if owner < start <= index < stop)
        return sum(borrowed_bytes(self.shape.layers[index], choice) for index in borrowers)

    def _copied_kinds(self, choice: Choice) -> frozenset[Layer]:
        """The layers that the host keeps and the first device computes, where its backend copies weights."""
        if not self._copies_weights:
            return frozenset()
        return self.kinds_between(0, self.weights.host_layers(choice.layers))

    def _hosted(self, choice: Choice) -> tuple[Kept, ...]:
        """The host's layers with their matrices, where their copies are known one by one."""
        kept = self.weights.host_layers(choice.layers)
        if not kept or not self._copies_weights or choice.overrides or choice.host_cache:
            return ()
        if not choice.flash_attention or choice.rollback:
            return ()
        kept_by_backend = self.shape.kept
        if self._backend not in kept_by_backend:
            from llamad.planning.graphs.hosted import kept_layers  # only where some layers stay on the host

            kept_by_backend[self._backend] = kept_layers(self.shape, self._facts, self._backend)
        return kept_by_backend[self._backend][:kept]

    def _own_layers(self, choice: Choice, kinds: Collection[Layer]) -> tuple[Layer, ...]:
        first = self.weights.host_layers(choice.layers)
        return tuple(layer for layer in self.shape.layers[first:] if layer in kinds)

    def kinds_between(self, start: int, stop: int) -> frozenset[Layer]:
        """The kinds of layers from `start` up to `stop`."""
        places = frozenset(self._kind_of[start:stop])
        if places not in self._kind_sets:
            self._kind_sets[places] = frozenset(self._kinds[place] for place in places)
        return self._kind_sets[places]

    def host_parts(self, choice: Choice) -> Parts:
        kept = self.weights.host_layers(choice.layers)
        alone = choice.host_cache or ((kept or choice.overrides) and not self._copies_weights)
        computed = (cpu_compute_bytes if alone else host_compute_bytes)(self.shape, choice, self._gates)
        if not alone:
            computed += hosted_copies_bytes(self.shape.layers[:kept], self.shape, choice)
        host = Parts(
            weights_bytes=self.weights.on_host(choice),
            context_bytes=self.context_bytes(
                choice, 0, self.weights.n_layers if choice.host_cache else kept
            ),
            compute_bytes=max(0, computed + self._known_host.correction_bytes),
            overhead_bytes=self._process_bytes(choice, self._rules),
        )
        return self._whole_host(host, choice)

    def _cpu_parts(self, choice: Choice) -> Parts:
        computed = cpu_compute_bytes(self.shape, choice, self._gates)
        host = Parts(
            weights_bytes=self.weights.on_host(choice),
            context_bytes=self.context_bytes(choice, 0, self.weights.n_layers),
            compute_bytes=max(0, computed + self._known_host.correction_bytes),
            overhead_bytes=self._process_bytes(choice, backend_of("CPU")),
        )
        return self._whole_host(host, choice)

    def _process_bytes(self, choice: Choice, rules: Backend) -> int:
        """Host memory outside the buffers: the process, finished logits, checkpoints that were promised."""
        kept = (
            self._checkpoints * choice.slots * self.cache.checkpoint_bytes(choice)
            if self._checkpoints
            else 0
        )
        return rules.process_bytes + output_bytes(self.shape, choice, self._gates) + kept

    def _whole_host(self, host: Parts, choice: Choice) -> Parts:
        """With what is there beside the model, and the margin."""
        if self.beside:
            host = self.beside.on_host(host, choice)
        margin = overhead.margin_bytes("auto", None, host.held_bytes, measured=False)
        return replace(host, margin_bytes=margin)

    def overhead_bytes(self, choice: Choice, index: int) -> int:
        """What device `index` holds outside llama.cpp's buffers."""
        device, known = self._devices[index], self._known[index]
        if known.overhead_bytes is not None:
            return known.overhead_bytes
        growth = overhead.growth_bytes(device, self.shape, choice, self._gates, self._unpacked)
        return overhead.context_bytes(device) + growth

    def with_beside(self, parts: Parts, choice: Choice, index: int, start: int, stop: int) -> Parts:
        """The parts of device `index` with what is there beside the model."""
        assert self.beside is not None
        whole = self.beside.on_device(parts, choice, index, start, stop)
        if self._known[index].overhead_bytes is not None:  # measured with everything that was there
            whole = replace(whole, overhead_bytes=parts.overhead_bytes)
        return replace(whole, margin_bytes=self.margin_bytes(index, whole.held_bytes))

    def margin_bytes(self, index: int, buffers_bytes: int) -> int:
        """What stays free on device `index` on purpose."""
        measured = self._known[index].overhead_bytes is not None
        return overhead.margin_bytes(
            self._vram_margin, self._devices[index], buffers_bytes, measured=measured
        )


def _owners(layers: Sequence[Layer]) -> dict[int, int]:
    """For each layer that reads another's cache: the last one of its kind that has one."""
    owners: dict[int, int] = {}
    last: dict[bool, int] = {}
    for index, layer in enumerate(layers):
        if layer.shares:
            owners[index] = last.get(bool(layer.window), 0)
        elif layer.k_width:
            last[bool(layer.window)] = index
    return owners


class Footprint:
    """One choice's parts on each device for any run of layers: what does not depend on the run is worked out once."""

    def __init__(self, demand: Demand, choice: Choice) -> None:
        self._demand = demand
        self._choice = choice
        self._computed: dict[tuple[int, bool, frozenset[Layer]], int] = {}
        self._overheads: dict[int, int] = {}

    def parts(self, index: int, start: int, stop: int) -> Parts:
        """The parts of device `index` with the blocks from `start` up to `stop`; block n_layers is the output."""
        demand, choice = self._demand, self._choice
        blocks, first = min(stop, demand.weights.n_layers), max(0, start)
        if index not in self._overheads:
            self._overheads[index] = demand.overhead_bytes(choice, index)
        if first >= stop:  # a device that is there and computes nothing still has the driver's context
            return Parts(overhead_bytes=self._overheads[index], margin_bytes=demand.margin_bytes(index, 0))
        first_cached = min(first, blocks)
        weights = demand.weights.on_device(choice, first, stop)
        context = 0 if choice.host_cache else demand.context_bytes(choice, first_cached, blocks)
        compute = self._compute(index, first, stop) + demand.borrowed_bytes(choice, first_cached, blocks)
        margin = demand.margin_bytes(index, weights + context + compute)
        parts = Parts(weights, context, compute, self._overheads[index], margin)
        return demand.with_beside(parts, choice, index, start, stop) if demand.beside else parts

    def _compute(self, index: int, start: int, stop: int) -> int:
        key = (index, stop > self._demand.weights.n_layers, self._demand.kinds_between(start, stop))
        if key not in self._computed:
            self._computed[key] = self._demand.compute_bytes(self._choice, index, key[2], outputs=key[1])
        return self._computed[key]
