"""Server-sent events on their way through: where a stream begins, and where it may be cut. Pure.

llama-server sends the head of a stream and its pings (comments) before it has done any work. A stream begins,
and can no longer be replayed, with its first whole event that carries data. From then on whole events are
passed on, so that a death in the middle of one leaves the client with a stream that an error event can end.
"""

from __future__ import annotations

_HOLD_BYTES = 1 << 20
_BEFORE_DATA = (b"event:", b"id:", b"retry:")


class EventStream:
    """Takes the bytes of a stream, gives the bytes that the client may have now."""

    __slots__ = ("_held", "begun", "inside")

    def __init__(self) -> None:
        self.begun = False
        self.inside = False  # an event too large to hold went out in part
        self._held = b""

    def feed(self, piece: bytes) -> bytes:
        """What may be sent: before the stream has begun whole comments, afterwards whole events."""
        if not self.begun:
            return self._before(self._held + piece)
        if self._held:
            piece = self._held + piece
            self._held = b""
        if piece.endswith(b"\n\n"):
            self.inside = False
            return piece
        end = _last_end(piece)
        if len(piece) - end > _HOLD_BYTES:
            self.inside = True
            return piece
        self._held = piece[end:]
        if end:
            self.inside = False
        return piece[:end]

    def finish(self) -> bytes:
        """The stream ended as it should: what was held back."""
        self.begun = True
        held, self._held = self._held, b""
        return held

    def _before(self, data: bytes) -> bytes:
        """Pass whole comments; begin with the first whole event that has data."""
        sendable = 0
        at = 0
        while at < len(data):
            line_end = data.find(b"\n", at) + 1
            line = data[at : line_end or len(data)]
            if line[0] in b":\r\n":
                if not line_end:
                    break
                if sendable == at:
                    sendable = line_end
            elif not _is_before_data(line):
                return self._begin(data, at, sendable)
            elif not line_end:
                break
            at = line_end
        self._held = data[sendable:]
        return data[:sendable]

    def _begin(self, data: bytes, data_at: int, sendable: int) -> bytes:
        whole = _last_end(data) > data_at
        self._held = data[sendable:]
        if not whole and len(self._held) <= _HOLD_BYTES:
            return data[:sendable]
        self.begun = True
        held, self._held = self._held, b""
        return data[:sendable] + self.feed(held)


def _last_end(data: bytes) -> int:
    """The index behind the last empty line, 0 where there is none."""
    lf = data.rfind(b"\n\n")
    crlf = data.rfind(b"\r\n\r\n")
    return max(lf + 2 if lf >= 0 else 0, crlf + 4 if crlf >= 0 else 0)


def _is_before_data(line: bytes) -> bool:
    """Whether a line (perhaps unfinished) names or numbers an event rather than carries its data."""
    return any(line.startswith(name) or name.startswith(line) for name in _BEFORE_DATA)
