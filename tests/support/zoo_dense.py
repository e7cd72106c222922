"""Real models' shapes of many architectures, most of them dense: every tensor's name and dimensions, no weights.

A family is its block written out, `NAME ROWS COLUMNS` a tensor; a model is a family with numbers. Letters stand for
widths: E the model, Q all query heads, K and V the keys and values, F the feed-forward part, H one head, X the feed-forward
part of an expert, G the experts, N the query heads, L the layers, B the vocabulary; `2F` is twice F. Names without an ending are weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from tests.support.gguf_writer import GgmlType, Tensor, Value, boolean, booleans, f32, i32s, string, u32

Number = int | float | bool | str | tuple[int, ...] | tuple[bool, ...]

_FALLBACK = {GgmlType.Q4_K: GgmlType.Q5_0, GgmlType.Q5_K: GgmlType.Q8_0, GgmlType.Q6_K: GgmlType.Q8_0}
_PLAIN = (
    "ffn_gate_inp",
    "altup",
    "inp_gate",
    "proj",
    "per_layer_model_proj",
    "position_embd",
    "token_types",
)


def _value(number: Number) -> Value:
    if isinstance(number, bool):
        return boolean(number)
    if isinstance(number, int):
        return u32(number)
    if isinstance(number, float):
        return f32(number)
    if isinstance(number, str):
        return string(number)
    return booleans([bool(n) for n in number]) if isinstance(number[0], bool) else i32s(number)


@dataclass(frozen=True)
class ZooShape:
    """One model. Lengths are in elements, contexts in tokens; `keys` are further keys below the architecture."""

    title: str
    arch: str
    block: str
    layers: int
    embd: int
    ff: int
    heads: int
    kv_heads: int
    vocab: int
    ctx_train_tokens: int
    head_dim: int = 128
    ends: str = ""  # tensors outside the blocks, beside the embedding, its norm and the output
    tied: bool = False  # no output.weight: the embedding is used again
    final_norm: bool = True
    rms: bool = True  # the norm is by root mean square, without a bias
    experts: int = 0
    ff_expert: int = 0
    expert_type: GgmlType = GgmlType.Q4_K
    tokenizer_pre: str = "default"
    keys: Mapping[str, Number] = field(default_factory=dict)
    whole_type: GgmlType | None = None  # every matrix has this type, not Q4_K_M's mix

    def metadata(self, *, ctx_train_tokens: int | None = None) -> dict[str, Value]:
        """The keys that describe the shape, without those of the tokenizer."""
        norm = "attention.layer_norm_rms_epsilon" if self.rms else "attention.layer_norm_epsilon"
        numbers: dict[str, Number] = {
            "block_count": self.layers,
            "context_length": ctx_train_tokens or self.ctx_train_tokens,
            "embedding_length": self.embd,
            "feed_forward_length": self.ff,
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.kv_heads,
            norm: 1e-5,
            "rope.freq_base": 1e6,
            "rope.dimension_count": self.head_dim,
            "attention.key_length": self.head_dim,
            "attention.value_length": self.head_dim,
        }
        if self.experts:
            numbers |= {"expert_count": self.experts, "expert_feed_forward_length": self.ff_expert}
        numbers |= self.keys
        kinds = {"tokenizer.ggml.token_type_count": u32(2)} if "token_types" in self.ends else {}
        return {
            **kinds,
            "general.architecture": string(self.arch),
            "general.type": string("model"),
            "general.name": string(self.title),
            "general.file_type": u32(15),  # MOSTLY_Q4_K_M
            "general.quantization_version": u32(2),
            **{f"{self.arch}.{key}": _value(number) for key, number in numbers.items()},
        }

    def tensors(self) -> list[Tensor]:
        """Every tensor of the file, in file order."""
        widths = self.widths(0)
        ends = f"token_embd E {self.vocab}; {self.ends}"
        if self.final_norm:
            ends += "; output_norm E" + ("" if self.rms else "; output_norm.bias E")
        if not self.tied:
            ends += f"; output E {self.vocab}"
        found = [self._tensor(words, "", widths, 0) for words in _lines(ends)]
        for layer in range(self.layers):
            found += self._block(layer)
        return found

    def widths(self, layer: int) -> dict[str, int]:
        """What the letters of the block stand for."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        letters = {
            "E": self.embd,
            "Q": q,
            "K": kv,
            "V": kv,
            "F": self.ff,
            "H": self.head_dim,
            "L": self.layers,
        }
        return letters | {
            "B": self.vocab,
            "R": self.head_dim // 2,
            "X": self.ff_expert,
            "G": self.experts,
            "N": self.heads,
            "A": q + 2 * kv,
        }

    def block_of(self, layer: int) -> str:
        """The block's tensors; all are alike unless a family says otherwise."""
        return self.block

    def _block(self, layer: int) -> Iterator[Tensor]:
        widths = self.widths(layer)
        for words in _lines(self.block_of(layer)):
            yield self._tensor(words, f"blk.{layer}.", widths, layer)

    def _tensor(self, words: list[str], prefix: str, widths: Mapping[str, int], layer: int) -> Tensor:
        name, *sizes = words
        dims = tuple(_size(size, widths) for size in sizes)
        full = prefix + (name if name.endswith((".bias", ".scale")) else f"{name}.weight")
        return Tensor(full, dims, self._type(name, dims, layer))

    def _type(self, name: str, dims: tuple[int, ...], layer: int) -> GgmlType:
        if len(dims) == 1 or name.endswith((".bias", ".scale")):
            return GgmlType.F32
        if name.startswith(_PLAIN):
            return GgmlType.F32 if name.startswith(("ffn_gate_inp", "token_types")) else GgmlType.F16
        kind = self.whole_type or self._mixed_type(name, layer)
        if "exps" in name and self.expert_type is not GgmlType.Q4_K:
            kind = self.expert_type
        if kind in _FALLBACK and dims[0] % 256:
            kind = _FALLBACK[kind]
        return kind if dims[0] % 32 == 0 or kind is GgmlType.F32 else GgmlType.F16

    def _mixed_type(self, name: str, layer: int) -> GgmlType:
        """As llama-quantize mixes Q4_K_M: llama-quant.cpp's use_more_bits for values and the way down."""
        if name in ("output", "per_layer_token_embd") or (name == "token_embd" and self.tied):
            return GgmlType.Q6_K
        if name == "attn_qkv":
            return GgmlType.Q5_K
        eighth = self.layers // 8
        more = layer < eighth or layer >= 7 * self.layers // 8 or (layer - eighth) % 3 == 2
        return GgmlType.Q6_K if more and name in ("attn_v", "ffn_down", "ffn_down_exps") else GgmlType.Q4_K


