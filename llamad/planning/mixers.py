"""What the layers of mixed models are: which recur and how large their states are, which have experts. Pure.

From llama.cpp's src/models/*.cpp (load_arch_hparams) and llama-hparams.cpp (n_embd_r, n_embd_s).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from llamad.gguf.facts import ModelFacts
from llamad.planning.graphs import is_replayed
from llamad.planning.layers import Layer

Numbers = Mapping[str, int]
_ALL_RECUR = frozenset({"mamba", "mamba2", "falcon-h1", "rwkv7"})
_WITHOUT_HEADS_RECUR = frozenset({"granitehybrid", "jamba", "lfm2", "lfm2moe", "kimi-linear", "nemotron_h"})
_INTERVALS_RECUR = frozenset({"qwen3next", "qwen35", "qwen35moe"})
_BOTH = frozenset({"falcon-h1"})
"""A layer recurs and keeps a cache."""
_MLA = "attention.key_length_mla"
_EXPERT_TENSOR = re.compile(r"blk\.(\d+)\.ffn_(up_exps|gate_up_exps|up_shexp|up)\.weight")


def layered(facts: ModelFacts, numbers: Numbers, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """The layers with what their architecture and their tensors say beyond the header's generic keys."""
    if facts.n_expert:
        layers = _with_experts(facts, layers)
    if _MLA in numbers:
        layers = tuple(replace(layer, v_width=0) for layer in layers)
    recurring = _recurring(facts, numbers)
    if any(recurring):
        layers = tuple(
            _recurrent(facts, numbers, layer) if flag else layer
            for layer, flag in zip(layers, recurring, strict=False)
        )
    return layers


def expert_matrices(facts: ModelFacts) -> tuple[int, int]:
    """Bytes of the largest matrices of a layer's experts: up or gate, and down."""
    up = down = 0
    for tensor in facts.tensors if facts.n_expert else ():
        if tensor.name.endswith("_exps.weight"):
            if "down" in tensor.name:
                down = max(down, tensor.size_bytes)
            else:
                up = max(up, tensor.size_bytes)
    return up, down


def _with_experts(facts: ModelFacts, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """A layer has experts if it has their tensors; then its dense part is the experts that every token takes."""
    widths: dict[tuple[int, str], int] = {}
    for tensor in facts.tensors:
        if ".ffn_" in tensor.name and (match := _EXPERT_TENSOR.fullmatch(tensor.name)):
            widths[int(match[1]), match[2]] = tensor.dims[1]
    found = []
    for index, layer in enumerate(layers):
        joined = widths.get((index, "gate_up_exps"), 0) // 2
        width = widths.get((index, "up_exps"), joined)
        if width:
            shared = widths.get((index, "up_shexp"), 0) or widths.get((index, "up"), 0)
            found.append(replace(layer, ff=shared, ff_expert=width, experts_used=facts.n_expert_used))
        else:
            found.append(replace(layer, experts_used=0, ff_expert=0))
    told = any(kind != "up" for _, kind in widths)
    if not told and is_replayed(facts.architecture, ("expert_count",)):
        return tuple(replace(layer, ff=0) for layer in layers)  # a header alone: its width is that of the experts
    return tuple(found) if told else layers


def _recurring(facts: ModelFacts, numbers: Numbers) -> tuple[bool, ...]:
    count, name = facts.n_layers, facts.architecture
    if name in _ALL_RECUR:
        return (True,) * count
    if name in _WITHOUT_HEADS_RECUR:
        mixes = [name != "nemotron_h" or facts.n_ff[index] == 0 for index in range(count)]
        return tuple(facts.n_head_kv[index] == 0 and mixes[index] for index in range(count))
    if name in _INTERVALS_RECUR:
        flags = facts.hparams.get(f"{name}.attention.recurrent_layers")
        if isinstance(flags, tuple) and len(flags) >= count:
            return tuple(bool(flag) for flag in flags[:count])
        interval = max(1, numbers.get("full_attention_interval", 4))
        return tuple((index + 1) % interval != 0 for index in range(count))
    return (False,) * count


def _recurrent(facts: ModelFacts, numbers: Numbers, layer: Layer) -> Layer:
    conv, scan = _STATES.get(facts.architecture, _state_space)(facts, numbers, layer)
    if facts.architecture in _BOTH:
        return replace(layer, conv_state=conv, scan_state=scan)
    return replace(layer, k_width=0, v_width=0, conv_state=conv, scan_state=scan)


def _state_space(_facts: ModelFacts, numbers: Numbers, _layer: Layer) -> tuple[int, int]:
    inner, state = numbers.get("ssm.inner_size", 0), numbers.get("ssm.state_size", 0)
    wide = inner + 2 * numbers.get("ssm.group_count", 0) * state
    return max(0, numbers.get("ssm.conv_kernel", 0) - 1) * wide, state * inner


def _short_convolution(facts: ModelFacts, numbers: Numbers, _layer: Layer) -> tuple[int, int]:
    return facts.n_embd * max(0, numbers.get("shortconv.l_cache", 0) - 1), 0


def _delta_attention(_facts: ModelFacts, numbers: Numbers, layer: Layer) -> tuple[int, int]:
    head = numbers.get("kda.head_dim", 0)
    return 3 * max(0, numbers.get("ssm.conv_kernel", 0) - 1) * layer.heads * head, head * head * layer.heads


def _time_mix(facts: ModelFacts, numbers: Numbers, _layer: Layer) -> tuple[int, int]:
    shifts = numbers.get("token_shift_count", 2)
    return shifts * facts.n_embd, facts.n_embd * numbers.get("wkv.head_size", 0)


_STATES: Mapping[str, Callable[[ModelFacts, Numbers, Layer], tuple[int, int]]] = {
    "lfm2": _short_convolution,
    "lfm2moe": _short_convolution,
    "kimi-linear": _delta_attention,
    "rwkv7": _time_mix,
}
