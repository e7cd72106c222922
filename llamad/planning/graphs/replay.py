"""The compute buffer of a graph on one device, found by replaying its allocations layer by layer. Pure.

Layers repeat: once a layer starts with the same holes as an equal one before, the rest is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from llamad.frozen import dataclass
from llamad.planning.graphs import recurrence
from llamad.planning.graphs.parts import Routing, attention, dense, experts, latent
from llamad.planning.graphs.site import Host, Site
from llamad.planning.graphs.tape import Block, Holes, Tape
from llamad.planning.layers import Layer, ModelShape

if TYPE_CHECKING:
    from llamad.planning.choice import Choice

Step = Callable[[Tape, Site], None]
_State = tuple[Holes, Block, tuple[Block, ...]]
_NOTHING: Block = (0, 0)
# Positions and cell indexes: 5 floats a token, 8 with positions in four parts.
_INDEX_WIDTH = 8
F32 = 4

_SIGMOID = Routing(biased=True, scaled=True)


def _softmax_experts(tape: Tape, site: Site) -> None:
    experts(tape, site, Routing())


@dataclass(frozen=True)
class Program:
    """How an architecture runs a layer."""

    attention: Step = attention
    recurrence: Step | None = None
    """Of a layer that keeps a state."""
    fetches_early: bool = False
    """The shifting state of a recurrent layer is fetched in an earlier layer."""
    gate_crosses: int = 0
    """A mixer is cut by the border between devices where the next layer's state is fetched: its gate is computed
    behind the border, from a projection of so many inner widths (or, -1, of all parts of a mamba 2)."""
    returned: int = 0
    """Micro-batches of the model's width that a device gets back from the next one, beyond none."""
    received: int = 0
    """... and that it gets from the one before, beyond the residual stream and its norm."""
    states_first: bool = False
    """The places of the states are an input before the embeddings: the holes of inputs do not join."""
    experts: Step = _softmax_experts
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
    "mamba": Program(recurrence=recurrence.mamba1, fetches_early=True, states_first=True, gate_crosses=2),
    "mamba2": Program(recurrence=recurrence.mamba2, fetches_early=True, states_first=True, gate_crosses=-1),
    "granitehybrid": Program(recurrence=recurrence.mamba2, fetches_early=True, gate_crosses=-1),
    "nemotron_h": Program(
        attention=partial(attention, copied=False),
        recurrence=recurrence.mamba2,
        fetches_early=True,
        gate_crosses=-1,
        states_first=True,
        dense=partial(dense, gated=False),
    ),
    "falcon-h1": Program(recurrence=recurrence.attention_beside_mamba),
    "rwkv7": Program(
        recurrence=recurrence.time_mix, fetches_early=True, states_first=True, returned=1, received=3
    ),
    "jamba": Program(
        attention=partial(attention, copied=False, in_result=False),
        recurrence=partial(recurrence.mamba1, inner_norms=True),
        fetches_early=True,
        gate_crosses=2,
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


@dataclass(frozen=True, slots=True)
class Run:
    """One device's part of one graph. Masks are counted apart: they lie below all that this is about."""

    kinds: frozenset[Layer]
    """Kinds of layers that it computes: which of them exactly makes no difference."""
    tokens: int
    sequences: int
    outputs: int
    """Rows of logits; 0 = another device computes them."""
    embeds: bool
    """It computes from the embeddings of the input, not from what another device sent."""
    copies: int
    """Of every input: with more than one (a pipeline) inputs stay for ever."""
    mixed: bool
    """The inputs may be tokens and embeddings together (BuildGates.mixed_inputs)."""
    rotated: bool
    scratches: tuple[tuple[Layer, int], ...] = ()
    """Bytes of f16 copies of the cache of each kind."""
    copied: tuple[int, int] = (0, 0)
    """Bytes of the experts' matrices, up and down, that are copied from the host one by one."""
    experts_elsewhere: bool = False
    """The first device computes the experts of all, from copies of their matrices."""


class Replay:
    """The graph of a model. Prepared once; heights and steps that were seen before are not computed again."""

    def __init__(self, shape: ModelShape) -> None:
        self._shape = shape
        self._program = PROGRAMS[shape.architecture]
        self._heights: dict[Run, tuple[int, int]] = {}

    def heights(self, run: Run) -> tuple[int, int]:
        """Bytes while the masks are there, and behind them (for the logits)."""
        if run not in self._heights:
            self._heights[run] = self._replay(run)
        return self._heights[run]

    def _replay(self, run: Run) -> tuple[int, int]:
        kinds = self._shape.kinds
        chosen = [kind in run.kinds for kind in kinds]
        places = [place for place in self._shape.kind_of if chosen[place]]
        layers = [kinds[place] for place in places]
        tape = Tape(run.tokens)
        residual = self._inputs(tape, run)
        fetches = self._fetches(layers, run.sequences)
        scratches = dict(run.scratches)
        states: list[_State] = [(tape.holes, residual, ())]
        known: dict[_State, int] = {states[0]: 0}
        steps: dict[tuple[int, int, int], int] = {}
        now = 0
        for index, layer in enumerate(layers):
            step = (places[index], fetches[index], now)
            last = index == len(layers) - 1 and run.outputs > 0
            if last or step not in steps:
                holes, residual, carried = states[now]
                tape.restore(holes)
                site = Site(
                    self._shape,
                    layer,
                    residual,
                    run.sequences,
                    scratches.get(layer, 0),
                    run.rotated,
                    _expert_copies(run.copied),
                    run.experts_elsewhere,
                    carried,
                    fetches[index],
                )
                if last:
                    return self._finish(tape, site, run)
                mix(tape, self._program, site)
                feed(tape, self._program, site)
                state = (tape.holes, site.residual, site.carried)
                if state not in known:
                    known[state] = len(states)
                    states.append(state)
                steps[step] = known[state]
            now = steps[step]
        return tape.height, 0

    def _inputs(self, tape: Tape, run: Run) -> Block:
        """Place the inputs that are not masks. The result is the residual stream."""
        embd = self._shape.embd
        many = run.copies > 1
        self._crossing(tape, run)
        if not run.embeds:
            norms = tape.take(embd * run.copies)
            residual = tape.take(embd * run.copies)
            tape.drop(*([] if many else [norms]))
            return _NOTHING if many else residual
        first = [tape.take(embd * run.copies), tape.take(embd * run.copies), tape.take(2)] if run.mixed else []
        if self._program.states_first:
            tape.take_bytes(F32 * run.sequences)
        residual = tape.take(embd * run.copies)
        tape.take(_INDEX_WIDTH * run.copies)
        if run.mixed:
            tape.take(embd)
        if many:
            return _NOTHING
        tape.drop(*first)
        return residual

    def _crossing(self, tape: Tape, run: Run) -> None:
        """What a recurrent mixer sends over the border of its device and gets back."""
        numbers, embd = self._shape.numbers, self._shape.embd
        returned, received = self._program.returned, self._program.received
        if returned and not run.outputs and run.copies > 1:
            tape.take(returned * embd * run.copies)
        if received and not run.embeds:
            tape.take(received * embd * run.copies)
        inner = numbers.get("ssm.inner_size", 0)
        if not self._program.gate_crosses or all(kind.experts_used for kind in run.kinds if kind.recurrent):
            return
        if not run.outputs and run.copies > 1:
            tape.take(inner * run.copies)
        if not run.embeds:
            wide = 2 * inner
            if self._program.gate_crosses < 0:
                groups = numbers.get("ssm.group_count", 1) * numbers.get("ssm.state_size", 0)
                wide += 2 * groups + numbers.get("ssm.time_step_rank", 0)
            tape.take(wide * run.copies)

    def _finish(self, tape: Tape, site: Site, run: Run) -> tuple[int, int]:
        """The last layer: behind its mixer only the rows go on that logits are wanted of."""
        mix(tape, self._program, site)
        body = tape.height
        tape.height = 0
        tape.rows = run.outputs
        site.add(tape, tape.take(self._shape.embd))
        feed(tape, self._program, site)
        tape.take(self._shape.vocab)
        return body, tape.height

    def _fetches(self, layers: Sequence[Layer], sequences: int) -> list[int]:
        """Bytes of shifting state that each layer fetches for the next one that is no mere feed-forward network."""
        found = [0] * len(layers)
        if not self._program.fetches_early:
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


def replayed_peaks(
    shape: ModelShape, layer: Layer, choice: Choice, extra: int, scratch_bytes: int
) -> Iterator[int]:
    """`layers.Peaks` of one kind of layer: the height after some of its kind."""
    assert shape.replay
    run = Run(
        kinds=frozenset((layer,)),
        tokens=padded_tokens(choice),
        sequences=choice.slots,
        outputs=0,
        embeds=True,
        copies=1,
        mixed=extra > 0,
        rotated=False,
        scratches=((layer, scratch_bytes),),
    )
    yield shape.replay.heights(run)[0]


def _expert_copies(copied: tuple[int, int]) -> Host | None:
    if not any(copied):
        return None
    up, down = copied
    return Host({"ffn_up_exps": up, "ffn_gate_exps": up, "ffn_down_exps": down}, experts_only=True)


def padded_tokens(choice: Choice) -> int:
    """Tokens of the largest graph: a micro-batch, evenly split over the sequences."""
    return -(-choice.step_tokens // choice.slots) * choice.slots


def mix(tape: Tape, program: Program, site: Site) -> None:
    """The part of a layer that mixes tokens."""
    if site.layer.recurrent and program.recurrence:
        program.recurrence(tape, site)
    elif site.layer.k_width:
        program.attention(tape, site)


def feed(tape: Tape, program: Program, site: Site) -> None:
    """The feed-forward part, with experts or without."""
    if site.layer.experts_used:
        program.experts(tape, site)
    elif site.layer.ff:
        program.dense(tape, site)
