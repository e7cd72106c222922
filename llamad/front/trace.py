"""What is noted of one request while it passes: figures for its record, the answer where that is kept. Pure."""

from __future__ import annotations

import json
import re

from llamad.front.head import RequestHead, ResponseHead
from llamad.front.responses import ResponseCache
from llamad.front.settings import Outcome, RequestRecord
from llamad.front.usage import HEAD_BYTES, TAIL_BYTES, Usage, read_usage

_MESSAGE = re.compile(rb'"message":\s*("(?:[^"\\\x00-\x1f]|\\["\\/bfnrt])*")')
_GATHERED_BYTES = 4 * TAIL_BYTES


class Trace:
    """See the module. Holds a few KiB of an answer at most, unless the answer is to be kept."""

    __slots__ = (
        "_begin", "_cache", "_head", "_kept", "_kept_bytes", "_key", "_last", "_last_bytes", "_request",
        "begun_s", "deaths", "first_byte_s", "hold_s", "model", "request_bytes",
    )  # fmt: skip

    def __init__(self, request: RequestHead, model: str, begun_s: float) -> None:
        self.model = model
        self.begun_s = begun_s
        self.hold_s = 0.0
        self.first_byte_s: float | None = None
        self.request_bytes = 0
        self.deaths = 0
        self._request = request
        self._begin = b""
        self._last: list[bytes] = []
        self._last_bytes = 0
        self._head: ResponseHead | None = None
        self._cache: ResponseCache | None = None
        self._key = b""
        self._kept: list[bytes] = []
        self._kept_bytes = 0

    def keep_for(self, cache: ResponseCache, key: bytes) -> None:
        """The answer, if it comes whole, is for this cache."""
        self._cache, self._key = cache, key

    def answer_begins(self, head: ResponseHead) -> None:
        """An answer begins, perhaps after another one was cut."""
        self._head = head
        self._begin = b""
        self._last, self._last_bytes = [], 0
        self._kept, self._kept_bytes = [], 0

    def piece(self, piece: bytes) -> None:
        """Bytes of the answer's body."""
        if not self._begin:
            self._begin = piece[:HEAD_BYTES]
        self._last.append(piece)
        self._last_bytes += len(piece)
        if self._last_bytes > _GATHERED_BYTES:
            tail = self._tail()
            self._last, self._last_bytes = [tail], len(tail)
        if self._cache is not None:
            self._kept.append(piece)
            self._kept_bytes += len(piece)
            if self._kept_bytes > self._cache.entry_bytes_max:
                self._cache, self._kept = None, []

    def answer_ends(self) -> None:
        """The answer is whole."""
        if self._cache is not None and self._head is not None:
            self._cache.put(self._key, self._head, b"".join(self._kept))

    def error_text(self) -> str:
        """What an answer that is an error says, "" where it does not."""
        found = _MESSAGE.search(self._begin)
        return str(json.loads(found[1].decode("utf-8", "replace"))) if found else ""

    def usage(self) -> Usage | None:
        """What llama-server said of the tokens."""
        return read_usage(self._begin, self._tail()) if self._last else None

    def _tail(self) -> bytes:
        return (self._last[0] if len(self._last) == 1 else b"".join(self._last))[-TAIL_BYTES:]

    def record(
        self, outcome: Outcome, status: int, request_id: bytes, response_bytes: int, now_s: float
    ) -> RequestRecord:
        """The record of the request, which is over."""
        return RequestRecord(
            self._request.method.decode(),
            self._request.raw_path.decode(),
            status,
            outcome,
            request_id.decode(),
            now_s - self.begun_s,
            self.hold_s,
            self.first_byte_s,
            self.request_bytes,
            response_bytes,
            self.deaths,
            self.model,
            self.usage(),
        )
