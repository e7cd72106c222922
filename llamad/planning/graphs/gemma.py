"""Graphs of Gemma 3n and Gemma 4, which are no plain transformers. Pure.

Proved as those of `dense`. Both look up an input for every layer: P elements per token and layer, kept for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator

from llamad.planning.choice import Choice
from llamad.planning.graphs.dense import F32, attention_width, expert_width, held_width
from llamad.planning.graphs.parts import Routing, attended_to, network, projected_attention, rotated, routed, turned
from llamad.planning.graphs.site import Site
from llamad.planning.graphs.tape import Tape
from llamad.planning.layers import Layer, ModelShape

EXPERT_SCALES = "ffn_down_exps.scale"


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


def gemma4_experts(tape: Tape, site: Site) -> None:
    """Experts, then the dense part, each from a norm of its own."""
    layer, embd = site.layer, site.shape.embd
    used, ff = layer.experts_used, layer.ff_expert
    chosen, weights = routed(tape, site, Routing(), tape.take(embd))
    norm = tape.take(embd)
    both = site.product(tape, "ffn_gate_up_exps", 2 * used * ff)
    tape.drop(norm)
    inner = tape.take(used * ff)
    tape.drop(both)
    if site.has(EXPERT_SCALES):
        site.expect("scales", F32 * site.number("expert_count"))
    down = site.product(tape, "ffn_down_exps", used * embd)
    tape.drop(inner)
    scales = tape.take(site.number("expert_count"))
    if site.has(EXPERT_SCALES):
        tape.drop(site.received("scales"))
    chosen_scales = tape.take(used)
    tape.drop(scales, chosen, chosen_scales, weights)
    result = tape.take(embd)
    tape.drop(down)
    dense_result = network(tape, site, layer.ff, tape.take(embd))
    tape.drop(result)
    site.small(tape, "post_ffw_norm")
    site.add(tape, dense_result)