def _lines(spec: str) -> list[list[str]]:
    return [words for line in spec.split(";") if (words := line.split())]


def _size(text: str, widths: Mapping[str, int]) -> int:
    if text.isdigit():
        return int(text)
    return widths[text[-1]] * (widths[text[:-1]] if text[:-1].isalpha() else int(text[:-1] or 1))


_QKV = "attn_q E Q; attn_k E K; attn_v E V; attn_output Q E"
_GATED = "ffn_gate E F; ffn_up E F; ffn_down F E"
_QK_NORMS = "; attn_q_norm H; attn_k_norm H"
_QKV_BIAS = "; attn_q.bias Q; attn_k.bias K; attn_v.bias V"
_LLAMA = f"attn_norm E; {_QKV}; ffn_norm E; {_GATED}"
_POST_NORMS = "; post_attention_norm E; post_ffw_norm E"
_GEMMA2 = _LLAMA + _POST_NORMS
_GEMMA3 = _GEMMA2 + _QK_NORMS
_FUSED = "attn_norm E; attn_qkv E A; attn_output Q E; ffn_norm E; ffn_up E 2F; ffn_down F E"
_PARALLEL = f"attn_norm E; {_QKV}; {_GATED}"
_POST_ONLY = f"{_QKV}; {_GATED}{_POST_NORMS}"
_STARCODER2 = (
    f"attn_norm E; attn_norm.bias E; {_QKV}{_QKV_BIAS}; attn_output.bias E; ffn_norm E; ffn_norm.bias E; "
    "ffn_up E F; ffn_up.bias F; ffn_down F E; ffn_down.bias E"
)
_FALCON = "attn_norm E; attn_norm.bias E; attn_qkv E A; attn_output Q E; ffn_up E F; ffn_down F E"
_NEOX = (
    "attn_norm E; attn_norm.bias E; attn_qkv E A; attn_qkv.bias A; attn_output Q E; attn_output.bias E; ffn_norm E; "
    "ffn_norm.bias E; ffn_up E F; ffn_up.bias F; ffn_down F E; ffn_down.bias E"
)
_GPT_OSS = (
    f"attn_norm E; {_QKV}{_QKV_BIAS}; attn_output.bias E; attn_sinks N; post_attention_norm E; ffn_gate_inp E G; "
    "ffn_gate_inp.bias G; ffn_gate_exps E X G; ffn_up_exps E X G; ffn_down_exps X E G; ffn_gate_exps.bias X G; "
    "ffn_up_exps.bias X G; ffn_down_exps.bias E G"
)
_BERT = (
    f"{_QKV}{_QKV_BIAS}; attn_output.bias E; attn_output_norm E; attn_output_norm.bias E; ffn_up E F; ffn_up.bias F; "
    "ffn_down F E; ffn_down.bias E; layer_output_norm E; layer_output_norm.bias E"
)
_NOMIC = (
    "attn_qkv E A; attn_output Q E; attn_output_norm E; attn_output_norm.bias E; ffn_up E F; ffn_gate E F; ffn_down F E; "
    "layer_output_norm E; layer_output_norm.bias E"
)
_BERT_ENDS = "token_types E 2; token_embd_norm E; token_embd_norm.bias E"
_LAUREL = (
    "; inp_gate E 256; proj 256 E; post_norm E; altup_correct_coef 4 4; altup_correct_scale E; altup_predict_coef 4 16; "
    "altup_router E 4; altup_router_norm E; laurel_l E 64; laurel_r 64 E; laurel_post_norm E"
)
_ALTUP_ENDS = (
    "altup_proj E E 3; altup_unembd_proj E E 3; per_layer_token_embd 256L B; per_layer_model_proj E 256L; "
    "per_layer_proj_norm 256"
)


