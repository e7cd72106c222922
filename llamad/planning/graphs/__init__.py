"""What the computation of a model's layers keeps alive, and how high its buffer gets. Pure.

`replay` has the graphs whose allocations are known one by one (`is_replayed`): exact. The other modules offer functions
of the type `layers.Peaks`: the fullest moments of a layer. Activations are f32; u = tokens of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Container

REPLAYED = frozenset({
    "deepseek2", "dots1", "ernie4_5-moe", "falcon-h1", "glm4moe", "granitehybrid", "granitemoe", "hunyuan-moe", "jamba",
    "kimi-linear", "lfm2", "lfm2moe", "llama", "llama4", "mamba", "mamba2", "nemotron_h", "qwen2moe", "qwen35",
    "qwen35moe", "qwen3moe", "qwen3next", "rwkv7",
})  # fmt: skip
"""Architectures that `replay` has a program for: known without loading it."""
_NEEDED_KEYS = {
    "deepseek2": "attention.key_length_mla",
    "kimi-linear": "attention.key_length_mla",
    "llama": "expert_count",
}


def is_replayed(architecture: str, keys: Container[str]) -> bool:
    """Whether `replay` can tell the graph of a model; `keys` are those of its header without their prefix.

    Not files of latent attention from before 2025, which lack its keys and are computed with full heads; nor a plain
    llama, which needs no replay.
    """
    needed = _NEEDED_KEYS.get(architecture)
    return architecture in REPLAYED and (needed is None or needed in keys)
