"""A model as the planner sees it: each layer in the few numbers that decide its buffers. Pure.

What is generic is read here from the header's keys; what an architecture does its own way (which layers see a
window, which are recurrent, who shares whose cache, what its graph keeps alive) is in `architectures`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from llamad.frozen import dataclass
from llamad.planning.graphs import is_replayed

if TYPE_CHECKING:
    from llamad.planning.cache import CacheMap
    from llamad.planning.choice import Choice
    from llamad.planning.edges import Trend
    from llamad.planning.footprint import Computed
    from llamad.planning.graphs.hosted import Kept
    from llamad.planning.graphs.replay import Replay

Proof = Literal["proved", "bounded", "unknown"]
"""How sure the computed bytes are: exact to a MiB; a bound on the safe side; no bound is known."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One block. Widths are elements per token, and of the cache per cell; 0 = it has none."""

    heads: int = 0
    heads_kv: int = 0
    head_k: int = 0
    head_v: int = 0
    k_width: int = 0
    """Elements of a cache row of keys; 0 = no cache, or that of another layer."""
    v_width: int = 0
    """Elements of a cache row of values; 0 beside a `k_width` = they are read from the keys (MLA)."""
    shares: bool = False
    """It reads the cache of an earlier layer."""
    window: int = 0
    """Cells that it sees; 0 = all."""
    conv_state: int = 0
    """f32 elements of recurrent state a sequence: the part that shifts (llama.cpp's n_embd_r)."""
    scan_state: int = 0
    """The part that is summed up (n_embd_s)."""
    ff: int = 0
    """Width of the dense feed-forward part, or of the experts that every token takes."""
    experts_used: int = 0
    ff_expert: int = 0

    @property
    def query_width(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_k

    @property
    def recurrent(self) -> bool:
        """Whether it keeps a state a sequence."""
        return self.conv_state + self.scan_state > 0


@dataclass(frozen=True)
class ModelShape:
    """A model without its multi-token-prediction blocks, which are no part of the main graph.

    `numbers` are the architecture's own scalar keys of the header without its prefix (`ssm.inner_size`, ...).
    """

    architecture: str
    embd: int
    vocab: int
    layers: tuple[Layer, ...]
    peaks: Peaks
    proof: Proof
    doubts: tuple[str, ...]
    """Why the figures are not proved, in words."""
    numbers: Mapping[str, int]
    expert_matrices: tuple[int, int] = (0, 0)
    """Bytes of the largest matrices of experts of a layer: up (or gate), and down."""
    looked_up: int = 0
    """Elements per token that the host looks up beside the embedding: an input for each layer, positions."""
    pipeline_copies: int = 0
    """Copies of these that each device of a pipeline keeps, at most."""
    kept_copies: int = 0
    """Matrices of the host whose copies lie beside an attention's scratch; 0 = one, where that was before."""

    @cached_property
    def replay(self) -> Replay | None:
        """The graph's allocations, where they are known for the architecture."""
        if not is_replayed(self.architecture, self.numbers):
            return None
        from llamad.planning.graphs.replay import Replay

        return Replay(self)

    @cached_property
    def kinds(self) -> tuple[Layer, ...]:
        """The layers that differ, in the order in which they come."""
        return tuple(dict.fromkeys(self.layers))

    @cached_property
    def kind_of(self) -> tuple[int, ...]:
        """The place in `kinds` of each layer."""
        places = {layer: index for index, layer in enumerate(self.kinds)}
        return tuple(places[layer] for layer in self.layers)

    @cached_property
    def owners(self) -> Mapping[int, int]:
        """For each layer that reads another's cache: the last one of its kind that has one."""
        owners: dict[int, int] = {}
        last: dict[bool, int] = {}
        for index, layer in enumerate(self.layers):
            if layer.shares:
                owners[index] = last.get(bool(layer.window), 0)
            elif layer.k_width:
                last[bool(layer.window)] = index
        return owners

    @cached_property
    def rotated_heads(self) -> tuple[int, ...]:
        """The size of keys of the last layer with a window, and of the last one without."""
        return tuple({bool(layer.window): layer.head_k for layer in self.layers}.values())

    @cached_property
    def cache_maps(self) -> dict[int, CacheMap]:
        """The caches of its layers, by the blocks of the file: the same for each set of devices that is tried."""
        return {}

    @cached_property
    def caches(self) -> bool:
        """Whether it keeps a cache or a state at all; an encoder sees its micro-batch only."""
        return any(layer.k_width or layer.recurrent for layer in self.kinds)

    @cached_property
    def computed(self) -> dict[Hashable, Computed]:
        """Buffers that were computed already: the same for each set of devices that is tried."""
        return {}

    @cached_property
    def trends(self) -> dict[Hashable, Trend]:
        """What buffers of a kind were, to guess at others."""
        return {}

    @cached_property
    def kept(self) -> dict[str, tuple[Kept, ...]]:
        """The layers as the host would keep them, for each backend that was asked about."""
        return {}

    @cached_property
    def has_state(self) -> bool:
        """Whether more slots cost memory although they share one cache."""
        return any(layer.recurrent or layer.window for layer in self.kinds)

    @cached_property
    def widest_activation(self) -> int:
        """The widest row that is multiplied with weights."""
        widths = (max(k.ff, k.experts_used * max(self.embd, k.ff_expert), k.query_width) for k in self.kinds)
        return max(widths, default=self.embd)


Peaks = Callable[[ModelShape, Layer, "Choice", int, int], Iterable[int]]
"""The moments of a layer's graph at which most is alive, with flash attention: bytes of each, without the inputs.

Called as `peaks(shape, layer, choice, extra, scratch_bytes)`. `extra`: elements per token of input embeddings that
stay alive beside the layer (the graph may not need to add them at each moment). `scratch_bytes`: f16 copies of this
layer's cache, alive during its attention. Inputs (masks, indexes, rotations) and logits are counted elsewhere.
"""
