"""The compute buffer of a graph on one device, found by replaying its allocations layer by layer. Pure.

Layers repeat: once a layer starts with the same holes as an equal one before, the rest is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from llamad.planning.graphs import recurrence
from llamad.planning.graphs.parts import Routing, Site, attention, dense, experts, latent
from llamad.planning.graphs.tape import Block, Tape
from llamad.planning.layers import Layer, ModelShape

Step = Callable[[Tape, Site], None]

_SOFTMAX = Routing()
_SIGMOID = Routing(biased=True, scaled=True)


@dataclass(frozen=True)
class Program:
    """How an architecture runs a layer."""

    attention: Step = attention
    recurrence: Step | None = None
    """Of a layer that keeps a state."""
    fetches_early: bool = False
    """The shifting state of a recurrent layer is fetched in an earlier layer."""
    states_first: bool = False
    """The places of the states are an input before the embeddings: the holes of inputs do not join."""
    experts: Step = partial(experts, routing=_SOFTMAX)
    dense: Step = dense


_LLAMA4 = Routing(normed=False, weighed_first=True)
_KEEPING = partial(attention, in_result=False)
PROGRAMS: Mapping[str, Program] = {
    "llama": Program(),
    "qwen3moe": Program(),
    "granitemoe": Program(),
    "hunyuan-moe": Program(),
    "qwen2moe": Program(experts=partial(experts, routing=Routing(normed=False, shared_gate="ratio"))),
    "llama4": Program(attention=partial(attention, keys_last=False), experts=partial(experts, routing=_LLAMA4)),
    "glm4moe": Program(experts=partial(experts, routing=_SIGMOID)),
    "dots1": Program(experts=partial(experts, routing=_SIGMOID)),
    "ernie4_5-moe": Program(experts=partial(experts, routing=Routing(biased=True))),
    "deepseek2": Program(attention=latent, experts=partial(experts, routing=_SIGMOID)),
    "qwen3next": Program(
        attention=partial(attention, gated=True),
        recurrence=partial(recurrence.delta_net, repeated=True),
        experts=partial(experts, routing=Routing(shared_gate="sigmoid")),
    ),
    "qwen35": Program(attention=partial(attention, gated=True), recurrence=recurrence.delta_net),
    "qwen35moe": Program(
        attention=partial(attention, gated=True),
        recurrence=recurrence.delta_net,
        experts=partial(experts, routing=Routing(shared_gate="sigmoid")),
    ),
    "mamba": Program(recurrence=recurrence.mamba1, fetches_early=True, states_first=True),
    "mamba2": Program(recurrence=recurrence.mamba2, fetches_early=True, states_first=True),
    "granitehybrid": Program(recurrence=recurrence.mamba2, fetches_early=True),
    "nemotron_h": Program(
        attention=partial(attention, copied=False),
        recurrence=recurrence.mamba2,
        fetches_early=True,
        states_first=True,
        dense=partial(dense, gated=False),
    ),
    "falcon-h1": Program(recurrence=recurrence.attention_beside_mamba),
    "rwkv7": Program(recurrence=recurrence.time_mix, fetches_early=True, states_first=True),
    "jamba": Program(
        attention=partial(attention, copied=False, in_result=False),
        recurrence=partial(recurrence.mamba1, inner_norms=True),
        fetches_early=True,
        states_first=True,
        experts=partial(experts, routing=Routing(normed=False), in_result=False),
        dense=partial(dense, in_result=False),
    ),
    "lfm2": Program(
        attention=_KEEPING,
        recurrence=recurrence.short_convolution,
        fetches_early=True,
        states_first=True,
        dense=partial(dense, in_result=False),
    ),
    "lfm2moe": Program(
        attention=_KEEPING,
        recurrence=recurrence.short_convolution,
        fetches_early=True,
        states_first=True,
        experts=partial(experts, routing=Routing(biased=True), in_result=False),
        dense=partial(dense, in_result=False),
    ),
    "kimi-linear": Program(
        attention=partial(latent, positions=False),
        recurrence=recurrence.delta_attention,
        experts=partial(experts, routing=_SIGMOID),
    ),
}


@dataclass(frozen=True)
class Run:
    """What one graph is reserved for."""

    tokens: int
    sequences: int
    mask_bytes: int
    scratch: Callable[[Layer], int]
    rotated: bool
    outputs: int = 0
    """Rows of logits; 0 = another device computes them."""
    mixed: bool = True
    """The inputs may be tokens and embeddings together (BuildGates.mixed_inputs)."""


def height_bytes(shape: ModelShape, layers: Sequence[Layer], run: Run) -> int:
    """The compute buffer of a device that computes `layers`, the first of them from the token embeddings."""
    program = PROGRAMS[shape.architecture]
    tape = Tape(run.tokens)
    first = [tape.take(shape.embd), tape.take(shape.embd), tape.take(2)] if run.mixed else []
    if program.states_first:
        tape.take_bytes(4 * run.sequences)
    residual = tape.take(shape.embd)
    tape.take(8)  # positions, cell indexes
    mask = tape.take_bytes(run.mask_bytes)
    if run.mixed:
        tape.take(shape.embd)
    tape.drop(*first)
    fetches = _fetches(program, layers, run.sequences)
    seen: dict[object, tuple[object, Block, tuple[Block, ...]]] = {}
    carried: tuple[Block, ...] = ()
    last = len(layers) - 1 if run.outputs else -1
    for index, layer in enumerate(layers):
        key = (layer, fetches[index], index == last, tape.holes, residual, carried)
        if key in seen:
            holes, residual, carried = seen[key]
            tape.restore(holes)  # type: ignore[arg-type]
            continue
        site = Site(shape, layer, residual, run.sequences, run.scratch(layer), run.rotated, carried, fetches[index])
        _mix(tape, program, site)
        if index == last:
            _narrow(tape, site, mask, run.outputs)
        _feed(tape, program, site)
        residual, carried = site.residual, site.carried
        seen[key] = tape.holes, residual, carried
    if run.outputs:
        tape.take(shape.vocab)
    return tape.height


def _narrow(tape: Tape, site: Site, mask: Block, outputs: int) -> None:
    """Behind the last mixer only the rows go on that logits are wanted of."""
    tape.drop(mask)
    tape.rows = outputs
    site.add(tape, tape.take(site.shape.embd))


def _mix(tape: Tape, program: Program, site: Site) -> None:
    if site.layer.recurrent and program.recurrence:
        program.recurrence(tape, site)
    elif site.layer.k_width:
        program.attention(tape, site)


def _feed(tape: Tape, program: Program, site: Site) -> None:
    if site.layer.experts_used:
        program.experts(tape, site)
    elif site.layer.ff:
        program.dense(tape, site)


def _fetches(program: Program, layers: Sequence[Layer], sequences: int) -> list[int]:
    """Bytes of shifting state that each layer fetches for the next one that is no mere feed-forward network."""
    found = [0] * len(layers)
    if not program.fetches_early:
        return found
    coming = 0
    for index in range(len(layers) - 1, -1, -1):
        layer = layers[index]
        mixes = layer.recurrent or layer.k_width > 0
        if mixes or layer.experts_used:
            found[index] = coming
        if mixes:
            coming = recurrence.state_bytes(sequences, layer.conv_state) if layer.recurrent else 0
    return found
