"""Models for tests, generated in a moment and never downloaded.

`build_tiny` writes a small llama with random weights that the real llama-server serves. Its text is gibberish of
printable ASCII and it never ends by itself: a request gets exactly the number of tokens that it asked for.

`build_hollow` writes the header of a real model over a hole: llama-server can be asked what memory it would take,
but it cannot be served.

    python3 -m tests.support.models tiny /tmp/tiny.gguf
    python3 -m tests.support.models hollow phi4 /tmp/phi4.gguf
"""

from __future__ import annotations

import argparse
import random
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tests.support.gguf_writer import (
    DataWriter,
    GgmlType,
    Metadata,
    Tensor,
    Value,
    boolean,
    f32,
    i32s,
    string,
    strings,
    u32,
    write_gguf,
    write_shards,
)
from tests.support.shapes import LLAMA31_8B, LLAMA32_3B, PHI4_14B, QWEN3_8B, QWEN25_32B, SHAPES, HollowShape

__all__ = [
    "CHATML",
    "LLAMA31_8B",
    "LLAMA32_3B",
    "PHI4_14B",
    "QWEN3_8B",
    "QWEN25_32B",
    "SHAPES",
    "TINY_VOCAB",
    "HollowShape",
    "build_hollow",
    "build_tiny",
    "byte_tokenizer",
]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|reserved_{n}|>" for n in range(27))]
TINY_VOCAB = 256 + len(_CONTROL)

_NORMAL_TOKEN, _CONTROL_TOKEN = 1, 3
# A prime number of values, so that no two rows of a tensor and no two tensors begin alike when it is tiled.
_NOISE_VALUES = 65521
# Element 0 of every hidden vector is a constant that no layer writes to. The output rows read it as their bias:
# that is how a model of random weights is kept to printable text.
_BIAS_INPUT = 4.0
_FORBIDDEN_BIAS = -40.0


@dataclass(frozen=True)
class _TinyShape:
    layers: int
    embd: int
    heads: int
    kv_heads: int
    ff: int

    @property
    def kv_width(self) -> int:
        return self.embd // self.heads * self.kv_heads

    def tensors(self) -> list[Tensor]:
        """Every tensor of the file, in file order."""
        found = [Tensor("token_embd.weight", (self.embd, TINY_VOCAB), GgmlType.F16)]
        for layer in range(self.layers):
            for name, dims in self._block():
                kind = GgmlType.F16 if len(dims) > 1 else GgmlType.F32
                found.append(Tensor(f"blk.{layer}.{name}.weight", dims, kind))
        found.append(Tensor("output_norm.weight", (self.embd,), GgmlType.F32))
        found.append(Tensor("output.weight", (self.embd, TINY_VOCAB), GgmlType.F16))
        return found

    def _block(self) -> list[tuple[str, tuple[int, ...]]]:
        embd, ff = self.embd, self.ff
        return [
            ("attn_norm", (embd,)),
            ("attn_q", (embd, embd)),
            ("attn_k", (embd, self.kv_width)),
            ("attn_v", (embd, self.kv_width)),
            ("attn_output", (embd, embd)),
            ("ffn_norm", (embd,)),
            ("ffn_gate", (embd, ff)),
            ("ffn_up", (embd, ff)),
            ("ffn_down", (ff, embd)),
        ]


