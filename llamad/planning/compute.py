"""Compute buffers by closed formula: what llama.cpp reserves for its worst micro-batch. Pure, no search.

The peak of the graph is in the feed-forward part (gate, up and their product alive, with residual and norm), in
the attention, or in the logits, on top of inputs that live through all of it (the attention mask above all). With
flash attention nothing grows with the square of anything.

Proved against llama.cpp's own allocator on 13 shapes with plain attention (builds of August 2026), and against the
first breakdown of llama-server build 11669 (tests/data/planning). u = tokens of a micro-batch, n = cells of a
stream, E = width of the model, H = query heads, HD = width of all of them; in bytes, activations are f32.
"""

from __future__ import annotations

from llamad.planning.choice import Choice
from llamad.planning.plan import BuildGates
from llamad.planning.shape import Shape
from llamad.units import MIB

_F32 = 4
_F16 = 2
# Token ids, positions, cell indexes and output ids of one token: 26 to 40 bytes were seen.
_INDEX_BYTES = 48


def device_compute_bytes(
    shape: Shape,
    choice: Choice,
    gates: BuildGates,
    *,
    scratch: bool,
    partial: bool = False,
    copied_bytes: int = 0,
) -> int:
    """The compute buffer of a device.

    `scratch`: the backend converts a cache that is not f16 inside this buffer. `partial`: the first layers stay on
    the host; then the device copies matrices of up to `copied_bytes` to compute with them (a bound, not exact), or,
    with 0, computes only what it holds.
    """
    extra = shape.embd if gates.mixed_inputs else 0
    if partial and not copied_bytes:
        extra = (
            -shape.embd
        )  # the embeddings never come here: only the output of the last layer on the host does
    graph = _graph_bytes(shape, choice, gates, extra=extra, scratch=scratch)
    return _bounded(shape, max(graph, _logits_bytes(shape, choice, gates))) + copied_bytes


def cpu_compute_bytes(shape: Shape, choice: Choice, gates: BuildGates) -> int:
    """The one compute buffer of a run without a device: the inputs of the host are in it too."""
    graph = _graph_bytes(shape, choice, gates, extra=2 * shape.embd, scratch=False)
    return _bounded(shape, max(graph, _logits_bytes(shape, choice, gates)))


def host_compute_bytes(shape: Shape, choice: Choice, gates: BuildGates) -> int:
    """The host's buffer beside a device that computes all layers: mask, embeddings, indexes."""
    u = choice.step_tokens
    embeddings = _F32 * u * shape.embd * (4 if gates.mixed_inputs else 2)
    mask_size = _F16 if choice.flash_attention and gates.mask_f16 else _F32
    mask = mask_size * u * choice.stream_cells * (2 if shape.windowed else 1)
    transposed = 0 if choice.flash_attention else 8 * u * shape.v_width
    return mask + embeddings + transposed + u * _INDEX_BYTES + _rotation_bytes(shape, choice)


def output_bytes(shape: Shape, choice: Choice, gates: BuildGates) -> int:
    """The host's buffer for finished logits. llama-server's breakdown leaves it out."""
    return _F32 * _output_rows(choice, gates) * shape.vocab


def _graph_bytes(shape: Shape, choice: Choice, gates: BuildGates, *, extra: int, scratch: bool) -> int:
    u, n = choice.step_tokens, choice.stream_cells
    inputs = u * _INDEX_BYTES + _rotation_bytes(shape, choice)
    step = _F32 * u
    ffn = step * _feed_forward_width(shape, extra)
    if not choice.flash_attention:
        # Scores of every head at once, in f32, and V written transposed through 8-byte indexes.
        scores = step * n * shape.heads
        attention = step * (2 * shape.attention_width + 2 * shape.embd + 2 * shape.v_width + max(0, extra))
        return inputs + step * n + max(scores + attention, ffn)
    mask = (_F16 if gates.mask_f16 else _F16 + _F32) * u * n * (2 if shape.windowed else 1)
    attention = step * (2 * shape.attention_width + 2 * shape.embd + max(0, extra))
    if scratch and gates.scratch_in_graph:
        attention += scratch_bytes(shape, choice)
    return inputs + mask + max(ffn, attention)


def _feed_forward_width(shape: Shape, extra: int) -> int:
    """Elements alive per token at the peak. `extra` shows in dense models only: measured on qwen3 and qwen3moe."""
    dense = 3 * shape.ff + 2 * shape.embd + shape.attention_width
    if not shape.experts_used:
        return dense + extra
    used, ff, embd = shape.experts_used, shape.ff_expert, shape.embd
    return max(
        dense,
        3 * used * ff + 2 * embd + shape.attention_width,
        2 * used * embd + used * ff + 2 * embd,
        2 * shape.attention_width + 2 * embd,
    )


def scratch_bytes(shape: Shape, choice: Choice) -> int:
    """f16 copies of one layer's cache, for the whole context, where the cache has another type."""
    width = (shape.k_width if choice.type_k != "f16" else 0) + (
        shape.v_width if choice.type_v != "f16" else 0
    )
    return _F16 * choice.cells * width


def _rotation_bytes(shape: Shape, choice: Choice) -> int:
    """Matrices that rotate keys and values before they are quantised (since b8619)."""
    if choice.type_k in ("f16", "f32", "bf16"):
        return 0
    power = shape.head_k & -shape.head_k
    return _F32 * (power * power + 64 * 64)


def _logits_bytes(shape: Shape, choice: Choice, gates: BuildGates) -> int:
    return _F32 * _output_rows(choice, gates) * (shape.vocab + shape.embd)


def _output_rows(choice: Choice, gates: BuildGates) -> int:
    return choice.slots if gates.outputs_limited else choice.ubatch_tokens


def _bounded(shape: Shape, computed_bytes: int) -> int:
    """Room for what is not proved: a fifth and 256 MiB more."""
    if shape.proof == "proved":
        return computed_bytes
    return computed_bytes + computed_bytes // 5 + 256 * MIB
