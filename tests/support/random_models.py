"""Small models of any architecture with random weights, which the real llama-server loads, computes and serves.

`build_random` takes any shape of the zoo, its dimensions replaced by small ones; `SMALL` has one for each kind of
layer that llamad plans. Their answers are gibberish; their buffers are where and as large as a real model's would be.

    python3 -m tests.support.random_models gemma3 /tmp/gemma3.gguf
"""

from __future__ import annotations

import argparse
import random
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from tests.support.gguf_writer import GgmlType, Tensor, i32s, string, u32, write_gguf
from tests.support.models import CHATML, TINY_VOCAB, byte_tokenizer
from tests.support.shapes import QWEN3_8B, HollowShape
from tests.support.zoo_dense import ZOO as DENSE
from tests.support.zoo_dense import ZooShape
from tests.support.zoo_mixed import ZOO as MIXED
from tests.support.zoo_mixed import MixedShape
from tests.support.zoo_parts import Attention, DeltaNet, Dense, Experts, Latent, Mamba, ShortConv

Shape = HollowShape | ZooShape | MixedShape

# A prime number of values, so that no two rows of a tensor and no two tensors begin alike.
_NOISE_VALUES = 65521
# With rows of a few hundred elements, products stay near the size of what is multiplied: no layer overflows f16.
_DEVIATION = 0.08
# Vectors that are not factors of a norm. A decay of a state-space layer must be negative, or its state grows.
_CONSTANTS = ((".bias", 0.0), ("attn_sinks.weight", 0.0), ("ssm_a", -1.0))


def build_random(path: Path, shape: Shape, *, ctx_train_tokens: int | None = None, seed: int = 1) -> Path:
    """Write `shape` with random weights, in f16 where it has matrices, and the vocabulary of bytes. Returns `path`."""
    shape = replace(shape, vocab=TINY_VOCAB)
    metadata = shape.metadata(ctx_train_tokens=ctx_train_tokens)
    metadata |= {
        "general.file_type": u32(1),  # MOSTLY_F16
        f"{shape.arch}.vocab_size": u32(TINY_VOCAB),
        "tokenizer.chat_template": string(CHATML),
        **byte_tokenizer(),
    }
    write_gguf(path, metadata, [_unpacked(tensor) for tensor in shape.tensors()], _Noise(seed).write)
    return path


def _unpacked(tensor: Tensor) -> Tensor:
    return tensor if tensor.type is GgmlType.F32 else replace(tensor, type=GgmlType.F16)


class _Noise:
    """Random weights: one block of noise, tiled over every tensor from a place of its own."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        values = [self._random.gauss(0.0, _DEVIATION) for _ in range(_NOISE_VALUES)]
        self._blocks = {
            GgmlType.F16: struct.pack(f"<{_NOISE_VALUES}e", *values),
            GgmlType.F32: struct.pack(f"<{_NOISE_VALUES}f", *values),
        }

    def write(self, file: BinaryIO, tensor: Tensor) -> None:
        """Write the data of one tensor: vectors are constant, matrices noise."""
        constant = next((value for end, value in _CONSTANTS if tensor.name.endswith(end)), None)
        if constant is None and len(tensor.dims) == 1:
            constant = 1.0
        if constant is not None:
            file.write(struct.pack("<f", constant) * tensor.elements)
            return
        block = self._blocks[tensor.type]
        start = self._random.randrange(_NOISE_VALUES) * (tensor.size_bytes // tensor.elements)
        copies = -(-(start + tensor.size_bytes) // len(block))
        file.write((block * copies)[start : start + tensor.size_bytes])


_ATTENTION = Attention(4, 2, 64, qk_norm=True)
_EXPERTS = Experts(8, 2, 128)
_LATENT = Latent(4, 128, 64, 32, 64, q_rank=96)


def _dense(name: str, layers: int, **numbers: object) -> ZooShape:
    """A shape of the dense zoo in small: 4 heads, 2 of them of keys."""
    small = {"layers": layers, "embd": 256, "ff": 512, "heads": 4, "kv_heads": 2, "head_dim": 64}
    return replace(DENSE[name], **(small | numbers))  # type: ignore[arg-type]


def _mixed(name: str, blocks: Sequence[tuple[object, ...]], **numbers: object) -> MixedShape:
    return replace(MIXED[name], embd=256, blocks=tuple(blocks), **numbers)  # type: ignore[arg-type]


def _turns(count: int, period: int, recurrent: object, attention: object, ffn: object) -> list[tuple[object, ...]]:
    return [(recurrent if (n + 1) % period else attention, ffn) for n in range(count)]


SMALL: Mapping[str, Shape] = {
    "llama": _dense("mistral-7b", 8),
    "qwen3": replace(QWEN3_8B, layers=8, embd=256, ff=512, heads=4, kv_heads=2, head_dim=64),
    "phi3": _dense("phi35-mini", 6, kv_heads=4),
    "gemma3": _dense("gemma3-1b", 12, keys={"attention.sliding_window": 256}),
    "gpt-oss": _dense(
        "gpt-oss-20b", 6, experts=8, ff_expert=128, keys={"attention.sliding_window": 128, "expert_used_count": 2}
    ),
    "qwen3moe": _mixed("qwen3-30b-a3b", [(_ATTENTION, _EXPERTS)] * 6, extra={"feed_forward_length": u32(512)}),
    "deepseek2": _mixed(
        "deepseek-v2-lite",
        [(_LATENT, Dense(512))] + [(_LATENT, Experts(8, 2, 128, 256, 2))] * 5,
    ),
    "qwen35": _mixed(
        "qwen35-9b",
        _turns(8, 4, DeltaNet(64, 2, 4), Attention(4, 2, 64, qk_norm=True, gated=True), Dense(512)),
        extra={"rope.dimension_sections": i32s([11, 11, 10, 0]), "rope.dimension_count": u32(64)},
    ),
    "granitehybrid": _mixed("granite-40-h-micro", _turns(8, 4, Mamba(512, 128, 8, 1), Attention(4, 2, 64), Dense(512))),
    "lfm2": _mixed("lfm2-12b", _turns(8, 4, ShortConv(), _ATTENTION, Dense(512))),
}
"""A small model of each kind: plain, windows, experts, latent attention, recurrent states."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write one model from the command line and print its path."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.support.random_models", description=__doc__.partition("\n")[0])
    parser.add_argument("shape", choices=sorted(SMALL))
    parser.add_argument("out", type=Path)
    words = parser.parse_args(arguments)
    print(build_random(words.out, SMALL[words.shape]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
