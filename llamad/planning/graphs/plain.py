"""Graphs of plain transformers: grouped-query attention, then a dense or an expert feed-forward part. Pure.

Proved against llama.cpp's own allocator on 13 shapes (builds of August 2026), and against the first breakdown of
llama-server build 11669 (tests/data/planning). E = width of the model, HD = width of all query heads.
"""

from __future__ import annotations

from collections.abc import Iterator

from llamad.planning.choice import Choice
from llamad.planning.layers import Layer, ModelShape

F32 = 4


def plain_peaks(
    shape: ModelShape, layer: Layer, choice: Choice, extra: int, scratch_bytes: int
) -> Iterator[int]:
    """Feed-forward (gate, up and their product alive, with residual and norm) or attention."""
    step = F32 * choice.step_tokens
    embd, query = shape.embd, layer.query_width
    yield step * (2 * query + 2 * embd + max(0, extra)) + scratch_bytes
    if layer.ff:
        yield step * (3 * layer.ff + 2 * embd + query + (0 if layer.experts_used else extra))
    if layer.experts_used:
        used, ff = layer.experts_used, layer.ff_expert
        yield step * (3 * used * ff + 2 * embd + query)
        yield step * (2 * used * embd + used * ff + 2 * embd)
        yield step * (2 * query + 2 * embd)
