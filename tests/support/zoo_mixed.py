"""Shapes of real models that are more than one kind of layer repeated: mixtures of experts, latent attention,
recurrent and hybrid models. Dimensions are those of the published configurations, tensors those of llama.cpp's files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.support.gguf_writer import GgmlType, Tensor, Value, f32, i32s, string, u32
from tests.support.zoo_parts import (
    Attention,
    DeltaNet,
    Dense,
    Experts,
    Kda,
    Latent,
    Mamba,
    Part,
    ShortConv,
    TimeMix,
    stored,
)

Layer = tuple[Part, ...]


@dataclass(frozen=True)
class MixedShape:
    """A model as a list of layers, each a tuple of parts. The last `nextn` layers predict further tokens."""

    title: str
    arch: str
    embd: int
    vocab: int
    ctx_train_tokens: int
    blocks: tuple[Layer, ...]
    tied: bool = False
    nextn: int = 0
    norms: tuple[str, ...] = ("attn_norm.weight", "ffn_norm.weight")
    output_norm: str = "output_norm.weight"
    extra: Mapping[str, Value] = field(default_factory=dict)
    """Keys that are the architecture's own; `feed_forward_length` and the like win over those of the parts."""
    per_layer: tuple[str, ...] = ()
    """Keys that the header has as an array: 0 where a layer has no such part."""
    matrices: GgmlType | None = None
    """A type for every matrix, instead of those of Q4_K_M."""

    @property
    def layers(self) -> int:
        """How many blocks the file has."""
        return len(self.blocks)

    def metadata(self, *, ctx_train_tokens: int | None = None) -> dict[str, Value]:
        """The keys that describe the shape, without those of the tokenizer."""
        keys: dict[str, Value] = {
            "block_count": u32(self.layers),
            "context_length": u32(ctx_train_tokens or self.ctx_train_tokens),
            "embedding_length": u32(self.embd),
            "feed_forward_length": u32(0),
            "attention.head_count": u32(0),
            "attention.layer_norm_rms_epsilon": f32(1e-5),
        }
        for part in (part for block in reversed(self.blocks) for part in block):
            keys |= part.keys()
        for key in self.per_layer:
            keys[key] = i32s([self._number(block, key) for block in self.blocks])
        if self.nextn:
            keys["nextn_predict_layers"] = u32(self.nextn)
        keys |= self.extra
        return {
            "general.architecture": string(self.arch),
            "general.type": string("model"),
            "general.name": string(self.title),
            "general.file_type": u32(15),  # MOSTLY_Q4_K_M
            "general.quantization_version": u32(2),
        } | {f"{self.arch}.{key}": value for key, value in keys.items()}

    @staticmethod
    def _number(block: Layer, key: str) -> int:
        numbers = (part.keys().get(key) for part in block)
        found = [number.payload for number in numbers if number is not None]
        return int.from_bytes(found[0], "little") if found else 0

    def tensors(self) -> list[Tensor]:
        """Every tensor of the file, in file order."""
        found = [self._stored("token_embd.weight", (self.embd, self.vocab))]
        if self.arch == "rwkv7":
            found += [Tensor(f"token_embd_norm.{end}", (self.embd,), GgmlType.F32) for end in ("weight", "bias")]
        for number, block in enumerate(self.blocks):
            names = [(norm, (self.embd,)) for norm in self.norms]
            named = [*names, *(tensor for part in block for tensor in part.tensors(self.embd))]
            if number >= self.layers - self.nextn:
                named += [(f"nextn.{name}.weight", (self.embd,)) for name in ("enorm", "hnorm", "shared_head_norm")]
                named.append(("nextn.eh_proj.weight", (2 * self.embd, self.embd)))
            found += [self._stored(f"blk.{number}.{name}", dims) for name, dims in named]
        found.append(Tensor(self.output_norm, (self.embd,), GgmlType.F32))
        if self.arch == "rwkv7":
            found.append(Tensor("output_norm.bias", (self.embd,), GgmlType.F32))
        if not self.tied:
            found.append(self._stored("output.weight", (self.embd, self.vocab)))
        return found

    def _stored(self, name: str, dims: tuple[int, ...]) -> Tensor:
        kind = self.matrices
        if kind is None and self.tied and name == "token_embd.weight":
            kind = GgmlType.Q6_K  # it is the output matrix too
        return stored(name, dims, kind)


def _alike(count: int, *parts: Part) -> tuple[Layer, ...]:
    return (parts,) * count


def _led(dense: int, count: int, mixer: Part, first: Dense, rest: Experts) -> tuple[Layer, ...]:
    """`count` layers, the first `dense` of them without experts."""
    return _alike(dense, mixer, first) + _alike(count - dense, mixer, rest)


