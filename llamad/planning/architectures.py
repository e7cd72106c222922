"""What each architecture does its own way: windows, shared caches, recurrence, and how sure its graph's form is.

Pure. Sources are llama.cpp's src/models/*.cpp, llama-hparams.cpp and llama-kv-cache*.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from typing import cast

from llamad.gguf.facts import ModelFacts
from llamad.planning.graphs import is_replayed
from llamad.planning.layers import Layer, ModelShape, Peaks, Proof
from llamad.planning.mixers import expert_matrices, layered

# Graphs compared with llama.cpp's own figures: a module of `graphs` and a function there. `llama` also covers Mistral
# and most fine-tunes.
_GRAPHS: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(
        ("llama", "mistral3", "qwen2", "qwen3", "phi3", "gemma2", "gemma3", "glm4", "chatglm", "granite",
         "nomic-bert"),
        ("dense", "gated_peaks"),
    ),
    "starcoder2": ("dense", "ungated_peaks"),
    "olmo2": ("dense", "post_norm_peaks"),
    "exaone4": ("dense", "post_norm_peaks"),
    "smollm3": ("dense", "unrotated_peaks"),
    "command-r": ("dense", "parallel_peaks"),
    "cohere2": ("dense", "parallel_peaks"),
    "gptneox": ("dense", "parallel_ungated_peaks"),
    "falcon": ("dense", "falcon_peaks"),
    "bert": ("dense", "bert_peaks"),
    "gpt-oss": ("dense", "gpt_oss_peaks"),
    "gemma3n": ("gemma", "gemma3n_peaks"),
    "gemma4": ("gemma", "gemma4_peaks"),
    "qwen3moe": ("plain", "plain_peaks"),
}  # fmt: skip
_PROVED_EXPERTS = frozenset({"qwen3moe", "gpt-oss", "gemma4"})
# Measured: see `ModelShape`.
_PIPELINE_COPIES: Mapping[str, int] = {"gemma3n": 14, "gemma4": 4, "bert": 2}
_KEPT_COPIES: Mapping[str, int] = {
    **dict.fromkeys(("falcon", "gptneox", "starcoder2"), 2),
    **dict.fromkeys(("command-r", "cohere2", "gemma4"), 1),
}
_ENCODERS = frozenset({
    "bert", "jina-bert-v2", "jina-bert-v3", "nomic-bert", "nomic-bert-moe", "neo-bert", "eurobert", "wavtokenizer-dec",
    "modern-bert", "gemma-embedding", "dream", "llada", "llada-moe", "rnd1",
})  # fmt: skip
_WINDOW_IGNORED = frozenset({"phi3", "llama", "mistral3", "qwen2", "qwen3", "qwen3moe"})
# Every n-th layer sees all cells, the others a window: of each group the last, or (below) the first.
_WINDOW_GROUPS: Mapping[str, int] = {
    "gemma2": 2, "gemma3": 6, "gemma-embedding": 6, "gemma3n": 5, "gpt-oss": 2, "llama4": 4, "cohere2": 4,
    "olmo2": 4, "exaone4": 4, "exaone-moe": 4, "afmoe": 4, "mellum": 4, "muse-glimmer": 4, "plamo3": 8,
}  # fmt: skip
_WINDOW_GROUPS_FULL_FIRST: Mapping[str, int] = {
    "laguna": 4,
    "cohere2moe": 4,
    "smallthinker": 4,
    "modern-bert": 3,
}
_DEFAULT_WINDOWS: Mapping[str, int] = {"llama4": 8192, "gemma2": 4096, "smallthinker": 4096, "exaone4": 4096}
GEMMA3N_INPUT = 256
"""Elements per token and layer that Gemma 3n looks up (llama-hparams.h: n_embd_altup); no key names it."""
_OWN_CACHES = ("attention.indexer.",)
_OWN_CACHE_ARCHITECTURES = frozenset({"deepseek4", "minimax-m3", "qwen4exp"})
_RECURRENT = ("ssm.", "wkv.", "shortconv.", "kda.")


def shape_of(facts: ModelFacts) -> ModelShape:
    """The shape of a model, and how far its bytes can be computed. About a millisecond."""
    numbers = _numbers(facts)
    layers = _layers(facts, numbers)
    proof, doubts = _judge(facts, layers)
    return ModelShape(
        architecture=facts.architecture,
        embd=facts.n_embd,
        vocab=facts.n_vocab,
        layers=layers,
        peaks=_peaks(facts.architecture, replayed=is_replayed(facts.architecture, numbers)),
        proof=proof,
        doubts=doubts,
        numbers=numbers,
        expert_matrices=expert_matrices(facts),
        looked_up=_looked_up(facts, numbers),
        pipeline_copies=_PIPELINE_COPIES.get(facts.architecture, 0),
        kept_copies=_KEPT_COPIES.get(facts.architecture, 0),
    )


def _numbers(facts: ModelFacts) -> dict[str, int]:
    prefix = f"{facts.architecture}."
    found = {
        key.removeprefix(prefix): value
        for key, value in facts.hparams.items()
        if isinstance(value, int) and value >= 0 and key.startswith(prefix)
    }
    return {"expert_count": facts.n_expert, **found} if facts.n_expert else found


def _peaks(architecture: str, *, replayed: bool) -> Peaks:
    """The family's module is imported only for a model of it."""
    if replayed:
        from llamad.planning.graphs.replay import replayed_peaks

        return replayed_peaks
    module, function = _GRAPHS.get(architecture, ("plain", "plain_peaks"))
    return cast("Peaks", getattr(import_module(f"llamad.planning.graphs.{module}"), function))


