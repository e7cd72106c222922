"""Bytes of the KV cache, per layer and cell. Pure. From llama.cpp's llama-kv-cache.cpp."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from llamad.gguf.facts import ModelFacts
from llamad.planning.choice import Choice

# type -> (elements in a block, bytes in a block)
_TYPES = {
    "f32": (1, 4),
    "f16": (1, 2),
    "bf16": (1, 2),
    "q8_0": (32, 34),
    "q5_1": (32, 24),
    "q5_0": (32, 22),
    "q4_1": (32, 20),
    "q4_0": (32, 18),
}


def is_quantised(cache_type: str) -> bool:
    """Whether a cache type is made of blocks, which needs head sizes that are multiples of the block."""
    return _TYPES[cache_type][0] > 1


def row_bytes(cache_type: str, elements: int) -> int:
    """Bytes of one cell of `elements` values. Raises KeyError for a type that llama-server does not have."""
    block, size = _TYPES[cache_type]
    return -(-elements // block) * size


@dataclass(frozen=True)
class CacheMap:
    """Widths of each layer's cache, prepared once. A layer without a cache of its own has width 0."""

    k_widths: tuple[int, ...]
    v_widths: tuple[int, ...]

    def cell_sums(self, type_k: str, type_v: str, *, flash_attention: bool) -> tuple[int, ...]:
        """Bytes of one cell summed over the first n layers, for n from 0 to all.

        Without flash attention V is stored transposed, every layer as wide as the widest.
        """
        widest = max(self.v_widths, default=0)
        v_widths = (
            self.v_widths if flash_attention else tuple(widest if width else 0 for width in self.v_widths)
        )
        rows = (
            row_bytes(type_k, k) + row_bytes(type_v, v) for k, v in zip(self.k_widths, v_widths, strict=True)
        )
        return tuple(accumulate(rows, initial=0))


def cache_map(facts: ModelFacts) -> CacheMap:
    """Widths from the header: heads per layer (scalar or array) by head size; MTP blocks have none."""
    owners = facts.n_layers - facts.n_layers_nextn
    heads = [facts.n_head_kv[layer] if layer < owners else 0 for layer in range(facts.n_layers)]
    return CacheMap(tuple(h * facts.head_k for h in heads), tuple(h * facts.head_v for h in heads))


def cache_bytes(cells_sums: tuple[int, ...], choice: Choice, host_layers: int) -> tuple[int, int]:
    """Bytes of the cache on the device and on the host, with the first `host_layers` layers on the host."""
    host = cells_sums[host_layers]
    return (cells_sums[-1] - host) * choice.cells, host * choice.cells