class _TinyWeights:
    """Random weights: one block of noise, tiled over every tensor from a place of its own."""

    def __init__(self, *, seed: int) -> None:
        self._random = random.Random(seed)
        # 0.1 keeps the hidden state near unit size through any number of layers, and the logits a few units apart.
        values = [self._random.gauss(0.0, 0.1) for _ in range(_NOISE_VALUES)]
        self._noise = struct.pack(f"<{_NOISE_VALUES}e", *values)

    def write(self, file: BinaryIO, tensor: Tensor) -> None:
        """Write the data of one tensor."""
        if tensor.type is GgmlType.F32:
            file.write(struct.pack("<f", 1.0) * tensor.elements)
        elif tensor.name in ("token_embd.weight", "output.weight"):
            self._write_rows(file, tensor)
        elif tensor.name.endswith(("attn_output.weight", "ffn_down.weight")):
            # Row 0 would write element 0 of the hidden vector: leave it be.
            file.write(b"\0" * (tensor.dims[0] * 2))
            self._write_noise(file, tensor.size_bytes - tensor.dims[0] * 2)
        else:
            self._write_noise(file, tensor.size_bytes)

    def _write_rows(self, file: BinaryIO, tensor: Tensor) -> None:
        for token in range(tensor.dims[1]):
            bias = _BIAS_INPUT if tensor.name == "token_embd.weight" else _output_bias(token)
            file.write(struct.pack("<e", bias))
            self._write_noise(file, tensor.dims[0] * 2 - 2)

    def _write_noise(self, file: BinaryIO, size_bytes: int) -> None:
        start = self._random.randrange(_NOISE_VALUES) * 2
        head = self._noise[start : start + size_bytes]
        file.write(head)
        whole, rest = divmod(size_bytes - len(head), len(self._noise))
        for _ in range(whole):
            file.write(self._noise)
        file.write(self._noise[:rest])


def _output_bias(token: int) -> float:
    return 0.0 if token < 256 and 0x20 <= _token_bytes()[token] < 0x7F else _FORBIDDEN_BIAS


def _token_bytes() -> list[int]:
    """The byte that each of the first 256 tokens stands for: the printable ones first, as in GPT-2's table."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return shown + [byte for byte in range(256) if byte not in set(shown)]


def _byte_tokens() -> list[str]:
    """GPT-2's byte-to-unicode alphabet, one character a byte, in the order of `_token_bytes`."""
    raw = _token_bytes()
    shown = sum(1 for byte in raw if 0x21 <= byte < 0x7F or 0xA1 <= byte < 0xAD or byte >= 0xAE)
    return [chr(byte) if place < shown else chr(256 + place - shown) for place, byte in enumerate(raw)]


def _tokenizer(pre: str, tokens: list[str], merges: list[str], control_from: int) -> dict[str, Value]:
    kinds = [_NORMAL_TOKEN] * control_from + [_CONTROL_TOKEN] * (len(tokens) - control_from)
    return {
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string(pre),
        "tokenizer.ggml.tokens": strings(tokens),
        "tokenizer.ggml.token_type": i32s(kinds),
        "tokenizer.ggml.merges": strings(merges),
        "tokenizer.ggml.bos_token_id": u32(control_from),
        "tokenizer.ggml.eos_token_id": u32(control_from + 2),
        "tokenizer.ggml.padding_token_id": u32(control_from),
        "tokenizer.ggml.add_bos_token": boolean(False),
    }


def byte_tokenizer() -> dict[str, Value]:
    """A tokenizer of `TINY_VOCAB` tokens that any model can have: every byte of a text is one token."""
    return _tokenizer("gpt-2", _byte_tokens() + _CONTROL, [], 256)