def _layers(facts: ModelFacts, numbers: Mapping[str, int]) -> tuple[Layer, ...]:
    windows = _windows(facts)
    layers = []
    for index in range(facts.n_layers - facts.n_layers_nextn):
        heads_kv = facts.n_head_kv[index]
        head_k, head_v = facts.head_k, facts.head_v
        if windows[index]:
            head_k = numbers.get("attention.key_length_swa", head_k)
            head_v = numbers.get("attention.value_length_swa", head_v)
        layers.append(
            Layer(
                heads=facts.n_head[index],
                heads_kv=heads_kv,
                head_k=head_k,
                head_v=head_v,
                k_width=heads_kv * head_k,
                v_width=heads_kv * head_v,
                window=windows[index],
                ff=facts.n_ff[index],
                experts_used=facts.n_expert_used if facts.n_expert else 0,
                ff_expert=facts.n_ff_expert,
            )
        )
    return layered(facts, numbers, _shared(facts, numbers, tuple(layers)))


def _shared(facts: ModelFacts, numbers: Mapping[str, int], layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Later layers of some models read the caches of earlier ones; encoders have none."""
    owners = len(layers) - numbers.get("attention.shared_kv_layers", 0)
    if facts.architecture == "gemma3n":
        owners = 20
    if facts.architecture in _ENCODERS:
        return tuple(replace(layer, k_width=0, v_width=0) for layer in layers)
    return tuple(
        layer if index < owners else replace(layer, k_width=0, v_width=0, shares=True)
        for index, layer in enumerate(layers)
    )


def _looked_up(facts: ModelFacts, numbers: Mapping[str, int]) -> int:
    """Elements per token that the host looks up beside the embedding: an input a layer, or positions."""
    if facts.architecture == "bert":
        return facts.n_embd
    if facts.architecture == "gemma3n":
        return facts.n_embd + GEMMA3N_INPUT * facts.n_layers
    return numbers.get("embedding_length_per_layer_input", 0) * facts.n_layers


def _windows(facts: ModelFacts) -> tuple[int, ...]:
    """How many cells each layer sees; 0 = all of them."""
    count, name = facts.n_layers, facts.architecture
    if name == "exaone4" and count != 64:
        return (0,) * count
    window = facts.sliding_window or _DEFAULT_WINDOWS.get(name, 0)
    if not window or name in _WINDOW_IGNORED:
        return (0,) * count
    pattern = facts.hparams.get(f"{name}.attention.sliding_window_pattern")
    if isinstance(pattern, tuple) and len(pattern) >= count:
        return tuple(window if flag else 0 for flag in cast("tuple[object, ...]", pattern)[:count])
    group = (
        pattern
        if isinstance(pattern, int) and not isinstance(pattern, bool)
        else _WINDOW_GROUPS.get(name, 0)
    )
    if name in _WINDOW_GROUPS_FULL_FIRST:
        first = group or _WINDOW_GROUPS_FULL_FIRST[name]
        return tuple(window if index % first else 0 for index in range(count))
    if group < 1:
        return (0,) * count
    return tuple(window if index % group < group - 1 else 0 for index in range(count))


def _judge(facts: ModelFacts, layers: tuple[Layer, ...]) -> tuple[Proof, tuple[str, ...]]:
    keys = [key.partition(".")[2] for key in facts.hparams]
    if is_replayed(facts.architecture, keys):
        return "proved", ()
    unknown: list[str] = []
    if any(key.startswith(_RECURRENT) for key in keys):
        unknown.append("it has recurrent layers")
    if facts.architecture in _OWN_CACHE_ARCHITECTURES or any(key.startswith(_OWN_CACHES) for key in keys):
        unknown.append("it keeps caches of its own beside the usual one")
    if not any(layer.k_width for layer in layers) and facts.architecture not in _ENCODERS:
        unknown.append("it has no attention layers with a cache")
    if unknown:
        return "unknown", tuple(unknown)
    doubts: list[str] = []
    if facts.n_expert and facts.architecture not in _PROVED_EXPERTS:
        doubts.append("it is a mixture of experts")
    if any(key.endswith("_mla") for key in keys):
        doubts.append("it uses latent attention (MLA)")
    if facts.architecture not in _GRAPHS:
        if facts.sliding_window:
            doubts.append("some of its layers see a sliding window only")
        if not doubts:
            doubts.append(f'the architecture "{facts.architecture}" was not compared with llama.cpp yet')
    return ("bounded" if doubts else "proved"), tuple(doubts)
