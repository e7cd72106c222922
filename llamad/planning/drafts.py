"""Bytes of what guesses ahead: a draft model, or a model's own blocks for multi-token prediction. Pure.

From llama.cpp's common/speculative.cpp: it has a context of its own, as long as that of the model and with as many
slots, on the devices of the model and in the same shares, unless told otherwise. Blocks of the model's own are
loaded with it; their context is on the last device, and the device with the output computes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llamad.frozen import dataclass
from llamad.gguf.facts import ModelFacts
from llamad.hardware.device import Device
from llamad.planning import overhead
from llamad.planning.architectures import shape_of
from llamad.planning.backends import backend_of
from llamad.planning.cache import row_bytes
from llamad.planning.choice import Choice
from llamad.planning.compute import Place, device_compute_bytes, host_compute_bytes, output_bytes
from llamad.planning.demand import Demand
from llamad.planning.extras import Draft
from llamad.planning.layers import Layer, ModelShape
from llamad.planning.plan import BuildGates, Parts
from llamad.planning.terms import flash_usable
from llamad.planning.weights import WeightMap

_F32 = 4
# EAGLE-3 and DFlash read what three layers of the model computed: it is kept, and put in one row.
_READS_LAYERS = frozenset({"draft-eagle3", "draft-dflash", "draft-dspark"})
_LAYERS_READ = 3
_PIPELINE_COPIES = 4  # GGML_SCHED_MAX_COPIES


@dataclass(frozen=True)
class Taken:
    """Bytes in one place: the three buffers of a context, and what libraries take for it."""

    weights_bytes: int = 0
    context_bytes: int = 0
    compute_bytes: int = 0
    growth_bytes: int = 0

    @property
    def buffers_bytes(self) -> int:
        """What llama-server's own breakdown of it shows."""
        return self.weights_bytes + self.context_bytes + self.compute_bytes


@dataclass(frozen=True)
class Main:
    """The model that checks what is guessed."""

    facts: ModelFacts
    shape: ModelShape

    @property
    def layers_total(self) -> int:
        """Its blocks, and the output as one more."""
        return self.facts.n_layers + 1


_NONE = Taken()


