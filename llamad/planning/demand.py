"""What a choice needs, on the device and on the host, part by part. Pure; prepared once, asked many times."""

from __future__ import annotations

from dataclasses import dataclass, replace

from llamad.gguf.facts import ModelFacts
from llamad.hardware.device import Device
from llamad.planning import overhead
from llamad.planning.backends import backend_of
from llamad.planning.cache import CacheMap, cache_bytes, cache_map
from llamad.planning.choice import Choice
from llamad.planning.compute import (
    cpu_compute_bytes,
    device_compute_bytes,
    host_compute_bytes,
    output_bytes,
)
from llamad.planning.plan import BuildGates, Parts
from llamad.planning.shape import Shape, shape_of
from llamad.planning.weights import WeightMap, weight_map


@dataclass(frozen=True)
class Need:
    """Bytes that a choice takes. `device` is all zero for a run on the CPU alone."""

    device: Parts
    host: Parts


class Demand:
    """The bytes of one model on one device, or on the CPU alone (`device` None)."""

    def __init__(
        self,
        facts: ModelFacts,
        device: Device | None,
        gates: BuildGates,
        weights: WeightMap | None = None,
        *,
        vram_margin: str = "auto",
        measured_overhead_bytes: int | None = None,
        correction_bytes: int = 0,
        host_correction_bytes: int = 0,
    ) -> None:
        """`weights`: the map for the device's backend, if it was prepared before.

        `measured_overhead_bytes`: what a former load took outside its buffers; replaces context and growth.

        `correction_bytes`, `host_correction_bytes`: how far the computed buffers of the device and of the host were
        from a better source; added to compute.
        """
        backend = device.backend if device else "CPU"
        self._device = device
        self._gates = gates
        self._rules = backend_of(backend)
        self._vram_margin = vram_margin
        self._measured = measured_overhead_bytes
        self._correction = correction_bytes
        self._host_correction = host_correction_bytes
        self.shape: Shape = shape_of(facts)
        self.weights = weights or weight_map(facts, backend, mtp_skipped=gates.mtp_skipped)
        self._cache: CacheMap = cache_map(facts)
        self._unpacked = overhead.unpacked_bytes(facts) if self._rules.cache_scratch else 0
        self._cells: dict[tuple[str, str, bool], tuple[int, ...]] = {}

    def need(self, choice: Choice) -> Need:
        """All parts of a choice, margins included."""
        if self._device is None or choice.layers <= 0:
            return self._cpu_need(choice)
        kept = self.weights.host_layers(choice.layers)
        context_device, context_host = cache_bytes(self._cell_sums(choice), choice, kept)
        device = Parts(
            weights_bytes=self.weights.on_device(choice.layers),
            context_bytes=context_device,
            compute_bytes=self._device_compute(choice),
            overhead_bytes=self._device_overhead(choice, self._device),
        )
        host = Parts(
            weights_bytes=self.weights.on_host(choice.layers),
            context_bytes=context_host,
            compute_bytes=max(0, self._host_compute(choice, kept) + self._host_correction),
            overhead_bytes=self._rules.process_bytes + output_bytes(self.shape, choice, self._gates),
        )
        return Need(self._with_margin(device, self._device), self._with_margin(host, None))

    def _cpu_need(self, choice: Choice) -> Need:
        computed = cpu_compute_bytes(self.shape, choice, self._gates)
        host = Parts(
            weights_bytes=self.weights.on_host(0),
            context_bytes=self._cell_sums(choice)[-1] * choice.cells,
            compute_bytes=max(0, computed + self._host_correction),
            overhead_bytes=backend_of("CPU").process_bytes + output_bytes(self.shape, choice, self._gates),
        )
        return Need(Parts(), self._with_margin(host, None))

    def _device_compute(self, choice: Choice) -> int:
        copied = self.weights.largest_on_host(choice.layers) if self._rules.copies_weights else 0
        computed = device_compute_bytes(
            self.shape,
            choice,
            self._gates,
            scratch=self._rules.cache_scratch,
            partial=self.weights.host_layers(choice.layers) > 0,
            copied_bytes=copied,
        )
        return max(0, computed + self._correction)

    def _host_compute(self, choice: Choice, kept_layers: int) -> int:
        """With op offload the device computes the host's layers too, where the batch is large; else the host must."""
        if kept_layers and not self._rules.copies_weights:
            return cpu_compute_bytes(self.shape, choice, self._gates)
        return host_compute_bytes(self.shape, choice, self._gates)

    def _device_overhead(self, choice: Choice, device: Device) -> int:
        if self._measured is not None:
            return self._measured
        growth = overhead.growth_bytes(device, self.shape, choice, self._gates, self._unpacked)
        return overhead.context_bytes(device) + growth

    def _with_margin(self, parts: Parts, device: Device | None) -> Parts:
        written = self._vram_margin if device else "auto"
        margin = overhead.margin_bytes(
            written, device, parts.buffers_bytes, measured=device is not None and self._measured is not None
        )
        return replace(parts, margin_bytes=margin)

    def _cell_sums(self, choice: Choice) -> tuple[int, ...]:
        key = (choice.type_k, choice.type_v, choice.flash_attention)
        if key not in self._cells:
            self._cells[key] = self._cache.cell_sums(
                choice.type_k, choice.type_v, flash_attention=choice.flash_attention
            )
        return self._cells[key]
