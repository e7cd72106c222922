"""Where each tensor of a model goes and how many bytes it takes there. Pure.

From llama.cpp's llama-model.cpp: tensors of the input stay on the CPU, those of the output go where the last
layer goes, and of the blocks the CPU keeps the first ones. An embedding that is also the output matrix is loaded
twice when the output is on a device. `--n-cpu-moe` and `--n-cpu-ffn` keep single tensors of a block on the CPU.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate

from llamad.frozen import dataclass
from llamad.gguf.facts import ModelFacts, Tensor
from llamad.planning.backends import Backend, backend_of
from llamad.planning.choice import Choice
from llamad.units import pad

_BLOCK = re.compile(r"blk\.(\d+)\.")
_INPUT = frozenset({"token_embd", "position_embd", "token_types", "token_embd_norm", "per_layer_token_embd"})
# Named without a block, placed as the first one (llama-arch.cpp: LLM_TENSOR_LAYER_REPEATING).
_OF_FIRST_BLOCK = ("per_layer_model_proj.", "per_layer_proj_norm.")
# common.h: what --n-cpu-moe and --n-cpu-ffn match.
_EXPERT = re.compile(r"\.ffn_(up|down|gate|gate_up)_(ch|)exps")
_DENSE_FFN = re.compile(r"\.ffn_(up|down|gate)\.")
# Types that are not quantised have no row padding: f32, f16, i8 to i64, f64, bf16.
_PLAIN_TYPES = frozenset({0, 1, 24, 25, 26, 27, 28, 30})


@dataclass(frozen=True)
class BlockSums:
    """Sums over the first n blocks, for n from 0 to all: as a device holds them, and as the host does.

    `largest` is the largest matrix among the first n blocks.
    """

    device: tuple[int, ...]
    host: tuple[int, ...]
    largest: tuple[int, ...]

    def on_host(self, start: int, stop: int) -> int:
        """Bytes of the blocks from `start` up to but without `stop` on the host."""
        return self.host[stop] - self.host[start] if stop > start else 0


class WeightMap:
    """Bytes of a model's weights for any placement, prepared once per backend. About a millisecond."""

    def __init__(self, facts: ModelFacts, backend: str, *, mtp_skipped: bool = True) -> None:
        rules = backend_of(backend)
        loaded = facts.n_layers - facts.n_layers_nextn if mtp_skipped else facts.n_layers
        loaded = min(loaded, facts.n_layers)
        ends = _Ends()
        everything, experts, dense = (_Sums(facts.n_layers) for _ in range(3))
        groups = (everything,), (everything, experts), (everything, dense)
        # Layers repeat: so do names in a block, and types with dimensions.
        kinds: dict[str, tuple[_Sums, ...]] = {}
        sizes: dict[tuple[tuple[int, ...], int, int], _Sizes] = {}
        match = _BLOCK.match
        for tensor in facts.tensors:
            block = match(tensor.name)
            layer = int(block[1]) if block else 0
            if not block and not tensor.name.startswith(_OF_FIRST_BLOCK):
                ends.add(tensor, rules)
            elif layer < loaded:
                role = tensor.name[block.end() - 1 :] if block else ""
                if (into := kinds.get(role)) is None:
                    into = kinds[role] = groups[_group(role)]
                key = (tensor.dims, tensor.type_id, tensor.size_bytes)
                if (size := sizes.get(key)) is None:
                    size = sizes[key] = _sizes_of(tensor, rules)
                for sums in into:
                    sums.add(layer, size)
        self.n_layers = facts.n_layers
        self._device_sums: dict[tuple[int, int], tuple[int, ...]] = {}
        self.blocks = everything.sums()
        self.experts = experts.sums()
        self.dense = dense.sums()
        self.input_bytes = ends.input_bytes
        tied_bytes = ends.embedding_device_bytes if facts.tied_embeddings else 0
        self.output_device_bytes = ends.output_device_bytes + tied_bytes
        self.output_host_bytes = ends.output_host_bytes

    @property
    def has_experts(self) -> bool:
        """Whether any expert could stay on the host."""
        return self.experts.device[-1] > 0

    def host_layers(self, layers: int) -> int:
        """How many blocks stay on the host with `layers` on the devices (the output counts as one of these)."""
        return max(0, min(self.n_layers, self.n_layers + 1 - layers))

    def on_device(self, choice: Choice, start: int, stop: int) -> int:
        """Bytes of one device's model buffer: blocks from `start` up to `stop`; block n_layers is the output."""
        sums = self.device_sums(choice)
        return sums[stop] - sums[start] if stop > start else 0

    def device_sums(self, choice: Choice) -> Sequence[int]:
        """Bytes of the first n blocks on devices, less what stays on the host; block n_layers is the output."""
        apart = choice.host_experts, choice.host_ffn
        if apart not in self._device_sums:
            experts, dense = (min(count, self.n_layers) for count in apart)
            sums = [
                size - self.experts.device[min(index, experts)] - self.dense.device[min(index, dense)]
                for index, size in enumerate(self.blocks.device)
            ]
            self._device_sums[apart] = (*sums, sums[-1] + self.output_device_bytes)
        return self._device_sums[apart]

    def on_host(self, choice: Choice) -> int:
        """Bytes of the host's model buffers, repacked copies not counted twice."""
        kept = self.host_layers(choice.layers)
        size = self.input_bytes + self.blocks.host[kept]
        size += self.experts.on_host(kept, choice.host_experts) + self.dense.on_host(kept, choice.host_ffn)
        return size + (self.output_host_bytes if choice.layers <= 0 else 0)

    def largest_on_host(self, choice: Choice) -> int:
        """Bytes of the largest matrix that a device would have to copy to compute with it; 0 if none stays behind."""
        kept = self.host_layers(choice.layers)
        return max(
            self.blocks.largest[kept],
            self.experts.largest[min(choice.host_experts, self.n_layers)],
            self.dense.largest[min(choice.host_ffn, self.n_layers)],
        )


