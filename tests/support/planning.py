"""Model facts and machines for tests of the planner, without a file and without hardware."""

from __future__ import annotations

from llamad.gguf.facts import ModelFacts, Tensor
from llamad.hardware.device import Device, HostMemory
from llamad.units import GIB
from tests.support.shapes import HollowShape

HOST = HostMemory(total_bytes=64 * GIB, available_bytes=56 * GIB)


def facts_of(shape: HollowShape, *, ctx_train_tokens: int | None = None) -> ModelFacts:
    """The facts of the hollow file that `build_hollow` would write for this shape."""
    tensors = tuple(Tensor(t.name, t.dims, int(t.type), t.size_bytes) for t in shape.tensors())
    return ModelFacts(
        path=f"/models/{shape.title}.gguf",
        shards=(f"/models/{shape.title}.gguf",),
        file_bytes=sum(t.size_bytes for t in tensors),
        fingerprint="0" * 16,
        architecture=shape.arch,
        name=shape.title,
        file_type="Q4_K_M",
        n_layers=shape.layers,
        n_layers_nextn=0,
        n_embd=shape.embd,
        n_vocab=shape.vocab,
        n_ctx_train=ctx_train_tokens or shape.ctx_train_tokens,
        n_head=(shape.heads,) * shape.layers,
        n_head_kv=(shape.kv_heads,) * shape.layers,
        head_k=shape.head_dim,
        head_v=shape.head_dim,
        n_ff=(shape.ff,) * shape.layers,
        n_expert=0,
        n_expert_used=0,
        n_ff_expert=0,
        sliding_window=0,
        tied_embeddings=shape.tied,
        has_chat_template=False,
        tensors=tensors,
        hparams={f"{shape.arch}.block_count": shape.layers},
    )


def card(name: str = "CUDA0", free_gib: float = 15.6, *, total_gib: float | None = None, **more: object) -> Device:
    """A device with `free_gib` free of `total_gib` (as much, unless told)."""
    total = free_gib if total_gib is None else total_gib
    return Device(name, int(total * GIB), int(free_gib * GIB), **more)  # type: ignore[arg-type]
