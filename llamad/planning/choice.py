"""A choice of everything that costs memory: what the search tries and what the formulas read. Pure."""

from __future__ import annotations

from dataclasses import dataclass

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

    @property
    def streams(self) -> int:
        """Separate caches: one if the slots share theirs."""
        return 1 if self.unified else self.slots

    @property
    def stream_cells(self) -> int:
        """Cells of one stream, as llama-server rounds them."""
        return pad(pad(self.context_tokens, CELL_PADDING) // self.streams, CELL_PADDING)

    @property
    def cells(self) -> int:
        """Cells of all streams."""
        return self.stream_cells * self.streams

    @property
    def step_tokens(self) -> int:
        """Tokens that one computation takes at most: a micro-batch, or the context if that is smaller."""
        return min(self.ubatch_tokens, self.cells)
