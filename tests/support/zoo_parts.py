"""The parts that layers of mixed models are made of: kinds of attention, recurrent mixers, feed-forward networks.

Each part names its metadata and its tensors as llama.cpp's converters write them. Lengths are in elements.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from tests.support.gguf_writer import GgmlType, Tensor, Value, boolean, f32, u32

# Small or sensitive tensors that llama-quantize leaves in f32.
_PLAIN = ("norm", "ffn_gate_inp", "conv1d", "shortconv.conv", "ssm_a", "ssm_d", "time_mix_lerp", "channel_mix_lerp")
Named = tuple[str, tuple[int, ...]]


class Part(Protocol):
    """One part of a layer: the header's keys (without the architecture) and the tensors (without the block)."""

    def keys(self) -> Mapping[str, Value]: ...
    def tensors(self, embd: int) -> Iterator[Named]: ...


def stored(name: str, dims: tuple[int, ...], kind: GgmlType | None = None) -> Tensor:
    """The tensor with the type that a Q4_K_M file has for it, or `kind` for all matrices."""
    if len(dims) == 1 or any(word in name for word in _PLAIN):
        return Tensor(name, dims, GgmlType.F32)
    if kind is not None:
        return Tensor(name, dims, kind)
    if dims[0] % 256:
        return Tensor(name, dims, GgmlType.F16 if dims[0] % 32 else GgmlType.Q5_0)
    better = name.startswith("output") or "attn_v." in name or "ffn_down" in name
    return Tensor(name, dims, GgmlType.Q6_K if better else GgmlType.Q4_K)


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention. `gated`: the query projection also gives a gate (qwen3next and later)."""

    heads: int
    kv_heads: int
    head_dim: int
    qk_norm: bool = False
    bias: bool = False
    gated: bool = False

    def keys(self) -> Mapping[str, Value]:
        return {
            "attention.head_count": u32(self.heads),
            "attention.head_count_kv": u32(self.kv_heads),
            "attention.key_length": u32(self.head_dim),
            "attention.value_length": u32(self.head_dim),
            "rope.dimension_count": u32(self.head_dim),
        }

    def tensors(self, embd: int) -> Iterator[Named]:
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        widths = {"attn_q": queries * (2 if self.gated else 1), "attn_k": keys, "attn_v": keys}
        for name, width in widths.items():
            yield f"{name}.weight", (embd, width)
            if self.bias:
                yield f"{name}.bias", (width,)
        if self.qk_norm:
            yield "attn_q_norm.weight", (self.head_dim,)
            yield "attn_k_norm.weight", (self.head_dim,)
        yield "attn_output.weight", (queries, embd)


@dataclass(frozen=True)
class Latent:
    """Latent attention (MLA). `absorbed`: the cache holds the latent vector; else, as in old files, full heads."""

    heads: int
    kv_rank: int
    nope: int
    rope: int
    value: int
    q_rank: int = 0
    absorbed: bool = True

    def keys(self) -> Mapping[str, Value]:
        key = self.nope + self.rope
        found = {
            "attention.head_count": u32(self.heads),
            "attention.head_count_kv": u32(1 if self.absorbed else self.heads),
            "attention.key_length": u32(self.kv_rank + self.rope if self.absorbed else key),
            "attention.value_length": u32(self.kv_rank if self.absorbed else self.value),
            "attention.kv_lora_rank": u32(self.kv_rank),
            "rope.dimension_count": u32(self.rope),
        }
        if self.q_rank:
            found["attention.q_lora_rank"] = u32(self.q_rank)
        if self.absorbed:
            found |= {"attention.key_length_mla": u32(key), "attention.value_length_mla": u32(self.value)}
        return found

    def tensors(self, embd: int) -> Iterator[Named]:
        queries = self.heads * (self.nope + self.rope)
        if self.q_rank:
            yield "attn_q_a.weight", (embd, self.q_rank)
            yield "attn_q_a_norm.weight", (self.q_rank,)
            yield "attn_q_b.weight", (self.q_rank, queries)
        else:
            yield "attn_q.weight", (embd, queries)
        yield "attn_kv_a_mqa.weight", (embd, self.kv_rank + self.rope)
        yield "attn_kv_a_norm.weight", (self.kv_rank,)
        if self.absorbed:
            yield "attn_k_b.weight", (self.nope, self.kv_rank, self.heads)
            yield "attn_v_b.weight", (self.kv_rank, self.value, self.heads)
        else:
            yield "attn_kv_b.weight", (self.kv_rank, self.heads * (self.nope + self.value))
        yield "attn_output.weight", (self.heads * self.value, embd)


@dataclass(frozen=True)
class Mamba:
    """A state-space mixer: `version` 1 has one decay a channel, 2 one a head. `rank`: of the time step, or heads."""

    inner: int
    state: int
    rank: int
    groups: int = 0
    conv: int = 4
    version: int = 2
    inner_norms: bool = False  # jamba: norms inside version 1
    gate_norm: bool = True  # falcon-h1 has none

    def keys(self) -> Mapping[str, Value]:
        found = {
            "ssm.conv_kernel": u32(self.conv),
            "ssm.inner_size": u32(self.inner),
            "ssm.state_size": u32(self.state),
            "ssm.time_step_rank": u32(self.rank),
        }
        return found | {"ssm.group_count": u32(self.groups)} if self.groups else found

    def tensors(self, embd: int) -> Iterator[Named]:
        mixed = self.inner + 2 * self.groups * self.state
        yield "ssm_in.weight", (embd, self.inner + mixed + (self.rank if self.version == 2 else 0))
        yield "ssm_conv1d.weight", (self.conv, mixed)
        yield "ssm_conv1d.bias", (mixed,)
        yield from self._steps() if self.version == 1 else self._heads()
        yield "ssm_out.weight", (self.inner, embd)

    def _steps(self) -> Iterator[Named]:
        yield "ssm_x.weight", (self.inner, self.rank + 2 * self.state)
        yield "ssm_dt.weight", (self.rank, self.inner)
        yield "ssm_dt.bias", (self.inner,)
        yield "ssm_a", (self.state, self.inner)
        yield "ssm_d", (self.inner,)
        if self.inner_norms:
            yield "ssm_dt_norm.weight", (self.rank,)
            yield "ssm_b_norm.weight", (self.state,)
            yield "ssm_c_norm.weight", (self.state,)

    def _heads(self) -> Iterator[Named]:
        yield "ssm_dt.bias", (self.rank,)
        yield "ssm_a", (1, self.rank)
        yield "ssm_d", (1, self.rank)
        if self.gate_norm:
            yield "ssm_norm.weight", (self.inner // self.groups, self.groups)


@dataclass(frozen=True)
class DeltaNet:
    """Gated delta net of qwen3next, qwen35 and qwen35moe: `groups` key heads and `heads` value heads of `state`."""

    state: int
    groups: int
    heads: int
    conv: int = 4
    joined: bool = False  # qwen3next: one tensor for beta and alpha

    def keys(self) -> Mapping[str, Value]:
        return {
            "ssm.conv_kernel": u32(self.conv),
            "ssm.inner_size": u32(self.state * self.heads),
            "ssm.state_size": u32(self.state),
            "ssm.time_step_rank": u32(self.heads),
            "ssm.group_count": u32(self.groups),
        }

    def tensors(self, embd: int) -> Iterator[Named]:
        values = self.state * self.heads
        mixed = values + 2 * self.state * self.groups
        yield "attn_qkv.weight", (embd, mixed)
        yield "attn_gate.weight", (embd, values)
        yield "ssm_conv1d.weight", (self.conv, mixed)
        yield "ssm_dt.bias", (self.heads,)
        yield "ssm_a", (self.heads,)
        if self.joined:
            yield "ssm_ba.weight", (embd, 2 * self.heads)
        else:
            yield "ssm_beta.weight", (embd, self.heads)
            yield "ssm_alpha.weight", (embd, self.heads)
        yield "ssm_norm.weight", (self.state,)
        yield "ssm_out.weight", (values, embd)


@dataclass(frozen=True)
class Kda:
    """Kimi's delta attention: `heads` of `head_dim`, a short convolution each for q, k and v."""

    heads: int
    head_dim: int
    conv: int = 4

    def keys(self) -> Mapping[str, Value]:
        return {"ssm.conv_kernel": u32(self.conv), "kda.head_dim": u32(self.head_dim)}

    def tensors(self, embd: int) -> Iterator[Named]:
        width = self.heads * self.head_dim
        for letter in "qkv":
            yield f"ssm_conv1d_{letter}.weight", (self.conv, 1, width, 1)
            yield f"attn_{letter}.weight", (embd, width)
        for letter in "fg":
            yield f"ssm_{letter}_a.weight", (embd, self.head_dim)
            yield f"ssm_{letter}_b.weight", (self.head_dim, width)
        yield "ssm_beta.weight", (embd, self.heads)
        yield "ssm_a", (1, self.heads)
        yield "ssm_dt.bias", (width,)
        yield "ssm_norm.weight", (self.head_dim,)
        yield "attn_output.weight", (width, embd)


