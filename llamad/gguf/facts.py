"""What the planner needs to know of a model file: shapes and sizes, nothing else. Pure data."""

from __future__ import annotations

from llamad.frozen import dataclass


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of the file. `dims[0]` is the row (fastest) dimension; `size_bytes` is unpadded."""

    name: str
    dims: tuple[int, ...]
    type_id: int
    size_bytes: int


@dataclass(frozen=True)
class ModelFacts:
    """Facts of one model, from all its shards.

    Per-layer tuples have `n_layers` entries. `n_layers` counts every block of the file
    (`ARCH.block_count`), the `n_layers_nextn` last of which are multi-token-prediction blocks.
    """

    path: str
    shards: tuple[str, ...]
    file_bytes: int
    fingerprint: str
    """Hash of headers, sizes and tensor table: names the weights' layout, cheap to compute."""
    architecture: str
    name: str
    file_type: str
    """Quantisation in words as far as known: `Q4_K_M`, or the commonest tensor type."""
    n_layers: int
    n_layers_nextn: int
    n_embd: int
    n_vocab: int
    n_ctx_train: int
    n_head: tuple[int, ...]
    n_head_kv: tuple[int, ...]
    head_k: int
    head_v: int
    n_ff: tuple[int, ...]
    n_expert: int
    n_expert_used: int
    n_ff_expert: int
    sliding_window: int
    tied_embeddings: bool
    has_chat_template: bool
    tensors: tuple[Tensor, ...]
    hparams: dict[str, object]
    """Every scalar and short array of the header under its full key, for architectures' own formulas."""
