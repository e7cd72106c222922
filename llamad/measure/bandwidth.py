"""What the bandwidth of the memory allows: a token cannot come faster than the weights that it needs are read."""

from __future__ import annotations

import re
from collections.abc import Mapping

from llamad.gguf.facts import ModelFacts
from llamad.measure.results import Expected

_EXPERTS = re.compile(r"\.ffn_(?:up|down|gate|gate_up)_(?:ch|)exps\.")
_BLOCK = re.compile(r"blk\.(\d+)\.")
_INPUT = ("token_embd.", "position_embd.", "token_types.", "per_layer_token_embd.")


def bytes_a_token(facts: ModelFacts) -> int:
    """Weights that one generated token reads: all but rows of the input that are only looked up, and of experts those
    that are used. Pure.
    """
    tied = facts.tied_embeddings
    used = facts.n_expert_used / facts.n_expert if facts.n_expert else 1.0
    last = facts.n_layers - facts.n_layers_nextn
    total = 0.0
    for tensor in facts.tensors:
        block = _BLOCK.match(tensor.name)
        if block and int(block[1]) >= last:
            continue
        if tensor.name.startswith(_INPUT) and not (tied and tensor.name.startswith("token_embd.")):
            continue
        total += tensor.size_bytes * (used if _EXPERTS.search(tensor.name) else 1.0)
    return int(total)


def expected(
    size_bytes: int, shares: Mapping[str, float], bandwidths: Mapping[str, tuple[float, str]]
) -> Expected | None:
    """The bound for weights that are spread over places by `shares`; None where a place's bandwidth is not known. Pure.

    `bandwidths`: bytes a second of each place, with where that is from. Places are read one after the other.
    """
    if not size_bytes or any(place not in bandwidths for place in shares):
        return None
    total = sum(shares.values())
    seconds = sum(size_bytes * share / total / bandwidths[place][0] for place, share in shares.items())
    if seconds <= 0:
        return None
    source = ", ".join(f"{place}: {bandwidths[place][1]}" for place in shares)
    return Expected(
        bytes_a_token=size_bytes, bandwidth_bytes_s=size_bytes / seconds, source=source, tokens_s=1 / seconds
    )
