"""The compute buffer of a device that computes layers of the host as well, from copies of their matrices. Pure.

ggml-backend.cpp (ggml_backend_sched_split_graph) starts a split at each operation with a matrix of the host, places
the split's inputs at its start and gives each back after its last use. The host itself stores keys and values
into its caches, so that an attention starts a split too, with copies of the cache it reads.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from llamad.gguf.facts import ModelFacts
from llamad.planning.graphs.gemma import gemma4_attention
from llamad.planning.graphs.parts import Routing, attention, dense, experts, jointly_attended, parallel
from llamad.planning.graphs.replay import PROGRAMS, Program, feed, mix
from llamad.planning.graphs.site import Host, Site
from llamad.planning.graphs.tape import Block, Holes, Tape
from llamad.planning.layers import Layer, ModelShape
from llamad.planning.weights import copied_matrices

_JOINT = Program(attention=jointly_attended, dense=partial(dense, joint=True))
_UNTURNED = {"smollm3": 4}
"""Of so many layers the last does not rotate by position."""
_POST_NORMED = Program(attention=partial(attention, normed=False), dense=partial(dense, normed=False))
_DENSE: Mapping[str, Program] = {
    **dict.fromkeys(("llama", "mistral3", "qwen2", "qwen3", "gemma2", "gemma3", "granite", "smollm3"), Program()),
    "gpt-oss": Program(experts=partial(experts, routing=Routing(normed=False))),
    "glm4": Program(dense=partial(dense, joint=True)),
    "phi3": Program(attention=jointly_attended, dense=partial(dense, joint=True, in_result=False)),
    "chatglm": _JOINT,
    "olmo2": _POST_NORMED,
    "exaone4": _POST_NORMED,
    "starcoder2": Program(dense=partial(dense, gated=False)),
}
_PARALLEL: Mapping[str, Program] = {
    "command-r": Program(attention=parallel),
    "cohere2": Program(attention=parallel),
    "gptneox": Program(attention=partial(parallel, gated=False, joint=True, normed_apart=True)),
    "falcon": Program(attention=partial(parallel, gated=False, joint=True, normed_apart=None, residual_last=True)),
}
_WINDOWED = Program(attention=partial(attention, keys_last=False))
_GEMMA4 = Program(attention=gemma4_attention)
_KEYS_FIRST: Mapping[str, Program] = {
    "gemma2": _WINDOWED,
    "gemma3": _WINDOWED,
    "gpt-oss": Program(attention=_WINDOWED.attention, experts=_DENSE["gpt-oss"].experts),
    "cohere2": Program(attention=partial(parallel, keys_last=False, windows_turn=True)),
    "olmo2": Program(attention=partial(attention, keys_last=False, normed=False), dense=_POST_NORMED.dense),
    "exaone4": Program(attention=partial(attention, keys_last=False, normed=False), dense=_POST_NORMED.dense),
}
"""Where some layers have a window, keys are computed before values."""


def program_of(shape: ModelShape) -> Program | None:
    """How the architecture's layers are run with copies from the host, where that is known."""
    name = shape.architecture
    if name == "gemma4" and not shape.looked_up and not any(layer.experts_used for layer in shape.layers):
        return _GEMMA4
    if any(layer.window for layer in shape.layers) and name in _KEYS_FIRST:
        return _KEYS_FIRST[name]
    if name in _PARALLEL:
        return _PARALLEL[name]
    if name in _DENSE:
        return _DENSE[name]
    return None if name == "rwkv7" else PROGRAMS.get(name)


_Attached = dict[Hashable, Mapping[str, Sequence[str]]]


@dataclass(frozen=True, slots=True)
class Kept:
    """One layer that the host keeps."""

    layer: Layer
    matrices: Mapping[str, int] = field(hash=False)
    number: int
    """The same for layers whose kind and matrices are equal."""
    attached: _Attached = field(default_factory=dict, compare=False, repr=False)
    """What came with its splits in replays before: it depends on names and order, and not on sizes."""


def kept_layers(shape: ModelShape, facts: ModelFacts, backend: str) -> tuple[Kept, ...]:
    """Each layer as the host would keep it; nothing for an architecture whose copies are not known one by one."""
    if not program_of(shape):
        return ()
    numbers: dict[tuple[Layer, tuple[tuple[str, int], ...]], int] = {}
    attached: dict[int, _Attached] = {}
    found = []
    for layer, matrices in zip(shape.layers, copied_matrices(facts, backend), strict=False):
        key = (layer, tuple(sorted(matrices.items())))
        number = numbers.setdefault(key, len(numbers))
        found.append(Kept(layer, matrices, number, attached.setdefault(number, {})))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class HostedRun:
    """One graph of the first device: the host's layers, then its own."""

    kept: tuple[Kept, ...]
    own: tuple[Layer, ...]
    tokens: int
    sequences: int
    outputs: int
    mixed: bool
    rotated: bool
    scratches: Mapping[Layer, int]
    latent_scratch_bytes: int
    """Latent values that are read from a copy of their own, not from that of the keys, are another f16 copy."""
    caches: Mapping[Layer, tuple[int, int]]
    inputs: Mapping[str, int]
    """Bytes of positions, rotations, masks ("mask" and the window) and, what its own layers read, indexes."""


def height(shape: ModelShape, program: Program, run: HostedRun) -> int:
    """Bytes of the whole buffer, masks and logits included."""
    return _Replay(shape, program, run).height()


_State = tuple[Holes, Block, tuple[str, ...]]