def _every(period: int, count: int, recurrent: Part, attention: Part, ffn: Part) -> tuple[Layer, ...]:
    """`count` layers, every `period`-th with attention."""
    return tuple((recurrent if (n + 1) % period else attention, ffn) for n in range(count))


def _at(places: tuple[int, ...], count: int, recurrent: Part, attention: Part, *ffns: Part) -> tuple[Layer, ...]:
    """`count` layers with attention at `places`; feed-forward networks are taken in turn."""
    return tuple((attention if n in places else recurrent, ffns[n % len(ffns)]) for n in range(count))


def _spelled(pattern: str, parts: Mapping[str, Part]) -> tuple[Layer, ...]:
    """One part a layer, as Nemotron-H's configuration spells them."""
    return tuple((parts[letter],) for letter in pattern)


_POST_NORMS = ("attn_norm.weight", "post_attention_norm.weight")
_SECTIONS = {"rope.dimension_sections": i32s([11, 11, 10, 0]), "rope.dimension_count": u32(64)}
_GRANITE = {"logit_scale": f32(6.0), "residual_scale": f32(0.22), "embedding_scale": f32(12.0)}
_KV_PER_LAYER = ("attention.head_count_kv",)


def _ff(length: int) -> dict[str, Value]:
    return {"feed_forward_length": u32(length)}


def _qwen35(title: str, layers: int, embd: int, attention: tuple[int, int], heads: int, ffn: Part, **more: object) -> MixedShape:
    arch = "qwen35" if isinstance(ffn, Dense) else "qwen35moe"
    mixer = Attention(*attention, 256, qk_norm=True, gated=True)
    blocks = _every(4, layers, DeltaNet(128, 16, heads), mixer, ffn)
    return MixedShape(
        title, arch, embd, 248320, 262144, blocks, norms=_POST_NORMS, extra=_SECTIONS, **more  # type: ignore[arg-type]
    )


def _latent(title: str, embd: int, vocab: int, ctx: int, blocks: tuple[Layer, ...], nextn: int = 0) -> MixedShape:
    return MixedShape(title, "deepseek2", embd, vocab, ctx, blocks, nextn=nextn, extra={"leading_dense_block_count": u32(_dense(blocks))})


def _dense(blocks: tuple[Layer, ...]) -> int:
    return sum(any(isinstance(part, Dense) for part in block) for block in blocks)


_V2_LITE = Latent(16, 512, 128, 64, 128)
_V3 = Latent(128, 512, 128, 64, 128, q_rank=1536)
_V3_EXPERTS = Experts(256, 8, 2048, 2048, 1, bias=True, scoring=2)
_V2_BLOCKS = _led(1, 27, _V2_LITE, Dense(10944), Experts(64, 6, 1408, 2816, 2))
_OLD = Latent(16, 512, 128, 64, 128, absorbed=False)
_OLD_BLOCKS = _led(1, 27, _OLD, Dense(10944), Experts(64, 6, 1408, 2816, 2))
_GLM_FLASH = Latent(20, 512, 192, 64, 256, q_rank=768)
_AIR = Attention(96, 8, 128, bias=True)
_GLM45 = Attention(96, 8, 128, bias=True, qk_norm=True)
_NEMOTRON_8B = "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"
_NEMOTRON_9B = "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-"
_NEMOTRON_30B = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"
_LFM2_1B = (2, 5, 8, 10, 12, 14)
_LFM2_3B = (2, 6, 10, 14, 18, 21, 24, 27)
_LFM2_8B = (2, 6, 10, 14, 18, 21)
_LFM2_ATTENTION = Attention(32, 8, 64, qk_norm=True)
_GRANITE_LAYERS = (5, 15, 25, 35)
_KIMI = Latent(32, 512, 128, 64, 128)
_KIMI_PLACES = (3, 7, 11, 15, 19, 23, 26)


def _lfm2(title: str, arch: str, blocks: tuple[Layer, ...], **more: object) -> MixedShape:
    return MixedShape(
        title, arch, 2048, 65536, 128000, blocks, tied=True, per_layer=_KV_PER_LAYER,
        output_norm="token_embd_norm.weight", **more,  # type: ignore[arg-type]
    )


def _kimi_blocks() -> tuple[Layer, ...]:
    experts = Experts(256, 8, 1024, 1024, 1, bias=True, scoring=2)
    mixers = [_KIMI if n in _KIMI_PLACES else Kda(32, 128) for n in range(27)]
    return tuple((mixer, experts if n else Dense(9216)) for n, mixer in enumerate(mixers))


