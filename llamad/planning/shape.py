"""The few numbers of a model that decide its buffers, and how sure the formulas are of its architecture. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llamad.gguf.facts import ModelFacts

Proof = Literal["proved", "bounded", "unknown"]

# Dense architectures whose compute buffer was compared with llama.cpp's own figures. `llama` also covers Mistral
# and most fine-tunes. None of them reads a sliding window from the header.
_PROVED = frozenset({"llama", "mistral3", "qwen2", "qwen3", "phi3"})
_PROVED_EXPERTS = frozenset({"qwen3moe"})
# Keys of recurrent layers: their state is not a KV cache, and its size has a formula per family.
_RECURRENT = ("ssm.", "wkv.", "shortconv.", "kda.")
# Caches of their own on top of the usual one.
_OWN_CACHES = ("attention.indexer.",)
_OWN_CACHE_ARCHITECTURES = frozenset({"deepseek4", "minimax-m3", "qwen4exp"})


@dataclass(frozen=True)
class Shape:
    """Widths in elements, the largest over all layers."""

    embd: int
    heads: int
    head_k: int
    head_v: int
    k_width: int
    v_width: int
    ff: int
    vocab: int
    experts_used: int
    ff_expert: int
    proof: Proof
    doubts: tuple[str, ...]
    """Why the figures are not proved, in words."""
    windowed: bool
    """Some layers see a window only: the real cache is smaller than the planned one."""

    @property
    def attention_width(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_k

    @property
    def widest_activation(self) -> int:
        """The widest row that is multiplied with weights."""
        return max(self.ff, self.experts_used * self.embd, self.attention_width)


def shape_of(facts: ModelFacts) -> Shape:
    """Read the shape and judge it. `unknown` = no safe bound is known for this model."""
    proof, doubts = _judge(facts)
    heads_kv = max(facts.n_head_kv, default=0)
    return Shape(
        embd=facts.n_embd,
        heads=max(facts.n_head, default=0),
        head_k=facts.head_k,
        head_v=facts.head_v,
        k_width=heads_kv * facts.head_k,
        v_width=heads_kv * facts.head_v,
        ff=max(facts.n_ff, default=0),
        vocab=facts.n_vocab,
        experts_used=facts.n_expert_used if facts.n_expert else 0,
        ff_expert=facts.n_ff_expert,
        proof=proof,
        doubts=doubts,
        windowed=facts.sliding_window > 0 and facts.architecture not in _PROVED | _PROVED_EXPERTS,
    )


def _judge(facts: ModelFacts) -> tuple[Proof, tuple[str, ...]]:
    keys = [key.partition(".")[2] for key in facts.hparams]
    unknown: list[str] = []
    if any(key.startswith(_RECURRENT) for key in keys):
        unknown.append("it has recurrent layers")
    if facts.architecture in _OWN_CACHE_ARCHITECTURES or any(key.startswith(_OWN_CACHES) for key in keys):
        unknown.append("it keeps caches of its own beside the usual one")
    if not any(facts.n_head_kv):
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
