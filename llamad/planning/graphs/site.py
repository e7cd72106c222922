"""Where a graph is while it is replayed: the layer that comes, what is alive, and what the host still has. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llamad.planning.graphs.tape import Block, Tape
from llamad.planning.layers import Layer, ModelShape

NOTHING: Block = (0, 0)


@dataclass(slots=True)
class Host:
    """What a layer needs from the host, and where the scheduler takes it in: at the start of a split.

    Each operation with a matrix of the host starts a split. What else its operations read for the first time (masks,
    positions) is copied at the split's start, beside the matrix.
    """

    matrices: Mapping[str, int]
    """Bytes by the tensor's name in its block."""
    caches: tuple[int, int] = (0, 0)
    """Copies of keys and values."""
    attends: bool = False
    """The host does the attention itself: its result comes with the matrix that projects it."""
    experts_only: bool = False
    turns: bool = True
    """The layer rotates queries and keys by position, as others of its kind."""
    turned: bool = False
    """Something was rotated by position already."""
    pending: dict[str, int] = field(default_factory=dict)
    """Inputs that nothing has read yet, and their bytes."""
    placed: dict[str, Block] = field(default_factory=dict)
    """Where inputs are that came."""
    events: list[tuple[str, bool]] = field(default_factory=list)
    """What happened in this order: a split started, or (True) an input was read."""
    attached: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The inputs that come with a split."""

    def split(self, tape: Tape, name: str) -> None:
        """An operation with something of the host: inputs that come with it are placed."""
        self.events.append((name, False))
        for key in self.attached.get(name, ()):
            self.placed[key] = tape.take_bytes(self.pending.pop(key, 0))

    def read(self, key: str) -> None:
        """An operation reads an input."""
        self.events.append((key, True))


@dataclass(slots=True)
class Site:
    """Where a graph is: the layer that comes, and what of earlier layers is still alive."""

    shape: ModelShape
    layer: Layer
    residual: Block
    sequences: int
    scratch_bytes: int = 0
    """f16 copies of this layer's cache, behind the result of its attention."""
    rotated: bool = False
    """Queries, keys and values are rotated before they meet a quantised cache."""
    host: Host | None = None
    """What is copied here from the host to compute this layer."""
    experts_elsewhere: bool = False
    carried: tuple[Block, ...] = ()
    """Results of earlier layers for this one: its states, already fetched."""
    fetch_bytes: int = 0
    """The shifting state that this layer fetches for a later one; 0 = none."""

    def number(self, key: str, otherwise: int = 0) -> int:
        """A scalar of the header."""
        return self.shape.numbers.get(key, otherwise)

    def has(self, role: str) -> bool:
        """Whether the host keeps such a tensor of this layer."""
        return self.host is not None and role in self.host.matrices

    def product(self, tape: Tape, role: str, width: int) -> Block:
        """Multiply with a matrix, which is copied here first if it is on the host."""
        size = self.host.matrices.get(role, 0) if self.host else 0
        if not size or not self.host:
            return tape.take(width)
        early = self.host.placed.pop(role, None)
        copy = early or tape.take_bytes(size)
        self.host.split(tape, role)
        block = tape.take(width)
        tape.drop(copy)
        return block

    def small(self, tape: Tape, role: str) -> None:
        """Combine with a vector, in place."""
        if self.host and role in self.host.matrices:
            copy = tape.take_bytes(self.host.matrices[role])
            self.host.split(tape, role)
            tape.drop(copy)

    @property
    def hosted(self) -> bool:
        """Whether the host keeps this layer, its states among it."""
        return self.host is not None and bool(self.host.matrices) and not self.host.experts_only

    def expect(self, key: str, size_bytes: int) -> None:
        """A copy of something that the host computes is to come with the split in which it is read."""
        if self.host and size_bytes:
            self.host.pending[key] = size_bytes

    def received(self, key: str) -> Block:
        """Read what was expected."""
        assert self.host
        self.host.read(key)
        return self.host.placed.pop(key, NOTHING)

    def turn(self, tape: Tape, following: str = "") -> None:
        """Rotate by position: if its frequencies are a tensor, that starts a split too, although it is copied once.

        Such a split takes the next matrix, `following`, in as well.
        """
        if self.host and "rope_freqs" in self.host.matrices and not self.layer.window:
            come = self.host.turned or "frequencies" not in self.host.pending
            self.host.turned = True
            self.host.split(tape, "rope_freqs" if not come else following)
            if come and following in self.host.matrices:
                self.host.placed[following] = tape.take_bytes(self.host.matrices[following])
        self.read("positions")
        self.read("frequencies")

    def read(self, key: str) -> None:
        """Read an input of the graph."""
        if self.host:
            self.host.read(key)

    def fetch(self, tape: Tape, *, routed: bool = False) -> None:
        """Fetch for a later layer, where the builder has expanded the graph for the last time in this one.

        `routed`: that is behind the experts, if it has some.
        """
        if self.fetch_bytes and routed == (self.layer.experts_used > 0):
            self.carried = (tape.take_bytes(self.fetch_bytes),)

    def add(self, tape: Tape, result: Block, *, in_result: bool = True) -> Block:
        """Add to the residual stream: in the place of the result, or of the stream."""
        if in_result:
            tape.drop(self.residual)
            self.residual = result
        else:
            tape.drop(result)
        return self.residual