@dataclass(frozen=True)
class ShortConv:
    """LFM2's gated short convolution."""

    cache: int = 3

    def keys(self) -> Mapping[str, Value]:
        return {"shortconv.l_cache": u32(self.cache)}

    def tensors(self, embd: int) -> Iterator[Named]:
        yield "shortconv.conv.weight", (self.cache, embd)
        yield "shortconv.in_proj.weight", (embd, 3 * embd)
        yield "shortconv.out_proj.weight", (embd, embd)


@dataclass(frozen=True)
class TimeMix:
    """RWKV 7's time mix and channel mix: a whole layer."""

    head_dim: int
    ff: int
    decay: int
    iclr: int
    value: int
    gate: int

    def keys(self) -> Mapping[str, Value]:
        return {
            "wkv.head_size": u32(self.head_dim),
            "feed_forward_length": u32(self.ff),
            "attention.head_count": u32(0),
            "attention.layer_norm_epsilon": f32(1e-5),
            "attention.decay_lora_rank": u32(self.decay),
            "attention.iclr_lora_rank": u32(self.iclr),
            "attention.value_residual_mix_lora_rank": u32(self.value),
            "attention.gate_lora_rank": u32(self.gate),
        }

    def tensors(self, embd: int) -> Iterator[Named]:
        for name in ("attn_norm.bias", "attn_norm_2.weight", "attn_norm_2.bias"):
            yield name, (embd,)
        for letter, rank in (("w", self.decay), ("a", self.iclr), ("v", self.value)):
            yield f"time_mix_{letter}0.weight", (embd,)
            yield f"time_mix_{letter}1.weight", (embd, rank)
            yield f"time_mix_{letter}2.weight", (rank, embd)
        yield "time_mix_g1.weight", (embd, self.gate)
        yield "time_mix_g2.weight", (self.gate, embd)
        yield "time_mix_lerp_fused.weight", (embd, 1, 1, 6)
        for name in ("time_mix_k_k.weight", "time_mix_k_a.weight", "time_mix_r_k.weight"):
            yield name, (embd,)
        for name in ("key", "value", "receptance", "output"):
            yield f"time_mix_{name}.weight", (embd, embd)
        yield "time_mix_ln.weight", (embd,)
        yield "time_mix_ln.bias", (embd,)
        yield "channel_mix_lerp_k.weight", (embd, 1, 1)
        yield "channel_mix_key.weight", (embd, self.ff)
        yield "channel_mix_value.weight", (self.ff, embd)


