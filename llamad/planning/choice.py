"""A choice of everything that costs memory: what the search tries and what the formulas read. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from llamad.units import pad

CELL_PADDING = 256
"""llama.cpp pads a context to this many cells (b6975 and later)."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One candidate for llama-server's placement flags. `layers` counts the output as one, as `-ngl` does."""

    context_tokens: int
    slots: int
    unified: bool
    type_k: str
    type_v: str
    ubatch_tokens: int
    batch_tokens: int
    flash_attention: bool
    layers: int
    split: tuple[int, ...] = ()
    """How many of the layers each of several devices takes, in order; () = one device takes all of them."""
    pipeline: bool = False
    """Several devices work on different micro-batches at once, with four copies of their inputs."""
    host_experts: int = 0
    """The experts of the first n blocks stay on the host."""
    host_ffn: int = 0
    """The dense feed-forward part of the first n blocks stays on the host."""
    guessed_tokens: int = 0
    """Tokens that are guessed ahead and checked at once in each slot, beside the one that is certain."""
    rollback: int = 0
    """Recurrent states that each slot keeps beside its own, to go back to when a guess was wrong."""

    @property
    def output_rows(self) -> int:
        """Rows of logits that one computation gives at most."""
        rows = self.slots * (1 + self.guessed_tokens)
        return min(rows, max(self.slots, self.batch_tokens, self.ubatch_tokens))

    full_windows: bool = False
    """Layers with a window keep the whole context all the same (`--swa-full`)."""
    host_cache: bool = False
    """All caches stay on the host, and the attention with them (`--no-kv-offload`)."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Layers of each device."""
        return self.split or (self.layers,)

    @property
    def overrides(self) -> bool:
        """Whether tensors are placed apart from their layer."""
        return self.host_experts + self.host_ffn > 0

    @property
    def streams(self) -> int:
        """Separate caches: one if the slots share theirs."""
        return 1 if self.unified else self.slots

    @property
    def stream_cells(self) -> int:
        """Cells of one stream, as llama-server rounds them."""
        return _stream_cells(self.context_tokens, 1 if self.unified else self.slots)

    @property
    def cells(self) -> int:
        """Cells of all streams."""
        return self.stream_cells * self.streams

    def window_cells(self, window: int) -> int:
        """Cells of one stream that a layer with a window of `window` cells keeps (0 = it keeps all).

        llama-kv-cache-iswa.cpp: the window of every sequence that shares the stream, and a micro-batch.
        """
        if not window or self.full_windows:
            return self.stream_cells
        sequences = self.slots if self.unified else 1
        return min(self.stream_cells, _padded(window * sequences + self.ubatch_tokens))

    @property
    def step_tokens(self) -> int:
        """Tokens that one computation takes at most: a micro-batch, or the context if that is smaller."""
        return min(self.ubatch_tokens, self.cells)


@lru_cache(maxsize=1024)
def _stream_cells(context_tokens: int, streams: int) -> int:
    return pad(pad(context_tokens, CELL_PADDING) // streams, CELL_PADDING)


@lru_cache(maxsize=256)
def _padded(cells: int) -> int:
    return pad(cells, CELL_PADDING)
