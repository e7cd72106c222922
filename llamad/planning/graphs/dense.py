"""Graphs of dense transformers as llama-server build 11669 lays them out, and of gpt-oss and encoders. Pure.

Proved against that server's own breakdown on CUDA's rules (tests/data/planning/card_dense.json). E = width of the
model, Q = width of all query heads, F = of the feed-forward part, K = of one layer's keys. llama.cpp gives each tensor
the smallest hole that holds it, so a sum of what is alive is not enough: the embeddings of the input leave holes of E,
and a tensor that is wider than them goes on top.
"""

from __future__ import annotations

from collections.abc import Iterator

from llamad.planning.choice import Choice
from llamad.planning.layers import Layer, ModelShape

F32 = 4


def held_width(shape: ModelShape, layer: Layer, extra: int) -> int:
    """Elements per token that a feed-forward part finds taken: residual, norm, and what the input left."""
    return 3 * shape.embd + extra if extra else 2 * shape.embd + layer.query_width


def attention_width(shape: ModelShape, layer: Layer, extra: int) -> int:
    """Elements per token at the attention itself: queries and result, one of them in a hole if it fits."""
    query = layer.query_width
    if not extra:
        return 2 * shape.embd + 2 * query
    fits = extra > 0 and query <= shape.embd
    return 3 * shape.embd + extra + (query if fits else 2 * query)


def expert_width(shape: ModelShape, layer: Layer) -> int:
    """Elements per token of the experts' gate, up and product, then of their results."""
    parts, results = layer.experts_used * layer.ff_expert, layer.experts_used * shape.embd
    if parts <= shape.embd:
        return max(3 * parts, results)
    return 3 * parts + (results if results > 2 * parts else 0)


def gated_peaks(
    shape: ModelShape, layer: Layer, choice: Choice, extra: int, scratch_bytes: int
) -> Iterator[int]:
    """Attention, then gate, up and their product: llama and most others."""
    yield from _serial(shape, layer, choice, extra, scratch_bytes, parts=3)


def ungated_peaks(
    shape: ModelShape, layer: Layer, choice: Choice, extra: int, scratch_bytes: int
) -> Iterator[int]:
    """Attention, then one matrix up, whose activation stays in its place: starcoder2."""
    yield from _serial(shape, layer, choice, extra, scratch_bytes, parts=1)


def unrotated_peaks(
    shape: ModelShape, layer: Layer, choice: Choice, extra: int, scratch_bytes: int
) -> Iterator[int]:
    """smollm3: some layers do not rotate their queries; in these one more of them is alive beside the scratch."""
    yield from _serial(shape, layer, choice, extra, scratch_bytes, parts=3)
    step = F32 * choice.step_tokens
    yield step * (attention_width(shape, layer, extra) + layer.query_width) + scratch_bytes


def post_norm_peaks(
    shape: ModelShape, layer: Layer, choice: Choice, extra: int, scratch_bytes: int
) -> Iterator[int]:
    """olmo2, exaone4: norms come after, not before; a narrow feed-forward part leaves no hole for one more."""
    yield from _serial(shape, layer, choice, extra, scratch_bytes, parts=3)
    if extra < 0:  # nor does what came from the device before
        yield F32 * choice.step_tokens * (held_width(shape, layer, extra) + shape.embd + 3 * layer.ff)
    if layer.ff <= 2 * shape.embd:
        width = attention_width(shape, layer, extra) + shape.embd
        yield F32 * choice.step_tokens * width + scratch_bytes


def _serial(
    shape: ModelShape, layer: Layer, choice: Choice, extra: int, scratch_bytes: int, *, parts: int
) -> Iterator[int]:
    step = F32 * choice.step_tokens
    held = held_width(shape, layer, extra)
    yield step * (held + parts * layer.ff)
    yield step * attention_width(shape, layer, extra) + scratch_bytes
    keys = (
        layer.heads_kv * layer.head_k
    )  # with as many key heads as query heads, these are the widest moment
    yield step * ((held if extra else 2 * shape.embd) + layer.query_width + 2 * keys)


def parallel_peaks(
    shape: ModelShape, layer: Layer, choice: Choice, extra: int, scratch_bytes: int
) -> Iterator[int]:
    """command-r, cohere2: attention and feed-forward read one norm."""
    yield from _parallel(shape, layer, choice, extra, scratch_bytes, parts=3, norms=0)
    if shape.architecture != "cohere2":
        return
    # Layers with a window leave holes of their own; a bound, for which of them are used hangs on their order.
    step = F32 * choice.step_tokens
    held = held_width(shape, layer, extra) + shape.embd
    window = max((other.window for other in shape.layers), default=0)
    windowed_scratch = scratch_bytes * choice.window_cells(window) // choice.window_cells(layer.window)
    yield step * (held + 3 * layer.ff)
    if scratch_bytes and choice.flash_attention:
        hole = max(step * 3 * layer.ff, step * layer.query_width + windowed_scratch)
        yield step * (held + shape.embd + layer.query_width) + hole + scratch_bytes


def parallel_ungated_peaks(
    shape: ModelShape, layer: Layer, choice: Choice, extra: int, scratch_bytes: int
) -> Iterator[int]:
    """gptneox: as command-r, without a gate."""
    yield from _parallel(shape, layer, choice, extra, scratch_bytes, parts=1, norms=0)


def falcon_peaks(
    shape: ModelShape, layer: Layer, choice: Choice, extra: int, scratch_bytes: int
) -> Iterator[int]:
    """falcon: with one norm (one key head) more stays alive than with two."""
    single = layer.heads_kv == 1
    yield from _parallel(shape, layer, choice, extra, scratch_bytes, parts=1, norms=1 if single else 0)
    if single and scratch_bytes and choice.flash_attention:
        width = held_width(shape, layer, extra) + 3 * layer.query_width + 2 * layer.heads_kv * layer.head_k
        yield F32 * choice.step_tokens * (width + layer.ff) + scratch_bytes


def _parallel(
    shape: ModelShape,
    layer: Layer,
    choice: Choice,
    extra: int,
    scratch_bytes: int,
    *,
    parts: int,
    norms: int,
) -> Iterator[int]:
    """Attention with scratch lies beside the feed-forward part; otherwise one lies in the hole of the other."""
    step = F32 * choice.step_tokens
    held = held_width(shape, layer, extra) + norms * shape.embd
    beside = choice.flash_attention and scratch_bytes > 0
    if extra < 0:  # what came from the device before leaves no holes
        held += (2 if beside else 1) * shape.embd
    yield step * (held + layer.query_width + (parts * layer.ff if beside else 0)) + scratch_bytes
    yield step * (held + parts * layer.ff)
    yield step * (held + layer.query_width + 2 * layer.heads_kv * layer.head_k)


def gpt_oss_peaks(
    shape: ModelShape, layer: Layer, choice: Choice, extra: int, scratch_bytes: int
) -> Iterator[int]:
    """Attention, then experts."""
    step = F32 * choice.step_tokens
    yield step * (held_width(shape, layer, extra) + expert_width(shape, layer))
    yield step * attention_width(shape, layer, extra) + scratch_bytes


def bert_peaks(
    shape: ModelShape, layer: Layer, choice: Choice, extra: int, scratch_bytes: int
) -> Iterator[int]:
    """An encoder: embeddings of token, kind and position; no cache, so no scratch."""
    yield (
        F32 * choice.step_tokens * (held_width(shape, layer, extra) + shape.embd + layer.ff) + scratch_bytes
    )
