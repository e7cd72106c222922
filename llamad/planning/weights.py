"""Where each tensor of a model goes and how many bytes it takes there. Pure.

From llama.cpp's llama-model.cpp: tensors of the input stay on the CPU, those of the output go where the last
layer goes, and of the blocks the CPU keeps the first ones. An embedding that is also the output matrix is loaded
twice when the output is on a device.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import accumulate

from llamad.gguf.facts import ModelFacts, Tensor
from llamad.planning.backends import Backend, backend_of
from llamad.units import pad

_BLOCK = re.compile(r"blk\.(\d+)\.")
_INPUT = frozenset({"token_embd", "position_embd", "token_types", "token_embd_norm", "per_layer_token_embd"})
# Types that are not quantised have no row padding: f32, f16, i8 to i64, f64, bf16.
_PLAIN_TYPES = frozenset({0, 1, 24, 25, 26, 27, 28, 30})


@dataclass(frozen=True)
class WeightMap:
    """Bytes of a model's weights for any number of layers on one device, prepared once per backend.

    `device_blocks[n]` and `host_blocks[n]` are sums over the first n blocks: as a device holds them, and as the
    host does. `host_largest[n]` is the largest matrix among the first n blocks.
    """

    n_layers: int
    input_bytes: int
    output_device_bytes: int
    output_host_bytes: int
    device_blocks: tuple[int, ...]
    host_blocks: tuple[int, ...]
    host_largest: tuple[int, ...]

    def host_layers(self, layers: int) -> int:
        """How many blocks stay on the host with `layers` on the device (the output counts as one of these)."""
        return max(0, min(self.n_layers, self.n_layers + 1 - layers))

    def on_device(self, layers: int) -> int:
        """Bytes of the device's model buffer."""
        if layers <= 0:
            return 0
        kept = self.host_layers(layers)
        return self.output_device_bytes + self.device_blocks[-1] - self.device_blocks[kept]

    def on_host(self, layers: int) -> int:
        """Bytes of the host's model buffers, repacked copies not counted twice."""
        output = self.output_host_bytes if layers <= 0 else 0
        return self.input_bytes + output + self.host_blocks[self.host_layers(layers)]

    def largest_on_host(self, layers: int) -> int:
        """Bytes of the largest matrix that a device would have to copy to compute with it; 0 if none stays behind."""
        return self.host_largest[self.host_layers(layers)]


def weight_map(facts: ModelFacts, backend: str, *, mtp_skipped: bool = True) -> WeightMap:
    """Prepare the sums for one model on one backend (`CUDA`, `Vulkan`, ...). About a millisecond."""
    rules = backend_of(backend)
    loaded = facts.n_layers - facts.n_layers_nextn if mtp_skipped else facts.n_layers
    device, host, largest = ([0] * facts.n_layers for _ in range(3))
    totals = _Ends()
    for tensor in facts.tensors:
        block = _BLOCK.match(tensor.name)
        if not block:
            totals.add(tensor, rules)
        elif (layer := int(block[1])) < min(loaded, facts.n_layers):
            device[layer] += device_bytes(tensor, rules)
            host[layer] += _host_bytes(tensor)
            if len(tensor.dims) > 1:
                largest[layer] = max(largest[layer], tensor.size_bytes)
    return WeightMap(
        facts.n_layers,
        totals.input_bytes,
        totals.output_device_bytes + (totals.embedding_device_bytes if facts.tied_embeddings else 0),
        totals.output_host_bytes,
        tuple(accumulate(device, initial=0)),
        tuple(accumulate(host, initial=0)),
        tuple(accumulate(largest, max, initial=0)),
    )


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