@dataclass(frozen=True)
class Dense:
    """A feed-forward network, with a gate or (nemotron) without."""

    ff: int
    gated: bool = True

    def keys(self) -> Mapping[str, Value]:
        return {"feed_forward_length": u32(self.ff)}

    def tensors(self, embd: int) -> Iterator[Named]:
        if self.gated:
            yield "ffn_gate.weight", (embd, self.ff)
        yield "ffn_up.weight", (embd, self.ff)
        yield "ffn_down.weight", (self.ff, embd)


@dataclass(frozen=True)
class Experts:
    """A mixture of experts. `shared`: width of the experts that always run; `shared_gate`: they have a gate."""

    count: int
    used: int
    ff: int
    shared: int = 0
    shared_count: int = 0
    shared_gate: bool = False
    bias: bool = False  # a bias on the routing, not on the weights
    gated: bool = True
    length_key: bool = True  # llama and granite have feed_forward_length for it
    scoring: int = 0  # expert_gating_func: 1 = softmax, 2 = sigmoid

    def keys(self) -> Mapping[str, Value]:
        length = "expert_feed_forward_length" if self.length_key else "feed_forward_length"
        found = {"expert_count": u32(self.count), "expert_used_count": u32(self.used), length: u32(self.ff)}
        if self.shared_count:
            found |= {
                "expert_shared_count": u32(self.shared_count),
                "expert_weights_scale": f32(2.5),
                "expert_weights_norm": boolean(True),
            }
        if self.shared and not self.shared_count:
            found["expert_shared_feed_forward_length"] = u32(self.shared)
        if self.scoring:
            found["expert_gating_func"] = u32(self.scoring)
        return found

    def tensors(self, embd: int) -> Iterator[Named]:
        yield "ffn_gate_inp.weight", (embd, self.count)
        if self.bias:
            yield "exp_probs_b.bias", (self.count,)
        gates = ("ffn_gate", "ffn_up") if self.gated else ("ffn_up",)
        for name in gates:
            yield f"{name}_exps.weight", (embd, self.ff, self.count)
        yield "ffn_down_exps.weight", (self.ff, embd, self.count)
        if self.shared_gate:
            yield "ffn_gate_inp_shexp.weight", (embd,)
        if self.shared:
            for name in gates:
                yield f"{name}_shexp.weight", (embd, self.shared)
            yield "ffn_down_shexp.weight", (self.shared, embd)
