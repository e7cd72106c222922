"""Where bodies end: strict incremental readers that give out the decoded bytes only. Pure.

Nothing of a body's framing is ever forwarded: lengths and chunks towards the other side are made anew.
"""

from __future__ import annotations

import re
from typing import Protocol

from llamad.front.head import BARE, Framing, HeadError, parse_trailers

_EXTENSION = rb";[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?:=(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+|\"[ !#-\[\]-~]*\"))?"
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:" + _EXTENSION + rb")*\r\n")
_UNFINISHED_LINE = re.compile(rb"[0-9A-Fa-f]{0,15}|[0-9A-Fa-f]{1,15}(?:;[\x20-\x7e]*)?\r?")
_CHUNK_LINE_BYTES = 512
_TRAILER_BYTES = 8192
_TRAILER_FIELDS = 32
LAST_CHUNK = b"0\r\n\r\n"


class BodyReader(Protocol):
    """Takes the bytes of a connection, gives the bytes of one body."""

    done: bool
    rest: bytes

    def feed(self, data: bytes) -> bytes:
        """The body bytes in `data`. When `done` becomes true, `rest` are the bytes behind the body.

        Raises HeadError 400 for broken framing.
        """
        ...

    def end(self) -> bool:
        """The connection ended here: whether that is also the end of the body."""
        ...


class LengthBody:
    """A body with a Content-Length."""

    __slots__ = ("done", "left_bytes", "rest")

    def __init__(self, length_bytes: int) -> None:
        self.left_bytes = length_bytes
        self.done = length_bytes == 0
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        size = len(data)
        left = self.left_bytes
        if size < left:
            self.left_bytes = left - size
            return data
        self.left_bytes = 0
        self.done = True
        if size == left:
            return data
        self.rest = data[left:]
        return data[:left]

    def end(self) -> bool:
        return self.done


class UntilCloseBody:
    """A body that ends with its connection."""

    __slots__ = ("done", "rest")

    def __init__(self) -> None:
        self.done = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        return data

    def end(self) -> bool:
        self.done = True
        return True


class ChunkedBody:
    """A chunked body. Chunk extensions and trailers are checked and dropped."""

    __slots__ = ("_held", "_left_bytes", "_trailer", "done", "rest")

    def __init__(self) -> None:
        self.done = False
        self.rest = b""
        self._left_bytes = 0  # of the current chunk, with the CRLF behind it
        self._held = b""  # an unfinished size line or trailer
        self._trailer = False

    def feed(self, data: bytes) -> bytes:
        if self._left_bytes == 0 and not self._held and not self._trailer:
            line = _CHUNK_LINE.match(data, 0, _CHUNK_LINE_BYTES)
            whole = line is not None and len(data) == line.end() + int(line[1], 16) + 2
            if line is not None and whole and line.end() < len(data) - 2 and data.endswith(b"\r\n"):
                return data[line.end() : -2]  # nearly always: one event, sent as one chunk
        if self._held:
            data = self._held + data
            self._held = b""
        pieces: list[bytes] = []
        at = 0
        size = len(data)
        while at < size and not self.done:
            if self._left_bytes:
                at = self._take(data, at, pieces)
            elif self._trailer:
                at = self._end_trailer(data, at)
            else:
                at = self._next_chunk(data, at)
        if self.done and at < size:
            self.rest = data[at:]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def end(self) -> bool:
        return self.done

    def _take(self, data: bytes, at: int, pieces: list[bytes]) -> int:
        """Move body bytes from `data[at:]` to `pieces`; check the CRLF behind the chunk as it comes."""
        left = self._left_bytes
        stop = at + left
        here = min(len(data), stop)
        body_stop = min(here, stop - 2)
        if body_stop > at:
            pieces.append(data[at:body_stop])
        crlf_at = max(at, stop - 2)
        if here > crlf_at:
            expected = b"\r\n"[crlf_at - (stop - 2) :]
            if not expected.startswith(data[crlf_at:here]):
                raise HeadError(400, "a chunk is longer than its size says")
        self._left_bytes = stop - here
        return here

    def _next_chunk(self, data: bytes, at: int) -> int:
        match = _CHUNK_LINE.match(data, at, at + _CHUNK_LINE_BYTES)
        if match is None:
            self._hold(data, at, _CHUNK_LINE_BYTES)
            return len(data)
        length = int(match[1], 16)
        if length:
            self._left_bytes = length + 2
        else:
            self._trailer = True
        return match.end()

    def _hold(self, data: bytes, at: int, limit_bytes: int) -> None:
        """Keep an unfinished line for the next call; refuse what can never become a size line."""
        line = data[at:]
        if len(line) >= limit_bytes or _UNFINISHED_LINE.fullmatch(line) is None:
            raise HeadError(400, "a bad chunk size line")
        self._held = line

    def _end_trailer(self, data: bytes, at: int) -> int:
        if data.startswith(b"\r\n", at):
            self.done = True
            return at + 2
        end = data.find(b"\r\n\r\n", at)
        if end < 0:
            if len(data) - at > _TRAILER_BYTES:
                raise HeadError(400, "the trailer is too long")
            if BARE.search(data, at):
                raise HeadError(400, "a line of the trailer does not end with CRLF")
            self._held = data[at:]
            return len(data)
        if end - at > _TRAILER_BYTES:
            raise HeadError(400, "the trailer is too long")
        parse_trailers(data[at : end + 4], _TRAILER_FIELDS)
        self.done = True
        return end + 4


def reader(framing: Framing, length_bytes: int) -> BodyReader | None:
    """The reader for a body, or None where there is none."""
    if framing is Framing.CHUNKED:
        return ChunkedBody()
    if framing is Framing.LENGTH:
        return LengthBody(length_bytes) if length_bytes else None
    if framing is Framing.UNTIL_CLOSE:
        return UntilCloseBody()
    return None


def chunk(data: bytes) -> bytes:
    """`data` as one chunk. `data` must not be empty: that would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data)