@dataclass(frozen=True)
class Gemma4Shape(ZooShape):
    """Layers of two kinds: every `period`th is full, with heads of another size and number; the last ones share caches."""

    period: int = 6
    full_head_dim: int = 512
    full_kv_heads: int = 0
    shared_layers: int = 0
    embd_per_layer: int = 0
    double_wide: bool = False  # the layers that share caches have twice the feed-forward part
    values_are_keys: bool = False  # full layers have no attn_v

    def windowed(self, layer: int) -> bool:
        """Whether a layer sees the window only."""
        return layer % self.period < self.period - 1

    def _owns(self, layer: int) -> bool:
        return layer < self.layers - self.shared_layers

    def metadata(self, *, ctx_train_tokens: int | None = None) -> dict[str, Value]:
        """As of any shape, with a number a layer where they differ."""
        layers = range(self.layers)
        keys: dict[str, Number] = {
            "attention.sliding_window_pattern": tuple(self.windowed(layer) for layer in layers),
            "attention.key_length": self.full_head_dim,
            "attention.value_length": self.full_head_dim,
            "attention.key_length_swa": self.head_dim,
            "attention.value_length_swa": self.head_dim,
            "rope.dimension_count": self.full_head_dim,
            "rope.dimension_count_swa": self.head_dim,
            "attention.shared_kv_layers": self.shared_layers,
            "embedding_length_per_layer_input": self.embd_per_layer,
            "feed_forward_length": tuple(self.widths(layer)["F"] for layer in layers),
        }
        if self.full_kv_heads:
            keys["attention.head_count_kv"] = tuple(
                self.kv_heads if self.windowed(layer) else self.full_kv_heads for layer in layers
            )
        own = {f"{self.arch}.{key}": _value(number) for key, number in keys.items()}
        return super().metadata(ctx_train_tokens=ctx_train_tokens) | own

    def widths(self, layer: int) -> dict[str, int]:
        """The letters, by the kind of the layer."""
        shape = (
            self
            if self.windowed(layer)
            else replace(self, head_dim=self.full_head_dim, kv_heads=self.full_kv_heads or self.kv_heads)
        )
        wide = 2 if self.double_wide and not self._owns(layer) else 1
        return ZooShape.widths(shape, layer) | {"F": self.ff * wide, "P": self.embd_per_layer}

    def block_of(self, layer: int) -> str:
        """Layers that share a cache have no keys and values of their own."""
        block = self.block
        if not self._owns(layer):
            block = (
                block.replace("attn_k E K; ", "").replace("attn_v E V; ", "").replace("; attn_k_norm H", "")
            )
        elif self.values_are_keys and not self.windowed(layer):
            block = block.replace("attn_v E V; ", "")
        return block


