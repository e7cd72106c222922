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
from llamad.planning.edges import Trend
from llamad.planning.footprint import Computed, Footprint
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
_HOST_MARGIN = overhead.margin("auto", None, measured=False)


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
        unpacked: int | None = None,
        beside: Beside | None = None,
    ) -> None:
        """`weights` and `shape`: prepared before, for the devices' backend. `known`: of each device in order.

        `op_offload`: devices compute with copies of weights that stay on the host. `checkpoints`: how many of each
        slot the host must have room for. `unpacked`: as `overhead.unpacked_bytes` found. `beside`: what is there
        beside the model.
        """
        backend = devices[0].backend if devices else "CPU"
        self._devices = tuple(devices)
        self._gates = gates
        self._facts = facts
        self._backend = backend
        self._rules = backend_of(backend)
        self._copies_weights = self._rules.copies_weights and op_offload
        self._checkpoints = checkpoints
        self._known = tuple(known) or (_NOTHING,) * len(self._devices)
        self._known_host = known_host
        self.beside = beside
        self.shape: ModelShape = shape or shape_of(facts)
        self.weights = weights or WeightMap(facts, backend, mtp_skipped=gates.mtp_skipped)
        maps = self.shape.cache_maps
        if facts.n_layers not in maps:
            maps[facts.n_layers] = CacheMap(self.shape, facts.n_layers)
        self.cache = maps[facts.n_layers]
        if unpacked is None:
            unpacked = overhead.unpacked_bytes(facts) if self._rules.cache_scratch else 0
        self._unpacked = unpacked
        self._only_kind = frozenset(self.shape.kinds)
        self._kind_sets: dict[frozenset[int], frozenset[Layer]] = {}
        self._footprints: dict[Choice, Footprint] = {}
        self._outside = [
            self._fixed_outside(device, known)
            for device, known in zip(self._devices, self._known, strict=True)
        ]
        self._margins = [
            overhead.margin(vram_margin, device, measured=known.overhead_bytes is not None)
            for device, known in zip(self._devices, self._known, strict=True)
        ]

    def need(self, choice: Choice) -> Need:
        """All parts of a choice, margins included."""
        if not self._devices or choice.layers <= 0:
            return Need((), self._cpu_parts(choice))
        ends = list(accumulate(choice.counts, initial=self.weights.n_layers + 1 - choice.layers))
        footprint = self.footprint(choice)
        devices = tuple(
            footprint.parts(index, ends[index], ends[index + 1]) for index in range(len(choice.counts))
        )
        return Need(devices, footprint.host)

    def footprint(self, choice: Choice) -> Footprint:
        """The choice's parts on each device, for any run of layers; however they are spread."""
        whole = replace(choice, split=()) if choice.split else choice
        if whole not in self._footprints:
            self._footprints[whole] = Footprint(self, whole)
        return self._footprints[whole]

    def trend(self, choice: Choice, *, first: bool, outputs: bool) -> Trend:
        """What was computed for choices like this one: on the first device or a later one, with the output or not."""
        place = (self._backend, first, outputs)
        way = (*place, choice.type_k, choice.ubatch_tokens, choice.pipeline, choice.overrides)
        trends = self.shape.trends
        if way not in trends:
            alike = trends.setdefault(place, Trend())  # the last of all: better than nothing
            trends[way] = Trend(alike)
        return trends[way]

    def exact(self, choice: Choice) -> bool:
        """Whether the computed bytes are llama.cpp's own to the MiB or so, not a bound on the safe side."""
        if self.shape.proof != "proved" or not choice.flash_attention or choice.host_cache or choice.rollback:
            return False
        copied = self._copied_kinds(choice)
        if copied:
            at_border = len(choice.counts) > 1 and any(layer.recurrent for layer in self.shape.kinds)
            return bool(self._hosted(choice)) and not self.shape.owners and not at_border
        on_host = self.weights.host_layers(choice.layers) > 0 or choice.overrides
        if any(self.shape.expert_matrices) and choice.host_experts and has_late_masks(self.shape):
            return False
        borrows = bool(self.shape.owners)
        return not ((borrows and len(choice.counts) > 1) or (on_host and (borrows or self.shape.kept_copies)))

    def compute_bytes(self, choice: Choice, index: int, kinds: Collection[Layer], *, outputs: bool) -> int:
        """The compute buffer of device `index` with layers of these kinds, and the output or not."""
        computed = self.computed_bytes(choice, kinds, first=index == 0, outputs=outputs)
        return self.corrected(index, computed)

    def corrected(self, index: int, computed_bytes: int) -> int:
        """The compute buffer of device `index` by what is known of it, from that by the formulas."""
        return max(0, computed_bytes + self._known[index].correction_bytes)

    def computed_bytes(self, choice: Choice, kinds: Collection[Layer], *, first: bool, outputs: bool) -> int:
        """The compute buffer by the formulas: of the first device, or of a later one, which are all alike."""
        copying = self._copies_weights
        partial = self.weights.host_layers(choice.layers) > 0
        copied = self.weights.largest_on_host(choice) if copying and first else 0
        hosted = self._hosted(choice) if first else ()
        place = Place(
            embeds=first and (copying or not partial),
            copies=choice.pipeline,
            copied_bytes=copied,
            copied_kinds=self._copied_kinds(choice) if first else frozenset(),
            scratch=self._rules.cache_scratch,
            outputs=outputs,
            hosted=hosted,
            own=self._own_layers(choice, kinds) if hosted else (),
        )
        return device_compute_bytes(self.shape, kinds, choice, self._gates, place)

    def computed(self, choice: Choice) -> Computed:
        """Where to keep `computed_bytes` of a choice: the same for each set of devices that is tried."""
        rules = (self._backend, self._gates, self._copies_weights)
        like = (*rules, replace(choice, context_tokens=0))
        if like not in self.shape.computed:
            self.shape.computed[like] = {}
        return self.shape.computed[like]

    def context_bytes(self, choice: Choice, start: int, stop: int) -> int:
        """Caches and states of the blocks from `start` up to `stop`; without a formula half as much again."""
        return self.surely_cached(self.cache.bytes_between(choice, start, stop))

    def surely_cached(self, size_bytes: int) -> int:
        """Bytes of caches; half as much again without a formula."""
        return size_bytes if self.shape.proof != "unknown" else size_bytes + size_bytes // 2

    def borrowed_bytes(self, choice: Choice, start: int, stop: int) -> int:
        """Copies of caches that the blocks from `start` up to `stop` read and blocks before them own."""
        if not self.shape.owners:
            return 0
        borrowers = (index for index, owner in self.shape.owners.items() if owner < start <= index < stop)
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
        if len(self._only_kind) == 1 and start < stop and start < len(self.shape.kind_of):
            return self._only_kind
        places = frozenset(self.shape.kind_of[start:stop])
        if places not in self._kind_sets:
            self._kind_sets[places] = frozenset(self.shape.kinds[place] for place in places)
        return self._kind_sets[places]

    def host_parts(self, choice: Choice) -> Parts:
        kept = self.weights.host_layers(choice.layers)
        alone = choice.host_cache or ((kept or choice.overrides) and not self._copies_weights)
        computed = (cpu_compute_bytes if alone else host_compute_bytes)(self.shape, choice, self._gates)
        if not alone:
            computed += hosted_copies_bytes(self.kinds_between(0, kept), self.shape, choice)
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
            return replace(host, margin_bytes=_HOST_MARGIN.bytes_of(host.held_bytes))
        held, over = host.buffers_bytes, host.overhead_bytes
        return Parts(
            host.weights_bytes, host.context_bytes, host.compute_bytes, over, _HOST_MARGIN.bytes_of(held)
        )

    def overhead_bytes(self, choice: Choice, index: int, growths: dict[str, int] | None = None) -> int:
        """What device `index` holds outside llama.cpp's buffers.

        `growths`: where to keep what grows at run time, the same for devices that are alike.
        """
        fixed, alike = self._outside[index]
        if not alike:
            return fixed
        growths = {} if growths is None else growths
        if alike not in growths:
            device = self._devices[index]
            growths[alike] = overhead.growth_bytes(device, self.shape, choice, self._gates, self._unpacked)
        return fixed + growths[alike]

    def _fixed_outside(self, device: Device, known: Known) -> tuple[int, str]:
        """The driver's context, and a word for devices that are alike (shares may mix backends); all if measured."""
        if known.overhead_bytes is not None:
            return known.overhead_bytes, ""
        alike = device.backend + " in software" * overhead.is_software(device)
        return overhead.context_bytes(device), alike

    def with_beside(self, parts: Parts, choice: Choice, index: int, start: int, stop: int) -> Parts:
        """The parts of device `index` with what is there beside the model."""
        assert self.beside is not None
        whole = self.beside.on_device(parts, choice, index, start, stop)
        if self._known[index].overhead_bytes is not None:  # measured with everything that was there
            whole = replace(whole, overhead_bytes=parts.overhead_bytes)
        return replace(whole, margin_bytes=self.margin_bytes(index, whole.held_bytes))

    def margin_bytes(self, index: int, buffers_bytes: int) -> int:
        """What stays free on device `index` on purpose."""
        return self._margins[index].bytes_of(buffers_bytes)
