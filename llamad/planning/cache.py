"""Bytes of the KV cache and of recurrent states, per layer. Pure.

From llama.cpp's llama-kv-cache.cpp, llama-kv-cache-iswa.cpp and llama-memory-recurrent.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from llamad.planning.choice import Choice
from llamad.planning.layers import Layer, ModelShape

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
_STATE_ELEMENT_BYTES = 4  # recurrent states are f32, whatever the cache's type


def is_quantised(cache_type: str) -> bool:
    """Whether a cache type is made of blocks, which needs head sizes that are multiples of the block."""
    return _TYPES[cache_type][0] > 1


def row_bytes(cache_type: str, elements: int) -> int:
    """Bytes of one cell of `elements` values. Raises KeyError for a type that llama-server does not have."""
    block, size = _TYPES[cache_type]
    return -(-elements // block) * size


class CacheMap:
    """The caches of a model's layers, for any choice and any run of layers. Prepared once."""

    def __init__(self, shape: ModelShape, blocks: int) -> None:
        """`blocks`: all blocks of the file; those after the shape's layers have no cache."""
        self._layers = (*shape.layers, *(Layer() for _ in range(blocks - len(shape.layers))))
        self._windows = tuple(dict.fromkeys(layer.window for layer in self._layers if layer.k_width))
        states = (layer.conv_state + layer.scan_state for layer in self._layers)
        self._states = tuple(accumulate((_STATE_ELEMENT_BYTES * state for state in states), initial=0))
        self._widest_v = max((layer.v_width for layer in self._layers), default=0)
        self._rows: dict[tuple[str, str, bool], tuple[tuple[int, tuple[int, ...]], ...]] = {}

    def bytes_between(self, choice: Choice, start: int, stop: int) -> int:
        """Caches and states of the layers from `start` up to but without `stop`."""
        return sum((sums[stop] - sums[start]) * count for sums, count in self.costs(choice))

    def costs(self, choice: Choice) -> tuple[tuple[Sequence[int], int], ...]:
        """Bytes of one state or cell, summed over the first n layers, and how many the choice has of them."""
        rows = self._row_sums(choice)
        cells = [(sums, choice.window_cells(window) * choice.streams) for window, sums in rows]
        if self._states[-1]:
            cells.append((self._states, choice.slots * (1 + choice.rollback)))
        return tuple(cells)

    def checkpoint_bytes(self, choice: Choice) -> int:
        """What llama-server keeps in host memory a checkpoint of one slot: states, and caches with a window."""
        size = self._states[-1]
        for window, sums in self._row_sums(choice):
            size += sums[-1] * min(window, choice.stream_cells)
        return size

    def _row_sums(self, choice: Choice) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """Bytes of one cell, summed over the first n layers with the same window."""
        key = (choice.type_k, choice.type_v, choice.flash_attention)
        if key not in self._rows:
            rows = [(layer.window, self._row(layer, key)) for layer in self._layers]
            self._rows[key] = tuple(
                (window, tuple(accumulate((row if its == window else 0 for its, row in rows), initial=0)))
                for window in self._windows
            )
        return self._rows[key]

    def _row(self, layer: Layer, key: tuple[str, str, bool]) -> int:
        """Without flash attention V is stored transposed, every layer as wide as the widest."""
        if not layer.k_width:
            return 0
        type_k, type_v, flash_attention = key
        v_width = layer.v_width if flash_attention or not layer.v_width else self._widest_v
        return row_bytes(type_k, layer.k_width) + row_bytes(type_v, v_width)