def build_tiny(
    path: Path,
    *,
    layers: int = 4,
    embd: int = 256,
    heads: int = 4,
    kv_heads: int | None = None,
    ff: int | None = None,
    ctx_train_tokens: int = 8192,
    seed: int = 1,
    name: str = "tiny",
    chat_template: str | None = CHATML,
    shards: int = 1,
) -> Path:
    """Write a llama with random f16 weights that llama-server serves, and return the file to open (shard 1 if split).

    Every byte of a prompt is one token. The same arguments give the same file. `kv_heads` is half of `heads`, `ff`
    twice `embd` unless told otherwise; the default is 5 MB.
    """
    shape = _TinyShape(layers, embd, heads, kv_heads or max(1, heads // 2), ff or 2 * embd)
    metadata: dict[str, Value] = {
        "general.architecture": string("llama"),
        "general.type": string("model"),
        "general.name": string(name),
        "general.file_type": u32(1),  # MOSTLY_F16
        "llama.block_count": u32(layers),
        "llama.context_length": u32(ctx_train_tokens),
        "llama.embedding_length": u32(embd),
        "llama.feed_forward_length": u32(shape.ff),
        "llama.attention.head_count": u32(heads),
        "llama.attention.head_count_kv": u32(shape.kv_heads),
        "llama.attention.layer_norm_rms_epsilon": f32(1e-5),
        "llama.rope.dimension_count": u32(embd // heads),
        "llama.rope.freq_base": f32(10000.0),
        "llama.vocab_size": u32(TINY_VOCAB),
        **byte_tokenizer(),
    }
    if chat_template is not None:
        metadata["tokenizer.chat_template"] = string(chat_template)
    return _write(path, metadata, shape.tensors(), _TinyWeights(seed=seed).write, shards)


def build_hollow(
    path: Path,
    shape: HollowShape,
    *,
    ctx_train_tokens: int | None = None,
    vocab: bool = False,
    merges: int | None = None,
    shards: int = 1,
) -> Path:
    """Write the header of `shape` over a hole of the real size and return the file to open (shard 1 if split).

    With `vocab` the tokenizer is written in full, `shape.vocab` tokens and `merges` merges (about as many as tokens
    by default), which makes the header some MB long as in real files. Without it the model has no tokenizer, which
    llama-server accepts for accounting.
    """
    metadata = shape.metadata(ctx_train_tokens=ctx_train_tokens)
    if vocab:
        tokens, pairs = _word_vocabulary(shape.vocab - len(_CONTROL), merges)
        metadata |= _tokenizer(shape.tokenizer_pre, tokens + _CONTROL, pairs, len(tokens))
        metadata["tokenizer.chat_template"] = string(CHATML)
    else:
        metadata["tokenizer.ggml.model"] = string("none")
        metadata[f"{shape.arch}.vocab_size"] = u32(shape.vocab)
    return _write(path, metadata, shape.tensors(), None, shards)


def _word_vocabulary(count: int, merges: int | None) -> tuple[list[str], list[str]]:
    """`count` distinct tokens, the bytes first and each later one the merge of two before it, and their merges."""
    draw = random.Random(count)
    tokens = _byte_tokens()
    letters = tokens[:94]  # printable ASCII, which is what most tokens of a real vocabulary are made of
    seen = set(tokens)
    pairs: list[str] = []
    while len(tokens) < count:
        left, right = draw.choice(tokens), draw.choice(letters)
        if left + right not in seen:
            tokens.append(left + right)
            seen.add(left + right)
            pairs.append(f"{left} {right}")
    wanted = len(pairs) if merges is None else merges
    while len(pairs) < wanted:
        pairs.append(f"{draw.choice(tokens)} {draw.choice(tokens)}")
    return tokens, pairs[:wanted]


def _write(
    path: Path, metadata: Metadata, tensors: list[Tensor], data: DataWriter | None, shards: int
) -> Path:
    if shards > 1:
        return write_shards(path, metadata, tensors, data, count=shards)[0]
    write_gguf(path, metadata, tensors, data)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Write one model from the command line and print the path of the file to open."""
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.support.models", description=__doc__.partition("\n")[0]
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    tiny = kinds.add_parser("tiny", help="a small model that serves gibberish")
    tiny.add_argument("out", type=Path)
    tiny.add_argument("--layers", type=int, default=4)
    tiny.add_argument("--embd", type=int, default=256)
    tiny.add_argument("--ctx-train", type=int, default=8192, metavar="TOKENS")
    tiny.add_argument("--seed", type=int, default=1)
    hollow = kinds.add_parser("hollow", help="a header of a real shape over a hole")
    hollow.add_argument("shape", choices=sorted(SHAPES))
    hollow.add_argument("out", type=Path)
    hollow.add_argument("--vocab", action="store_true", help="write the tokenizer in full")
    for kind in (tiny, hollow):
        kind.add_argument("--shards", type=int, default=1)
    words = parser.parse_args(arguments)
    if words.kind == "tiny":
        made = build_tiny(
            words.out,
            layers=words.layers,
            embd=words.embd,
            ctx_train_tokens=words.ctx_train,
            seed=words.seed,
            shards=words.shards,
        )
    else:
        made = build_hollow(words.out, SHAPES[words.shape], vocab=words.vocab, shards=words.shards)
    print(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