class DraftModel:
    """A model of its own that guesses, for each choice of the main model's."""

    def __init__(self, draft: Draft, main: Main, devices: Sequence[Device], gates: BuildGates) -> None:
        facts = draft.facts
        assert facts is not None
        self._draft = draft
        self._main = main
        self._devices = tuple(devices)
        self._gates = gates
        self._named = tuple(
            index for index, device in enumerate(devices)
            if any(word.lower() in (device.name.lower(), device.uuid.lower()) for word in draft.devices)
        )  # fmt: skip
        backend = devices[0].backend if devices else "CPU"
        self._shape = shape_of(facts)
        self._flash = flash_usable(facts, self._shape, backend)
        self._demand = Demand(facts, devices, gates, shape=self._shape)
        self._layers_total = facts.n_layers + 1
        self._reads_layers = not _READS_LAYERS.isdisjoint(draft.types)

    def on_device(self, choice: Choice, index: int, start: int, stop: int) -> Taken:
        """What it takes of device `index`, which has blocks `start` to `stop` of all those of `choice`."""
        own = self._choice(choice)
        first, last = self._run(choice, own, index, start, stop)
        at = index if self._spread else 0
        if own.layers == 0 and index == (self._named or (0,))[0]:  # large batches are computed here all the same
            parts = Parts(compute_bytes=self._demand.compute_bytes(own, at, frozenset(), outputs=False))
        elif last <= first:
            return _NONE
        else:
            offset = self._layers_total - own.layers
            parts = self._demand.footprint(own).parts(at, offset + first, offset + last)
        growth = self._demand.overhead_bytes(own, at) - overhead.context_bytes(self._devices[at])
        compute = parts.compute_bytes
        if self._reads_layers:
            compute += 2 * _F32 * choice.step_tokens * _LAYERS_READ * self._main.shape.embd
        return Taken(parts.weights_bytes, parts.context_bytes, compute, growth)

    @property
    def _spread(self) -> bool:
        return len(self._devices) > 1 and not self._named

    def on_host(self, choice: Choice) -> Taken:
        """What it takes of the host."""
        own = self._choice(choice)
        parts = self._demand.host_parts(own) if self._devices else self._demand.need(own).host
        outputs = output_bytes(self._shape, own, self._gates)
        return Taken(parts.weights_bytes, parts.context_bytes, parts.compute_bytes, outputs)

    def _choice(self, choice: Choice) -> Choice:
        draft = self._draft
        layers = self._layers_total if draft.layers is None else min(draft.layers, self._layers_total)
        if not self._devices:
            layers = 0
        whole = layers == self._layers_total and not draft.host_experts
        return replace(
            choice,
            context_tokens=choice.cells,
            type_k=draft.cache_type,
            type_v=draft.cache_type,
            ubatch_tokens=min(draft.ubatch_tokens or choice.ubatch_tokens, choice.ubatch_tokens),
            flash_attention=choice.flash_attention and self._flash,
            layers=layers,
            split=(),
            pipeline=choice.pipeline and whole and not self._named,
            host_experts=draft.host_experts,
            host_ffn=0,
            guessed_tokens=draft.tokens if self._reads_layers else 0,
            rollback=0,
        )

    def _run(self, choice: Choice, own: Choice, index: int, start: int, stop: int) -> tuple[int, int]:
        """Which of its layers on devices this one gets: the same share as of the main model's.

        Named devices share in a way that depends on what is free when it loads: each has room for all of it.
        """
        if self._named:
            return (0, own.layers) if index in self._named else (0, 0)
        if not self._spread:
            return 0, own.layers
        before = self._main.layers_total - choice.layers
        first, last = start - before, stop - before
        return -(-first * own.layers // choice.layers), -(-last * own.layers // choice.layers)


class MultiToken:
    """Blocks for multi-token prediction: those of the model, which are loaded with it, or of a file of their own.

    What they compute is bounded by what such a layer computes as part of a model: 8 to 34 MiB less were seen.
    """

    def __init__(self, draft: Draft, main: Main, devices: Sequence[Device], gates: BuildGates) -> None:
        own = draft.facts
        facts, shape = (main.facts, main.shape) if own is None else (own, shape_of(own))
        self._main = main
        backend = devices[0].backend if devices else "CPU"
        self._draft = draft
        self._devices = tuple(devices)
        self._rules = backend_of(backend)
        self._gates = replace(gates, mixed_inputs=False)
        self._first = facts.n_layers - facts.n_layers_nextn
        self._layers = _nextn_layers(facts, shape)
        self._shape = shape
        self._kinds = frozenset({_last_attention(shape)})
        self._own = WeightMap(facts, backend, mtp_skipped=False) if own is not None else None

    def on_device(self, choice: Choice, index: int, stop: int, largest_on_host: int) -> Taken:
        """What they take of device `index` whose blocks end at `stop`."""
        if stop < self._main.layers_total:
            return _NONE
        own = self._choice(choice)
        on_host = max(choice.host_experts, choice.host_ffn, self._main.layers_total - choice.layers)
        place = Place(
            copies=choice.pipeline,
            copied_bytes=largest_on_host if on_host > self._first else 0,
            scratch=self._rules.cache_scratch,
        )
        compute = device_compute_bytes(self._shape, self._kinds, own, self._gates, place)
        if choice.pipeline:  # what the model computed last is an input here, and kept as often as every input
            compute += _PIPELINE_COPIES * _F32 * own.step_tokens * self._shape.embd
        weights = self._own.on_device(own, 0, self._own.n_layers + 1) if self._own else 0
        growth = overhead.growth_bytes(self._devices[index], self._shape, own, self._gates, 0)
        return Taken(weights, self._cache_bytes(own), compute, growth)

    def on_host(self, choice: Choice) -> Taken:
        """What they take of the host; all of it, where the model is on no device."""
        own = self._choice(choice)
        compute = host_compute_bytes(self._shape, own, self._gates)
        outputs = output_bytes(self._shape, own, self._gates)
        if not self._devices or choice.layers <= 0:
            alone = device_compute_bytes(self._shape, self._kinds, own, self._gates, Place())
            weights = self._own.on_host(replace(own, layers=0)) if self._own else 0
            return Taken(weights, self._cache_bytes(own), compute + alone, outputs)
        weights = self._own.on_host(replace(own, layers=self._own.n_layers + 1)) if self._own else 0
        return Taken(weights, 0, compute, outputs)

    def _choice(self, choice: Choice) -> Choice:
        draft = self._draft
        return replace(
            choice,
            type_k=draft.cache_type,
            type_v=draft.cache_type,
            ubatch_tokens=min(draft.ubatch_tokens or choice.ubatch_tokens, choice.ubatch_tokens),
            guessed_tokens=0,
            rollback=0,
        )

    def _cache_bytes(self, own: Choice) -> int:
        rows = (row_bytes(own.type_k, x.k_width) + row_bytes(own.type_v, x.v_width) for x in self._layers)
        return sum(rows) * own.cells


def _nextn_layers(facts: ModelFacts, shape: ModelShape) -> tuple[Layer, ...]:
    """The blocks that predict further tokens: as the last block with a cache, and they see everything."""
    return (replace(_last_attention(shape), window=0),) * facts.n_layers_nextn


def _last_attention(shape: ModelShape) -> Layer:
    return next((layer for layer in reversed(shape.layers) if layer.k_width), Layer())
