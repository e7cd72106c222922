"""What each architecture does its own way: windows, shared caches, recurrence, and how sure its graph's form is.

Pure. Sources are llama.cpp's src/models/*.cpp, llama-hparams.cpp and llama-kv-cache*.cpp.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from llamad.gguf.facts import ModelFacts
from llamad.planning.graphs import is_replayed
from llamad.planning.layers import Layer, ModelShape, Proof
from llamad.planning.mixers import expert_matrices, layered

if TYPE_CHECKING:
    from llamad.planning.choice import Choice

# Dense architectures whose compute buffer was compared with llama.cpp's own figures. `llama` also covers Mistral
# and most fine-tunes.
_PROVED = frozenset({"llama", "mistral3", "qwen2", "qwen3", "phi3"})
_PROVED_EXPERTS = frozenset({"qwen3moe"})
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
_DEFAULT_WINDOWS: Mapping[str, int] = {"llama4": 8192, "gemma2": 4096, "smallthinker": 4096}
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
        peaks=_plain,
        proof=proof,
        doubts=doubts,
        numbers=numbers,
        expert_matrices=expert_matrices(facts),
    )


def _numbers(facts: ModelFacts) -> dict[str, int]:
    prefix = f"{facts.architecture}."
    found = {
        key.removeprefix(prefix): value
        for key, value in facts.hparams.items()
        if isinstance(value, int) and key.startswith(prefix)
    }
    return {"expert_count": facts.n_expert, **found} if facts.n_expert else found


def _plain(shape: ModelShape, layer: Layer, choice: Choice, extra: int, scratch_bytes: int) -> Iterable[int]:
    """The graph's allocations where they are known, else those of a plain transformer."""
    if shape.replay:
        return shape.replay.peaks(shape, layer, choice, extra, scratch_bytes)
    from llamad.planning.graphs.plain import plain_peaks

    return plain_peaks(shape, layer, choice, extra, scratch_bytes)


def _layers(facts: ModelFacts, numbers: Mapping[str, int]) -> tuple[Layer, ...]:
    windows = _windows(facts)
    layers = []
    for index in range(facts.n_layers - facts.n_layers_nextn):
        heads_kv = facts.n_head_kv[index]
        layers.append(
            Layer(
                heads=facts.n_head[index],
                heads_kv=heads_kv,
                head_k=facts.head_k,
                head_v=facts.head_v,
                k_width=heads_kv * facts.head_k,
                v_width=heads_kv * facts.head_v,
                window=windows[index],
                ff=facts.n_ff[index],
                experts_used=facts.n_expert_used if facts.n_expert else 0,
                ff_expert=facts.n_ff_expert,
            )
        )
    return layered(facts, numbers, _shared(facts, numbers, tuple(layers)))


def _shared(facts: ModelFacts, numbers: Mapping[str, int], layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Later layers of some models read the caches of earlier ones."""
    owners = len(layers) - numbers.get("attention.shared_kv_layers", 0)
    if facts.architecture == "gemma3n":
        owners = 20
    return tuple(
        layer if index < owners else replace(layer, k_width=0, v_width=0)
        for index, layer in enumerate(layers)
    )


def _windows(facts: ModelFacts) -> tuple[int, ...]:
    """How many cells each layer sees; 0 = all of them."""
    count, name = facts.n_layers, facts.architecture
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
    if not any(layer.k_width for layer in layers):
        unknown.append("it has no attention layers with a cache")
    if unknown:
        return "unknown", tuple(unknown)
    doubts: list[str] = []
    if facts.n_expert and facts.architecture not in _PROVED_EXPERTS:
        doubts.append("it is a mixture of experts")
    if any(key.endswith("_mla") for key in keys):
        doubts.append("it uses latent attention (MLA)")
    if facts.architecture not in _PROVED | _PROVED_EXPERTS:
        if facts.sliding_window:
            doubts.append("some of its layers see a sliding window only")
        if not doubts:
            doubts.append(f'the architecture "{facts.architecture}" was not compared with llama.cpp yet')
    return ("bounded" if doubts else "proved"), tuple(doubts)