def _lfm2moe_blocks() -> tuple[Layer, ...]:
    experts = Experts(32, 4, 1792, bias=True, scoring=2)
    mixers = [_LFM2_ATTENTION if n in _LFM2_8B else ShortConv() for n in range(24)]
    return tuple((mixer, experts if n > 1 else Dense(7168)) for n, mixer in enumerate(mixers))


_MIXTURES = {
    "qwen3-30b-a3b": MixedShape(
        "Qwen3 30B A3B", "qwen3moe", 2048, 151936, 40960,
        _alike(48, Attention(32, 4, 128, qk_norm=True), Experts(128, 8, 768)), extra=_ff(6144),
    ),
    "qwen3-235b-a22b": MixedShape(
        "Qwen3 235B A22B", "qwen3moe", 4096, 151936, 40960,
        _alike(94, Attention(64, 4, 128, qk_norm=True), Experts(128, 8, 1536)), extra=_ff(12288),
    ),
    "qwen15-moe-a27b": MixedShape(
        "Qwen1.5 MoE A2.7B", "qwen2moe", 2048, 151936, 32768,
        _alike(24, Attention(16, 16, 128, bias=True), Experts(60, 4, 1408, 5632, shared_gate=True)), extra=_ff(5632),
    ),
    "qwen2-57b-a14b": MixedShape(
        "Qwen2 57B A14B", "qwen2moe", 3584, 151936, 131072,
        _alike(28, Attention(28, 4, 128, bias=True), Experts(64, 8, 2560, 20480, shared_gate=True)), extra=_ff(18944),
    ),
    "mixtral-8x7b": MixedShape(
        "Mixtral 8x7B", "llama", 4096, 32000, 32768,
        _alike(32, Attention(32, 8, 128), Experts(8, 2, 14336, length_key=False)),
    ),
    "mixtral-8x22b": MixedShape(
        "Mixtral 8x22B", "llama", 6144, 32768, 65536,
        _alike(56, Attention(48, 8, 128), Experts(8, 2, 16384, length_key=False)),
    ),
    "llama4-scout": MixedShape(
        "Llama 4 Scout", "llama4", 5120, 202048, 1048576,
        _alike(48, Attention(40, 8, 128), Experts(16, 1, 8192, 8192)),
        extra=_ff(16384) | {"interleave_moe_layer_step": u32(1)},
    ),
    "llama4-maverick": MixedShape(
        "Llama 4 Maverick", "llama4", 5120, 202048, 1048576,
        tuple((Attention(40, 8, 128), Experts(128, 1, 8192, 8192) if n % 2 else Dense(16384)) for n in range(48)),
        extra=_ff(16384) | {"interleave_moe_layer_step": u32(2)},
    ),
    "deepseek-v2-lite": _latent("DeepSeek V2 Lite", 2048, 102400, 163840, _V2_BLOCKS),
    "deepseek-v2-lite-old": _latent("DeepSeek V2 Lite, old file", 2048, 102400, 163840, _OLD_BLOCKS),
    "deepseek-v3": _latent("DeepSeek V3", 7168, 129280, 163840, _led(3, 61, _V3, Dense(18432), _V3_EXPERTS)),
    "kimi-k2": _latent(
        "Kimi K2", 7168, 163840, 131072,
        _led(1, 61, Latent(64, 512, 128, 64, 128, q_rank=1536), Dense(18432), Experts(384, 8, 2048, 2048, 1, bias=True, scoring=2)),
    ),
    "glm-47-flash": _latent(
        "GLM 4.7 Flash", 2048, 154880, 202752,
        _led(1, 48, _GLM_FLASH, Dense(10240), Experts(64, 4, 1536, 1536, 1, bias=True, scoring=2)), nextn=1,
    ),
    "glm-45-air": MixedShape(
        "GLM 4.5 Air", "glm4moe", 4096, 151552, 131072,
        _led(1, 47, _AIR, Dense(10944), Experts(128, 8, 1408, 1408, 1, bias=True, scoring=2)),
        nextn=1, norms=_POST_NORMS, extra={"leading_dense_block_count": u32(1), "rope.dimension_count": u32(64)},
    ),
    "glm-45": MixedShape(
        "GLM 4.5", "glm4moe", 5120, 151552, 131072,
        _led(3, 93, _GLM45, Dense(12288), Experts(160, 8, 1536, 1536, 1, bias=True, scoring=2)),
        nextn=1, norms=_POST_NORMS, extra={"leading_dense_block_count": u32(3), "rope.dimension_count": u32(64)},
    ),
    "granite-31-1b-a400m": MixedShape(
        "Granite 3.1 1B A400M", "granitemoe", 1024, 49155, 131072,
        _alike(24, Attention(16, 8, 64), Experts(32, 8, 512, length_key=False)), tied=True, extra=_GRANITE,
    ),
    "granite-31-3b-a800m": MixedShape(
        "Granite 3.1 3B A800M", "granitemoe", 1536, 49155, 131072,
        _alike(32, Attention(24, 8, 64), Experts(40, 8, 512, length_key=False)), tied=True, extra=_GRANITE,
    ),
    "ernie-45-21b-a3b": MixedShape(
        "Ernie 4.5 21B A3B", "ernie4_5-moe", 2560, 103424, 131072,
        _led(1, 28, Attention(20, 4, 128), Dense(12288), Experts(64, 6, 1536, 3072, bias=True)), tied=True,
        extra={"leading_dense_block_count": u32(1), "interleave_moe_layer_step": u32(1)},
    ),
    "ernie-45-300b-a47b": MixedShape(
        "Ernie 4.5 300B A47B", "ernie4_5-moe", 8192, 103424, 131072,
        _led(3, 54, Attention(64, 8, 128), Dense(28672), Experts(64, 8, 3584, bias=True)), tied=True,
        extra={"leading_dense_block_count": u32(3), "interleave_moe_layer_step": u32(1)},
    ),
    "dots1": MixedShape(
        "dots.llm1", "dots1", 4096, 152064, 32768,
        _led(1, 62, Attention(32, 32, 128, qk_norm=True), Dense(10944), Experts(128, 6, 1408, 2816, 2, bias=True, scoring=2)),
        extra={"leading_dense_block_count": u32(1)},
    ),
    "hunyuan-a13b": MixedShape(
        "Hunyuan A13B", "hunyuan-moe", 4096, 128167, 262144,
        _alike(32, Attention(32, 8, 128, qk_norm=True), Experts(64, 8, 3072, 3072)), tied=True, extra=_ff(3072),
    ),
}  # fmt: skip

