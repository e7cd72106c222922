"""ggml's graph allocator, replayed: where it puts each result of a graph, and how high it gets. Pure.

The compute buffer of a graph is not the sum of what is alive at its fullest moment: results are placed best fit into
what earlier ones left, and a large one that fits no hole goes on top. So the height depends on the order of sizes, and
is found by replaying that order (ggml-alloc.c). A graph is written as takes and drops: `take` where an operation needs
a place of its own, `drop` at the last use; what is computed in the place of its operand does not appear.
"""

from __future__ import annotations

from bisect import bisect_left

ALIGNMENT_BYTES = 128
_ENDLESS = 1 << 200

Block = tuple[int, int]
"""Offset and size of a result, in bytes."""


Holes = tuple[tuple[int, ...], tuple[int, ...]]
"""Offsets and sizes of what is free."""


class Tape:
    """One buffer being filled. Widths are f32 elements a row; a graph has `rows` rows (tokens)."""

    __slots__ = ("_offsets", "_row_bytes", "_sizes", "height")

    def __init__(self, rows: int) -> None:
        self.height = 0
        """Bytes from the start of the buffer to the highest end of a result so far."""
        self._row_bytes = 4 * rows
        self._offsets = [0]
        self._sizes = [_ENDLESS]

    def take(self, width: int) -> Block:
        """Place a result of `width` elements a row."""
        return self.take_bytes(width * self._row_bytes)

    def take_scratched(self, width: int, scratch_bytes: int) -> Block:
        """Place a result with room behind it that only its own operation uses."""
        result = width * self._row_bytes
        padded = -(-result // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        return self.take_bytes(padded + scratch_bytes if scratch_bytes else result)

    @property
    def rows(self) -> int:
        """Tokens of the graph, or of what is left of it."""
        return self._row_bytes // 4

    @rows.setter
    def rows(self, rows: int) -> None:
        self._row_bytes = 4 * rows

    def take_bytes(self, size_bytes: int) -> Block:
        """Place a result: the smallest hole that holds it (of equals the last), else on top."""
        size = -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        offsets, sizes = self._offsets, self._sizes
        best, fit = -1, _ENDLESS >> 1  # below the size of what is on top
        for index, hole in enumerate(sizes):
            if size <= hole <= fit:
                best, fit = index, hole
        offset = offsets[best]
        if fit == size:
            del offsets[best], sizes[best]
        else:
            offsets[best] = offset + size
            sizes[best] -= size
        if offset + size > self.height:
            self.height = offset + size
        return offset, size

    def drop(self, *blocks: Block) -> None:
        """Give back places, in this order."""
        offsets, sizes = self._offsets, self._sizes
        for offset, size in blocks:
            if not size:
                continue
            place = bisect_left(offsets, offset)  # there is always the hole on top, behind every result
            before = place - 1
            joins = place > 0 and offsets[before] + sizes[before] == offset
            if offset + size == offsets[place]:
                if joins:
                    sizes[before] += size + sizes[place]
                    del offsets[place], sizes[place]
                else:
                    offsets[place] = offset
                    sizes[place] += size
            elif joins:
                sizes[before] += size
            else:
                offsets.insert(place, offset)
                sizes.insert(place, size)

    @property
    def holes(self) -> Holes:
        """What is free: all that decides where the next results go."""
        return tuple(self._offsets), tuple(self._sizes)

    def restore(self, holes: Holes) -> None:
        """Continue from a state that `holes` gave."""
        self._offsets, self._sizes = list(holes[0]), list(holes[1])