class _Replay:
    def __init__(self, shape: ModelShape, program: Program, run: HostedRun) -> None:
        self._shape, self._program, self._run = shape, program, run
        self._tape = Tape(run.tokens)

    def height(self) -> int:
        run, tape = self._run, self._tape
        residual = self._inputs()
        states: list[_State] = [(tape.holes, residual, tuple(key for key, size in run.inputs.items() if size))]
        known: dict[_State, int] = {states[0]: 0}
        steps: dict[tuple[int, bool, bool, bool, int], int] = {}
        numbers = {layer: -1 - index for index, layer in enumerate(dict.fromkeys(run.own))}
        plan = list(run.kept)
        own = {layer: Kept(layer, {}, number) for layer, number in numbers.items()}
        plan += [own[layer] for layer in run.own]
        group = _UNTURNED.get(self._shape.architecture, 0)
        now, closing_index, last_index = 0, len(run.kept) - 1, len(plan) - 1 if run.outputs else -1
        for index, kept in enumerate(plan):
            if index == last_index:
                return self._finish(self._site(states[now], kept.layer, kept.matrices))
            closing, turned = index == closing_index, not group or (index + 1) % group > 0
            attends = self._host_attends(index)
            key = (kept.number, closing, attends, turned, now)
            if key not in steps:
                state = self._step(states[now], kept, closing=closing, attends=attends, turned=turned)
                if state not in known:
                    known[state] = len(states)
                    states.append(state)
                steps[key] = known[state]
            now = steps[key]
        return tape.height

    def _inputs(self) -> Block:
        tape, embd = self._tape, self._shape.embd
        mixed = self._run.mixed and not self._program.fetches_early  # else the host mixes them itself
        first = [tape.take(embd), tape.take(embd), tape.take(2)] if mixed else []
        residual = tape.take(embd)
        if mixed:
            tape.take(embd)
        tape.drop(*first)
        return residual

    def _site(
        self,
        state: _State,
        layer: Layer,
        matrices: Mapping[str, int],
        *,
        attends: bool = False,
        turned: bool = True,
    ) -> Site:
        run = self._run
        holes, residual, pending = state
        self._tape.restore(holes)
        host = Host(
            matrices,
            run.caches.get(layer, (0, 0)) if matrices else (0, 0),
            attends=attends,
            turns=turned,
            pending={key: run.inputs[key] for key in pending if key in run.inputs},
        )
        scratch = run.scratches.get(layer, 0)
        if matrices and layer.k_width and not layer.v_width:
            scratch += run.latent_scratch_bytes
        return Site(self._shape, layer, residual, run.sequences, scratch, run.rotated, host)

    def _host_attends(self, index: int) -> bool:
        """Whether the host does this attention: where it fetches the next recurrent layer's state right behind it."""
        kept = self._run.kept
        if index < len(kept) and kept[index].layer.recurrent:
            return True  # its own, in the same layer
        if not self._program.fetches_early or index >= len(kept) or kept[index].layer.experts_used:
            return False
        mixing = (other.layer for other in kept[index + 1 :] if other.layer.recurrent or other.layer.k_width)
        following = next(mixing, None)
        return following is not None and following.recurrent

    def _step(self, state: _State, kept: Kept, *, closing: bool, attends: bool, turned: bool) -> _State:
        """A layer, run twice if inputs come with it: to see what starts splits, and with what else these read."""
        tape = self._tape
        site = self._site(state, kept.layer, kept.matrices, attends=attends, turned=turned)
        assert site.host
        expects = bool(kept.matrices) and kept.layer.recurrent
        if closing or attends or expects or not _LAST.issuperset(site.host.pending):
            way = (closing, attends, turned, self._run.rotated, state[2])
            if way not in kept.attached:
                before = tape.height
                trial = self._run_layer(site)
                tape.height = before
                site = self._site(state, kept.layer, kept.matrices, attends=attends, turned=turned)
                assert site.host
                kept.attached[way] = _attached(
                    trial.events, site.host.pending, trial.pending, closing=closing
                )
            assert site.host
            site.host.attached = kept.attached[way]
            site.host.split(tape, "")
        host = self._run_layer(site)
        return tape.holes, site.residual, tuple(host.pending)

    def _run_layer(self, site: Site) -> Host:
        mix(self._tape, self._program, site)
        if self._program.attention not in _WHOLE:
            feed(self._tape, self._program, site)
        assert site.host
        return site.host

    def _finish(self, site: Site) -> int:
        """The last layer: behind its attention only the rows go on that logits are wanted of."""
        tape = self._tape
        mix(tape, self._program, site)
        if self._program.attention not in _WHOLE:
            tape.rows = self._run.outputs
            site.add(tape, tape.take(self._shape.embd))
            feed(tape, self._program, site)
        tape.rows = self._run.outputs
        tape.take(self._shape.vocab)
        return tape.height


_LAST = {"indexes"}
"""The inputs that only the device's own layers read."""
_WHOLE = frozenset(program.attention for program in (*_PARALLEL.values(), _KEYS_FIRST["cohere2"]))


def _attached(
    events: Sequence[tuple[str, bool]],
    pending: Collection[str],
    expected: Collection[str],
    *,
    closing: bool,
) -> Mapping[str, Sequence[str]]:
    """The inputs that come with each split; "" = before the first one."""
    found: dict[str, list[str]] = {}
    split, seen = "", set()
    for name, is_input in events:
        if not is_input:
            split = name
        elif (name in pending or name in expected) and name not in seen:
            seen.add(name)
            found.setdefault(split, []).append(name)
    if closing:
        found.setdefault(split, []).extend(key for key in pending if key not in seen)
    return found