_HYBRIDS = {
    "qwen3-next-80b-a3b": MixedShape(
        "Qwen3 Next 80B A3B", "qwen3next", 2048, 151936, 262144,
        _every(4, 48, DeltaNet(128, 16, 32, joined=True), Attention(16, 2, 256, qk_norm=True, gated=True), Experts(512, 10, 512, 512, shared_gate=True)),
        norms=_POST_NORMS, extra=_ff(5120) | {"rope.dimension_count": u32(64)},
    ),
    "qwen35-08b": _qwen35("Qwen3.5 0.8B", 24, 1024, (8, 2), 16, Dense(3584), tied=True),
    "qwen35-4b": _qwen35("Qwen3.5 4B", 32, 2560, (16, 4), 32, Dense(9216), tied=True),
    "qwen35-9b": _qwen35("Qwen3.5 9B", 32, 4096, (16, 4), 32, Dense(12288)),
    "qwen35-27b": _qwen35("Qwen3.5 27B", 64, 5120, (24, 4), 48, Dense(17408)),
    "qwen35-35b-a3b": _qwen35("Qwen3.5 35B A3B", 40, 2048, (16, 2), 32, Experts(256, 8, 512, 512, shared_gate=True)),
    "qwen35-122b-a10b": _qwen35("Qwen3.5 122B A10B", 48, 3072, (32, 2), 64, Experts(256, 8, 1024, 1024, shared_gate=True)),
    "mamba-28b": MixedShape(
        "Mamba 2.8B", "mamba", 2560, 50280, 1048576, _alike(64, Mamba(5120, 16, 160, version=1)), tied=True, norms=("attn_norm.weight",),
    ),
    "falcon-mamba-7b": MixedShape(
        "Falcon Mamba 7B", "mamba", 4096, 65024, 1048576, _alike(64, Mamba(8192, 16, 256, version=1)), norms=("attn_norm.weight",),
    ),
    "mamba2-27b": MixedShape(
        "Mamba 2 2.7B", "mamba2", 2560, 50288, 1048576, _alike(64, Mamba(5120, 128, 80, 1)), tied=True, norms=("attn_norm.weight",),
    ),
    "codestral-mamba-7b": MixedShape(
        "Codestral Mamba 7B", "mamba2", 4096, 32768, 1048576, _alike(64, Mamba(8192, 128, 128, 8)), norms=("attn_norm.weight",),
    ),
    "granite-40-h-small": MixedShape(
        "Granite 4.0 H Small", "granitehybrid", 4096, 100352, 131072,
        _at(_GRANITE_LAYERS, 40, Mamba(8192, 128, 128, 1), Attention(32, 8, 128), Experts(72, 10, 768, 1536, length_key=False)),
        tied=True, extra=_GRANITE, per_layer=_KV_PER_LAYER,
    ),
    "granite-40-h-tiny": MixedShape(
        "Granite 4.0 H Tiny", "granitehybrid", 1536, 100352, 131072,
        _at(_GRANITE_LAYERS, 40, Mamba(3072, 128, 48, 1), Attention(12, 4, 128), Experts(64, 6, 512, 1024, length_key=False)),
        tied=True, extra=_GRANITE, per_layer=_KV_PER_LAYER,
    ),
    "granite-40-h-micro": MixedShape(
        "Granite 4.0 H Micro", "granitehybrid", 2048, 100352, 131072,
        _at(_GRANITE_LAYERS, 40, Mamba(4096, 128, 64, 1), Attention(32, 8, 64), Dense(8192)),
        tied=True, extra=_GRANITE, per_layer=_KV_PER_LAYER,
    ),
    "nemotron-h-8b": MixedShape(
        "Nemotron H 8B", "nemotron_h", 4096, 131072, 8192,
        _spelled(_NEMOTRON_8B, {"M": Mamba(8192, 128, 128, 8), "*": Attention(32, 8, 128), "-": Dense(21504, gated=False)}),
        norms=("attn_norm.weight",), extra={"attention.layer_norm_epsilon": f32(1e-5)}, per_layer=(*_KV_PER_LAYER, "feed_forward_length"),
    ),
    "nemotron-nano-9b": MixedShape(
        "Nemotron Nano 9B v2", "nemotron_h", 4480, 131072, 131072,
        _spelled(_NEMOTRON_9B, {"M": Mamba(10240, 128, 128, 8), "*": Attention(40, 8, 128), "-": Dense(15680, gated=False)}),
        norms=("attn_norm.weight",), extra={"attention.layer_norm_epsilon": f32(1e-5)}, per_layer=(*_KV_PER_LAYER, "feed_forward_length"),
    ),
    "falcon-h1-7b": MixedShape(
        "Falcon H1 7B", "falcon-h1", 3072, 130048, 262144,
        _alike(44, Mamba(3072, 256, 24, 1, gate_norm=False), Attention(12, 2, 128), Dense(12288)), norms=("attn_norm.weight", "ffn_norm"),
    ),
    "falcon-h1-34b": MixedShape(
        "Falcon H1 34B", "falcon-h1", 5120, 261120, 262144,
        _alike(72, Mamba(4096, 256, 32, 2, gate_norm=False), Attention(20, 4, 128), Dense(21504)), norms=("attn_norm.weight", "ffn_norm"),
    ),
    "jamba-mini": MixedShape(
        "Jamba Mini 1.7", "jamba", 4096, 65536, 262144,
        _at((4, 12, 20, 28), 32, Mamba(8192, 16, 256, version=1, inner_norms=True), Attention(32, 8, 128), Dense(14336), Experts(16, 2, 14336, length_key=False)),
        per_layer=_KV_PER_LAYER,
    ),
    "lfm2-12b": _lfm2("LFM2 1.2B", "lfm2", _at(_LFM2_1B, 16, ShortConv(), _LFM2_ATTENTION, Dense(8192))),
    "lfm2-26b": _lfm2("LFM2 2.6B", "lfm2", _at(_LFM2_3B, 30, ShortConv(), _LFM2_ATTENTION, Dense(10752))),
    "lfm2-8b-a1b": _lfm2("LFM2 8B A1B", "lfm2moe", _lfm2moe_blocks(), extra={"leading_dense_block_count": u32(2)}),
    "kimi-linear-48b-a3b": MixedShape(
        "Kimi Linear 48B A3B", "kimi-linear", 2304, 163840, 1048576, _kimi_blocks(),
        extra={"leading_dense_block_count": u32(1)}, per_layer=_KV_PER_LAYER,
    ),
    "rwkv7-29b": MixedShape(
        "RWKV 7 World 2.9B", "rwkv7", 2560, 65536, 1048576,
        # The first layer has the rank of another part, and never uses it.
        _alike(1, TimeMix(64, 10240, 96, 96, 96, 320)) + _alike(31, TimeMix(64, 10240, 96, 96, 64, 320)),
        norms=("attn_norm.weight",), extra={"attention.value_residual_mix_lora_rank": u32(64)},
    ),
}  # fmt: skip

QWEN35_2B = _qwen35("Qwen3.5 2B", 24, 2048, (8, 2), 16, Dense(6144), tied=True)
ZOO: Mapping[str, MixedShape] = _MIXTURES | _HYBRIDS
"""Every shape by its short name."""
