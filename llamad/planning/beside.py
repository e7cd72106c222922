"""The bytes of everything beside the main model, on each device and on the host. Pure; prepared once a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llamad.gguf.facts import ModelFacts, Tensor
from llamad.hardware.device import Device
from llamad.planning.choice import Choice
from llamad.planning.drafts import DraftModel, Main, MultiToken, Taken
from llamad.planning.extras import Draft, Extras, Vision
from llamad.planning.plan import BuildGates, Parts
from llamad.planning.vision import Projector, projector_bytes
from llamad.planning.weights import WeightMap

__all__ = ["Beside", "Main"]

_IN_ORDER = frozenset({"CUDA", "ROCm", "CPU", "RPC"})
_F32_TYPE = 0
_F32 = 4


class Beside:
    """What `extras` take beside a model."""

    def __init__(
        self, extras: Extras, main: Main, weights: WeightMap, devices: Sequence[Device], gates: BuildGates
    ) -> None:
        """`weights`: of the main model, for the devices' backend."""
        backend = devices[0].backend if devices else "CPU"
        self._extras = extras
        self._main = main
        self._devices = tuple(devices)
        self._weights = weights
        self._adapters = _adapter_map(extras, main.facts, backend)
        self._draft, self._multi_token = _drafts(extras.draft, main, devices, gates)
        self._projectors: dict[bool, Projector] = {}
        self._backend = backend

    @property
    def vision_place(self) -> int | None:
        """The index of the device that computes pictures; None = the host, or there is no projector."""
        vision = self._extras.vision
        if vision is None or not vision.offload or not self._devices:
            return None
        return next(
            (
                index for index, device in enumerate(self._devices)
                if vision.device.lower() in (device.name.lower(), device.uuid.lower())
            ),
            0,
        )  # fmt: skip

    def on_device(self, parts: Parts, choice: Choice, index: int, start: int, stop: int) -> Parts:
        """The parts of device `index` with blocks `start` to `stop`, and with what is there beside them."""
        taken = self._drafted(choice, index, start, stop)
        vision, growth = 0, taken.growth_bytes
        if self._extras.vision and index == self.vision_place and choice.layers > 0:
            projector = self._projector(self._extras.vision, choice)
            vision = projector.weights_bytes + projector.compute_bytes
            growth += projector.growth_bytes
        adapters = self._adapters.on_device(choice, max(0, start), stop) if self._adapters else 0
        adapters += self._turned_bytes(choice) if adapters else 0
        return replace(
            parts,
            overhead_bytes=parts.overhead_bytes + growth,
            vision_bytes=vision,
            adapters_bytes=adapters,
            draft_bytes=taken.buffers_bytes,
        )

    def on_host(self, parts: Parts, choice: Choice) -> Parts:
        """The host's parts with what is there beside them."""
        taken = (
            self._draft.on_host(choice)
            if self._draft
            else self._multi_token.on_host(choice)
            if self._multi_token
            else Taken()
        )
        vision = 0
        if self._extras.vision:
            projector = self._projector(self._extras.vision, choice)
            on_host = self.vision_place is None or choice.layers <= 0
            vision = projector.total_bytes if on_host else projector.host_bytes
        return replace(
            parts,
            overhead_bytes=parts.overhead_bytes + taken.growth_bytes,
            vision_bytes=vision,
            adapters_bytes=self._adapters.on_host(choice) if self._adapters else 0,
            draft_bytes=taken.buffers_bytes,
        )

    def _drafted(self, choice: Choice, index: int, start: int, stop: int) -> Taken:
        if self._draft:
            return self._draft.on_device(choice, index, start, stop)
        if self._multi_token:
            largest = self._weights.largest_on_host(choice)
            return self._multi_token.on_device(choice, index, stop, largest)
        return Taken()

    def _turned_bytes(self, choice: Choice) -> int:
        """What adapters add to the compute buffer where the backend changes the order of a graph.

        6 MiB became 8 with an adapter on Vulkan, which has gate and up alive before and after it; on CUDA's rules and
        on the CPU nothing was added.
        """
        if not self._extras.adapters or self._backend in _IN_ORDER:
            return 0
        return 2 * _F32 * choice.step_tokens * self._main.shape.widest_activation

    def _projector(self, vision: Vision, choice: Choice) -> Projector:
        flash = choice.flash_attention
        if flash not in self._projectors:
            self._projectors[flash] = projector_bytes(
                vision.file,
                self._backend if vision.offload else "CPU",
                image_max_tokens=vision.image_max_tokens,
                batch_tokens=vision.batch_tokens,
                flash_attention=flash,
            )
        return self._projectors[flash]


def _adapter_map(extras: Extras, facts: ModelFacts, backend: str) -> WeightMap | None:
    """Adapters and control vectors as weights of the layers that they change: they go where those go.

    llama-adapter.cpp: each tensor of an adapter to the buffer of the one that it adapts; one vector of n_embd numbers
    a layer for all control vectors together, none for the first.
    """
    tensors = [tensor for file in extras.adapters for tensor in file.tensors]
    if extras.control_vectors:
        size = _F32 * facts.n_embd
        layers = range(1, facts.n_layers - facts.n_layers_nextn)
        tensors += [Tensor(f"blk.{n}.direction", (facts.n_embd,), _F32_TYPE, size) for n in layers]
    if not tensors:
        return None
    laid_over = replace(facts, tensors=tuple(tensors), tied_embeddings=False)
    return WeightMap(laid_over, backend, mtp_skipped=False)


def _drafts(
    draft: Draft | None, main: Main, devices: Sequence[Device], gates: BuildGates
) -> tuple[DraftModel | None, MultiToken | None]:
    if draft is None or not draft.has_context:
        return None, None
    if draft.multi_token:
        return None, MultiToken(draft, main, devices, gates)
    return DraftModel(draft, main, devices, gates), None
