"""The last lines of a child, in bounded memory: as texts, or as blocks of records that nobody has looked at. Pure."""

from __future__ import annotations

from collections import deque

from llamad.engine.log import parse_line, shortened

LINES = 200
BLOCK_BYTES = 48 << 10
RING_BYTES = 192 << 10


class Ring:
    """Keeps the last 200 lines; fewer where they are longer than about 1,000 bytes."""

    def __init__(self) -> None:
        self._parts: deque[str | bytes] = deque()
        self._size = 0

    def line(self, text: str) -> None:
        """One line that was understood."""
        self._add(text)

    def block(self, lines: bytes) -> None:
        """Whole lines as they came, with their newlines."""
        if len(lines) > BLOCK_BYTES:
            lines = lines[lines.find(b"\n", len(lines) - BLOCK_BYTES) + 1 :]
        if lines:
            self._add(lines)

    def texts(self) -> list[str]:
        """The last lines, oldest first."""
        found: list[str] = []
        for part in self._parts:
            if isinstance(part, str):
                found.append(part)
            else:
                found += (parse_line(shortened(raw)).text for raw in part.split(b"\n")[-LINES - 1 : -1])
        return found[-LINES:]

    def _add(self, part: str | bytes) -> None:
        self._parts.append(part)
        self._size += len(part) + 1
        while self._size > RING_BYTES or (len(self._parts) > LINES):
            self._size -= len(self._parts.popleft()) + 1