_GEMMA4 = _GEMMA3 + "; layer_output_scale 1"
_GEMMA4_PLE = _GEMMA4 + "; inp_gate E P; proj P E; post_norm E"
_GEMMA4_ENDS = "rope_freqs 256"
_GEMMA4_PLE_ENDS = (
    "rope_freqs 256; per_layer_token_embd PL B; per_layer_model_proj E PL; per_layer_proj_norm P"
)
_GEMMA4_MOE = _GEMMA4 + (
    "; ffn_gate_inp E G; ffn_gate_inp.scale E; pre_ffw_norm_2 E; post_ffw_norm_1 E; post_ffw_norm_2 E; "
    "ffn_gate_up_exps E 2X G; ffn_down_exps X E G; ffn_down_exps.scale G"
)


def _shape(
    title: str, arch: str, block: str, numbers: tuple[int, ...], ctx: int, **more: object
) -> ZooShape:
    """`numbers`: layers, embd, ff, heads, key heads, vocabulary and, where it is not embd / heads, the head size."""
    layers, embd, ff, heads, kv_heads, vocab, *rest = numbers
    head_dim = rest[0] if rest else embd // heads
    kind: type[ZooShape] = more.pop("kind", ZooShape)  # type: ignore[assignment]
    return kind(title, arch, block, layers, embd, ff, heads, kv_heads, vocab, ctx, head_dim, **more)  # type: ignore[arg-type]


def _gemma(title: str, arch: str, window: int, numbers: tuple[int, ...], ctx: int) -> ZooShape:
    block = _GEMMA2 if arch == "gemma2" else _GEMMA3
    return _shape(title, arch, block, numbers, ctx, tied=True, keys={"attention.sliding_window": window})


def _gemma3n(title: str, numbers: tuple[int, ...]) -> ZooShape:
    keys = {"attention.sliding_window": 512}
    return _shape(
        title, "gemma3n", _GEMMA3 + _LAUREL, numbers, 32768, tied=True, ends=_ALTUP_ENDS, keys=keys
    )


def _gemma4(title: str, numbers: tuple[int, ...], ctx: int, window: int, **more: object) -> ZooShape:
    block = _GEMMA4_MOE if "experts" in more else _GEMMA4_PLE if "embd_per_layer" in more else _GEMMA4
    ends = _GEMMA4_PLE_ENDS if "embd_per_layer" in more else _GEMMA4_ENDS
    keys = {"attention.sliding_window": window} | ({"expert_used_count": 8} if "experts" in more else {})
    return _shape(
        title, "gemma4", block, numbers, ctx, kind=Gemma4Shape, tied=True, ends=ends, keys=keys, **more
    )


def _gpt_oss(title: str, layers: int, experts: int) -> ZooShape:
    keys = {"attention.sliding_window": 128, "expert_used_count": 4}
    more = {
        "experts": experts,
        "ff_expert": 2880,
        "expert_type": GgmlType.MXFP4,
        "whole_type": GgmlType.Q8_0,
    }
    return _shape(
        title, "gpt-oss", _GPT_OSS, (layers, 2880, 2880, 64, 8, 201088, 64), 131072, keys=keys, **more
    )


_YARN = {"attention.temperature_scale": 0.1, "rope.scaling.original_context_length": 16384}
_PHI35_ENDS = "rope_factors_long R; rope_factors_short R"
_LAYER_NORM = {"rms": False}
_EMBED = {"attention.causal": False, "pooling_type": 2}

