"""Graphs of Gemma 3n and Gemma 4, which are no plain transformers. Pure.

Proved as those of `dense`. Both look up an input for every layer: P elements per token and layer, kept for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator

from llamad.planning.choice import Choice
from llamad.planning.graphs.dense import F32, attention_width, expert_width, held_width
from llamad.planning.graphs.parts import attended_to, projected_attention, rotated, turned
from llamad.planning.graphs.site import Site
from llamad.planning.graphs.tape import Tape
from llamad.planning.layers import Layer, ModelShape


def gemma3n_peaks(
    shape: ModelShape, layer: Layer, choice: Choice, extra: int, scratch_bytes: int
) -> Iterator[int]:
    """Four streams of the residual (altup); the fullest moments are in their mixing and in the feed-forward part."""
    step = F32 * choice.step_tokens
    embd = shape.embd
    inputs = shape.looked_up - embd + max(0, extra - embd)
    yield step * (inputs + 9 * embd + 3 * layer.ff)
    yield step * (inputs + 14 * embd)
    yield step * (inputs + 5 * embd + 2 * layer.query_width) + scratch_bytes


def gemma4_peaks(
    shape: ModelShape, layer: Layer, choice: Choice, extra: int, scratch_bytes: int
) -> Iterator[int]:
    """Dense, with an input a layer (E2B, E4B), or with experts beside the dense part (26B)."""
    step = F32 * choice.step_tokens
    held = held_width(shape, layer, extra)
    if shape.looked_up:
        held += 2 * shape.looked_up + shape.embd
        yield step * (held + layer.query_width) + scratch_bytes
    elif layer.experts_used:
        beside = layer.ff if scratch_bytes else 0
        yield step * (attention_width(shape, layer, extra) + shape.embd + beside) + scratch_bytes
        # Experts on the host cut the graph in pieces, and what one leaves is no room for the next.
        yield step * (held + expert_width(shape, layer)) * (2 if choice.host_experts else 1)
    else:
        yield step * attention_width(shape, layer, extra) + scratch_bytes
    yield step * (held + 3 * layer.ff)


def gemma4_attention(tape: Tape, site: Site) -> None:
    """Keys and values of a layer that sees everything may be one product; only such layers have frequencies."""
    layer = site.layer
    norm = tape.take(site.shape.embd)
    queries = turned(tape, site, site.product(tape, "attn_q", layer.query_width), "attn_q", "attn_k", copied=True)
    projected = site.product(tape, "attn_k", layer.k_width)
    shared = site.host is not None and bool(site.host.matrices) and not site.has("attn_v")
    keys = tape.take(layer.k_width)
    if not shared:
        tape.drop(projected)
    keys = turned(tape, site, keys, "attn_k", "attn_v", copied=False)
    if not shared:
        projected = site.product(tape, "attn_v", layer.v_width)
    tape.drop(norm)
    values = tape.take(layer.v_width)
    tape.drop(projected)
    values = rotated(tape, site, values, layer.v_width, "values")
    tape.drop(keys, values)
    out = attended_to(tape, site, queries, layer.heads * layer.head_v)
    result = projected_attention(tape, site, out)
    site.small(tape, "post_attention_norm")
    site.add(tape, result)
