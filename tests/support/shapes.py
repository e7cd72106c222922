"""Shapes of real models: what a GGUF of them holds, tensor for tensor, without the weights.

The tensor types are those that `llama-quantize ... Q4_K_M` chooses (llama-quant.cpp), so the sums equal the
sizes of the published files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tests.support.gguf_writer import GgmlType, Tensor, Value, f32, string, u32


@dataclass(frozen=True)
class HollowShape:
    """A transformer with standard (grouped-query) attention. Lengths are in elements, contexts in tokens."""

    title: str
    arch: str
    layers: int
    embd: int
    ff: int
    heads: int
    kv_heads: int
    vocab: int
    ctx_train_tokens: int
    rope_freq_base: float
    norm_eps: float
    tokenizer_pre: str
    head_dim: int = 128
    tied: bool = False  # no output.weight: the embedding is used again
    fused: bool = False  # phi3: one tensor for q, k and v, one for gate and up
    qkv_bias: bool = False  # qwen2
    qk_norm: bool = False  # qwen3
    rope_freqs: bool = False  # llama 3.1 and later: scaled frequencies in a tensor

    @property
    def q_width(self) -> int:
        """Row count of the query projection."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Row count of the key projection, and of the value projection."""
        return self.kv_heads * self.head_dim

    def metadata(self, *, ctx_train_tokens: int | None = None) -> dict[str, Value]:
        """The keys that describe the shape, without those of the tokenizer."""
        arch = self.arch
        keys: dict[str, Value] = {
            "general.architecture": string(arch),
            "general.type": string("model"),
            "general.name": string(self.title),
            "general.file_type": u32(15),  # MOSTLY_Q4_K_M
            "general.quantization_version": u32(2),
            f"{arch}.block_count": u32(self.layers),
            f"{arch}.context_length": u32(ctx_train_tokens or self.ctx_train_tokens),
            f"{arch}.embedding_length": u32(self.embd),
            f"{arch}.feed_forward_length": u32(self.ff),
            f"{arch}.attention.head_count": u32(self.heads),
            f"{arch}.attention.head_count_kv": u32(self.kv_heads),
            f"{arch}.attention.layer_norm_rms_epsilon": f32(self.norm_eps),
            f"{arch}.rope.freq_base": f32(self.rope_freq_base),
            f"{arch}.rope.dimension_count": u32(self.head_dim),
        }
        if self.qk_norm:  # qwen3 converters write these; the others leave them to embd / heads
            keys[f"{arch}.attention.key_length"] = u32(self.head_dim)
            keys[f"{arch}.attention.value_length"] = u32(self.head_dim)
        if self.fused:
            keys[f"{arch}.rope.scaling.original_context_length"] = u32(self.ctx_train_tokens)
        return keys

    def tensors(self) -> list[Tensor]:
        """Every tensor of the file, in file order."""
        embd_type = GgmlType.Q6_K if self.tied else GgmlType.Q4_K
        found = [Tensor("token_embd.weight", (self.embd, self.vocab), embd_type)]
        if self.rope_freqs:
            found.append(Tensor("rope_freqs.weight", (self.head_dim // 2,), GgmlType.F32))
        for layer in range(self.layers):
            found += self._block(layer)
        found.append(Tensor("output_norm.weight", (self.embd,), GgmlType.F32))
        if not self.tied:
            found.append(Tensor("output.weight", (self.embd, self.vocab), GgmlType.Q6_K))
        return found

    def _block(self, layer: int) -> Iterator[Tensor]:
        def weight(name: str, rows: int, columns: int, kind: GgmlType = GgmlType.Q4_K) -> Tensor:
            return Tensor(f"blk.{layer}.{name}.weight", (rows, columns), kind)

        def vector(name: str, length: int) -> Tensor:
            return Tensor(f"blk.{layer}.{name}", (length,), GgmlType.F32)

        better = GgmlType.Q6_K if self._more_bits(layer) else GgmlType.Q4_K
        yield vector("attn_norm.weight", self.embd)
        if self.fused:
            yield weight("attn_qkv", self.embd, self.q_width + 2 * self.kv_width, GgmlType.Q5_K)
        else:
            yield weight("attn_q", self.embd, self.q_width)
            yield weight("attn_k", self.embd, self.kv_width)
            yield weight("attn_v", self.embd, self.kv_width, better)
        if self.qkv_bias:
            yield vector("attn_q.bias", self.q_width)
            yield vector("attn_k.bias", self.kv_width)
            yield vector("attn_v.bias", self.kv_width)
        if self.qk_norm:
            yield vector("attn_q_norm.weight", self.head_dim)
            yield vector("attn_k_norm.weight", self.head_dim)
        yield weight("attn_output", self.q_width, self.embd)
        yield vector("ffn_norm.weight", self.embd)
        if not self.fused:
            yield weight("ffn_gate", self.embd, self.ff)
        yield weight("ffn_up", self.embd, self.ff * (2 if self.fused else 1))
        yield weight("ffn_down", self.ff, self.embd, better)

    def _more_bits(self, layer: int) -> bool:
        """llama-quant.cpp's use_more_bits: the outer eighths and every third layer between them."""
        eighth = self.layers // 8
        return layer < eighth or layer >= 7 * self.layers // 8 or (layer - eighth) % 3 == 2


PHI4_14B = HollowShape(
    title="Phi 4",
    arch="phi3",
    layers=40,
    embd=5120,
    ff=17920,
    heads=40,
    kv_heads=10,
    vocab=100352,
    ctx_train_tokens=16384,
    rope_freq_base=250000.0,
    norm_eps=1e-5,
    tokenizer_pre="dbrx",
    fused=True,
)
LLAMA31_8B = HollowShape(
    title="Llama 3.1 8B",
    arch="llama",
    layers=32,
    embd=4096,
    ff=14336,
    heads=32,
    kv_heads=8,
    vocab=128256,
    ctx_train_tokens=131072,
    rope_freq_base=500000.0,
    norm_eps=1e-5,
    tokenizer_pre="llama-bpe",
    rope_freqs=True,
)
LLAMA32_3B = HollowShape(
    title="Llama 3.2 3B",
    arch="llama",
    layers=28,
    embd=3072,
    ff=8192,
    heads=24,
    kv_heads=8,
    vocab=128256,
    ctx_train_tokens=131072,
    rope_freq_base=500000.0,
    norm_eps=1e-5,
    tokenizer_pre="llama-bpe",
    tied=True,
    rope_freqs=True,
)
QWEN25_32B = HollowShape(
    title="Qwen2.5 32B",
    arch="qwen2",
    layers=64,
    embd=5120,
    ff=27648,
    heads=40,
    kv_heads=8,
    vocab=152064,
    ctx_train_tokens=131072,
    rope_freq_base=1000000.0,
    norm_eps=1e-5,
    tokenizer_pre="qwen2",
    qkv_bias=True,
)
QWEN3_8B = HollowShape(
    title="Qwen3 8B",
    arch="qwen3",
    layers=36,
    embd=4096,
    ff=12288,
    heads=32,
    kv_heads=8,
    vocab=151936,
    ctx_train_tokens=40960,
    rope_freq_base=1000000.0,
    norm_eps=1e-6,
    tokenizer_pre="qwen2",
    qk_norm=True,
)

SHAPES: Mapping[str, HollowShape] = {
    "phi4": PHI4_14B,
    "llama31-8b": LLAMA31_8B,
    "llama32-3b": LLAMA32_3B,
    "qwen25-32b": QWEN25_32B,
    "qwen3-8b": QWEN3_8B,
}