ZOO: Mapping[str, ZooShape] = {
    "gemma2-9b": _gemma("Gemma 2 9B", "gemma2", 4096, (42, 3584, 14336, 16, 8, 256000, 256), 8192),
    "gemma2-27b": _gemma("Gemma 2 27B", "gemma2", 4096, (46, 4608, 36864, 32, 16, 256000, 128), 8192),
    "gemma3-1b": _gemma("Gemma 3 1B", "gemma3", 512, (26, 1152, 6912, 4, 1, 262144, 256), 32768),
    "gemma3-4b": _gemma("Gemma 3 4B", "gemma3", 1024, (34, 2560, 10240, 8, 4, 262208, 256), 131072),
    "gemma3-12b": _gemma("Gemma 3 12B", "gemma3", 1024, (48, 3840, 15360, 16, 8, 262208, 256), 131072),
    "gemma3-27b": _gemma("Gemma 3 27B", "gemma3", 1024, (62, 5376, 21504, 32, 16, 262208, 128), 131072),
    "gemma3n-e2b": _gemma3n("Gemma 3n E2B", (30, 2048, 8192, 8, 2, 262144, 256)),
    "gemma3n-e4b": _gemma3n("Gemma 3n E4B", (35, 2048, 16384, 8, 2, 262144, 256)),
    "gemma4-e2b": _gemma4(
        "Gemma 4 E2B",
        (35, 1536, 6144, 8, 1, 262144, 256),
        131072,
        512,
        period=5,
        shared_layers=20,
        embd_per_layer=256,
        double_wide=True,
    ),
    "gemma4-e4b": _gemma4(
        "Gemma 4 E4B",
        (42, 2560, 10240, 8, 2, 262144, 256),
        131072,
        512,
        shared_layers=18,
        embd_per_layer=256,
    ),
    "gemma4-31b": _gemma4(
        "Gemma 4 31B",
        (60, 5376, 21504, 32, 16, 262144, 256),
        262144,
        1024,
        full_kv_heads=4,
        values_are_keys=True,
    ),
    "gemma4-26b-a4b": _gemma4(
        "Gemma 4 26B A4B",
        (30, 2816, 2112, 16, 8, 262144, 256),
        262144,
        1024,
        full_kv_heads=2,
        values_are_keys=True,
        experts=128,
        ff_expert=704,
    ),
    "phi35-mini": _shape(
        "Phi 3.5 mini",
        "phi3",
        _FUSED,
        (32, 3072, 8192, 32, 32, 32064),
        131072,
        ends=_PHI35_ENDS,
        keys={"rope.scaling.original_context_length": 4096, "attention.sliding_window": 262144},
    ),
    "mistral-7b": _shape("Mistral 7B v0.3", "llama", _LLAMA, (32, 4096, 14336, 32, 8, 32768), 32768),
    "mistral-small-24b": _shape(
        "Mistral Small 24B", "llama", _LLAMA, (40, 5120, 32768, 32, 8, 131072, 128), 32768
    ),
    "ministral3-14b": _shape(
        "Ministral 3 14B", "mistral3", _LLAMA, (40, 5120, 16384, 32, 8, 131072, 128), 262144, keys=_YARN
    ),
    "llama31-70b": _shape(
        "Llama 3.1 70B", "llama", _LLAMA, (80, 8192, 28672, 64, 8, 128256), 131072, ends="rope_freqs 64"
    ),
    "llama32-1b": _shape(
        "Llama 3.2 1B",
        "llama",
        _LLAMA,
        (16, 2048, 8192, 32, 8, 128256),
        131072,
        tied=True,
        ends="rope_freqs 32",
    ),
    "qwen25-05b": _shape(
        "Qwen2.5 0.5B", "qwen2", _LLAMA + _QKV_BIAS, (24, 896, 4864, 14, 2, 151936), 32768, tied=True
    ),
    "qwen25-7b": _shape("Qwen2.5 7B", "qwen2", _LLAMA + _QKV_BIAS, (28, 3584, 18944, 28, 4, 152064), 32768),
    "qwen3-06b": _shape(
        "Qwen3 0.6B", "qwen3", _LLAMA + _QK_NORMS, (28, 1024, 3072, 16, 8, 151936, 128), 40960, tied=True
    ),
    "qwen3-14b": _shape(
        "Qwen3 14B", "qwen3", _LLAMA + _QK_NORMS, (40, 5120, 17408, 40, 8, 151936, 128), 40960
    ),
    "qwen3-32b": _shape(
        "Qwen3 32B", "qwen3", _LLAMA + _QK_NORMS, (64, 5120, 25600, 64, 8, 151936, 128), 40960
    ),
    "command-r": _shape(
        "Command R 35B",
        "command-r",
        _PARALLEL,
        (40, 8192, 24576, 64, 8, 256000),
        131072,
        tied=True,
        rms=False,
        final_norm=False,
        ends="output_norm E",
        keys={"logit_scale": 0.0625},
    ),
    "command-r7b": _shape(
        "Command R7B",
        "cohere2",
        _PARALLEL,
        (32, 4096, 14336, 32, 8, 256000),
        132096,
        tied=True,
        rms=False,
        final_norm=False,
        ends="output_norm E",
        keys={"logit_scale": 0.25, "attention.sliding_window": 4096},
    ),
    "command-a": _shape(
        "Command A",
        "cohere2",
        _PARALLEL,
        (64, 12288, 36864, 96, 8, 256000),
        262144,
        tied=True,
        rms=False,
        final_norm=False,
        ends="output_norm E",
        keys={"logit_scale": 0.25, "attention.sliding_window": 4096},
    ),
    "glm4-9b": _shape(
        "GLM 4 9B 0414",
        "glm4",
        f"attn_norm E; {_QKV}{_QKV_BIAS}; ffn_norm E; ffn_up E 2F; ffn_down F E{_POST_NORMS}",
        (40, 4096, 13696, 32, 2, 151552),
        32768,
        keys={"rope.dimension_count": 64},
    ),
    "glm4-9b-chat": _shape(
        "GLM 4 9B chat",
        "chatglm",
        _FUSED + "; attn_qkv.bias A",
        (40, 4096, 13696, 32, 2, 151552),
        131072,
        keys={"rope.dimension_count": 64},
    ),
    "olmo2-13b": _shape(
        "OLMo 2 13B",
        "olmo2",
        _POST_ONLY + "; attn_q_norm Q; attn_k_norm K",
        (40, 5120, 13824, 40, 40, 100352),
        4096,
    ),
    "olmo3-32b": _shape(
        "OLMo 3 32B",
        "olmo2",
        _POST_ONLY + "; attn_q_norm Q; attn_k_norm K",
        (64, 5120, 27648, 40, 8, 100278),
        65536,
        keys={"attention.sliding_window": 4096},
    ),
    "granite33-8b": _shape(
        "Granite 3.3 8B",
        "granite",
        _LLAMA,
        (40, 4096, 12800, 32, 8, 49159),
        131072,
        tied=True,
        keys={
            "logit_scale": 16.0,
            "residual_scale": 0.22,
            "embedding_scale": 12.0,
            "attention.scale": 0.0078125,
        },
    ),
    "starcoder2-15b": _shape(
        "StarCoder2 15B", "starcoder2", _STARCODER2, (40, 6144, 24576, 48, 4, 49152), 16384, rms=False
    ),
    "gpt-oss-20b": _gpt_oss("gpt-oss 20B", 24, 32),
    "gpt-oss-120b": _gpt_oss("gpt-oss 120B", 36, 128),
    "exaone4-32b": _shape(
        "EXAONE 4.0 32B",
        "exaone4",
        _POST_ONLY + _QK_NORMS,
        (64, 5120, 27392, 40, 8, 102400),
        131072,
        ends="rope_freqs 64",
        keys={"attention.sliding_window": 4096},
    ),
    "exaone4-1b": _shape(
        "EXAONE 4.0 1.2B",
        "exaone4",
        _POST_ONLY + _QK_NORMS,
        (30, 2048, 4096, 32, 8, 102400),
        65536,
        tied=True,
        ends="rope_freqs 32",
    ),
    "smollm3-3b": _shape(
        "SmolLM3 3B", "smollm3", _LLAMA, (36, 2048, 11008, 16, 4, 128256), 65536, tied=True
    ),
    "falcon-7b": _shape("Falcon 7B", "falcon", _FALCON, (32, 4544, 18176, 71, 1, 65024), 2048, rms=False),
    "falcon-40b": _shape(
        "Falcon 40B",
        "falcon",
        _FALCON + "; attn_norm_2 E; attn_norm_2.bias E",
        (60, 8192, 32768, 128, 8, 65024),
        2048,
        rms=False,
    ),
    "neox-20b": _shape(
        "GPT-NeoX 20B",
        "gptneox",
        _NEOX,
        (44, 6144, 24576, 64, 64, 50432),
        2048,
        rms=False,
        keys={"use_parallel_residual": True, "rope.dimension_count": 24},
    ),
    "bge-large": _shape(
        "bge large en",
        "bert",
        _BERT,
        (24, 1024, 4096, 16, 16, 30522),
        512,
        rms=False,
        tied=True,
        final_norm=False,
        ends=_BERT_ENDS + "; position_embd E 512",
        keys=_EMBED,
    ),
    "nomic-embed": _shape(
        "nomic embed text v1.5",
        "nomic-bert",
        _NOMIC,
        (12, 768, 3072, 12, 12, 30522),
        2048,
        rms=False,
        tied=True,
        final_norm=False,
        ends=_BERT_ENDS,
        keys=_EMBED | {"pooling_type": 1},
    ),
    "qwen3-embed-06b": _shape(
        "Qwen3 Embedding 0.6B",
        "qwen3",
        _LLAMA + _QK_NORMS,
        (28, 1024, 3072, 16, 8, 151669, 128),
        32768,
        tied=True,
        keys={"pooling_type": 3},
    ),
}