def copied_matrices(facts: ModelFacts, backend: str) -> tuple[dict[str, int], ...]:
    """Bytes that a device takes for a copy of each block's tensors, by their names in the block without ".weight"."""
    rules = backend_of(backend)
    found: tuple[dict[str, int], ...] = tuple({} for _ in range(facts.n_layers))
    shared: dict[str, int] = {}
    for tensor in facts.tensors:
        block = _BLOCK.match(tensor.name)
        if block and int(block[1]) < facts.n_layers:
            role = tensor.name[block.end() :].removesuffix(".weight")
            found[int(block[1])][role] = device_bytes(tensor, rules)
        elif tensor.name.startswith("rope_"):
            shared["rope_freqs"] = device_bytes(tensor, rules)
    for roles in found:
        roles.update(shared)
    return found


def device_bytes(tensor: Tensor, rules: Backend) -> int:
    """What a tensor takes in a device's buffer: quantised rows filled up, the whole aligned."""
    size = tensor.size_bytes
    over = tensor.dims[0] % rules.row_padding if rules.row_padding else 0
    if over and tensor.type_id not in _PLAIN_TYPES:
        elements = 1
        for dim in tensor.dims:
            elements *= dim
        size += tensor.size_bytes * (rules.row_padding - over) // elements
    return pad(size, rules.alignment_bytes)


def _host_bytes(tensor: Tensor) -> int:
    return pad(tensor.size_bytes, backend_of("CPU").alignment_bytes)


def _group(role: str) -> int:
    """Of a tensor by its name in the block: 1 = experts, 2 = a dense feed-forward part, 0 = neither."""
    if ".ffn_" not in role:
        return 0
    if _EXPERT.search(role):
        return 1
    return 2 if _DENSE_FFN.search(role) else 0


_Sizes = tuple[int, int, int]
"""Bytes of one tensor: on a device, on the host, and (0 if it is no matrix) in the file."""


def _sizes_of(tensor: Tensor, rules: Backend) -> _Sizes:
    matrix = tensor.size_bytes if len(tensor.dims) > 1 else 0
    return device_bytes(tensor, rules), _host_bytes(tensor), matrix


class _Sums:
    """Grows the sums of one kind of tensor."""

    def __init__(self, n_layers: int) -> None:
        self._device, self._host, self._largest = ([0] * n_layers for _ in range(3))

    def add(self, layer: int, size: _Sizes) -> None:
        device, host, matrix = size
        self._device[layer] += device
        self._host[layer] += host
        if matrix > self._largest[layer]:
            self._largest[layer] = matrix

    def sums(self) -> BlockSums:
        return BlockSums(
            tuple(accumulate(self._device, initial=0)),
            tuple(accumulate(self._host, initial=0)),
            tuple(accumulate(self._largest, max, initial=0)),
        )


class _Ends:
    """Sums over the tensors before and after the blocks."""

    def __init__(self) -> None:
        self.input_bytes = 0
        self.embedding_device_bytes = 0
        self.output_device_bytes = 0
        self.output_host_bytes = 0

    def add(self, tensor: Tensor, rules: Backend) -> None:
        stem = tensor.name.partition(".")[0]
        if stem in _INPUT:
            self.input_bytes += _host_bytes(tensor)
            if stem == "token_embd":
                self.embedding_device_bytes += device_bytes(tensor, rules)
            return
        # rope_freqs and the like are of the blocks, but one copy a device: a few hundred bytes, counted here.
        self.output_device_bytes += device_bytes(tensor, rules)
        self.output_host_bytes += _host_bytes(tensor)
