"""Whole answers, kept for requests that would get the very same one again. Pure.

Off unless asked for. Only a request whose answer is determined is looked up: temperature 0, or a seed. Two
clients share an answer only if they have the same API key.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from llamad.front.head import Field, Framing, RequestHead, ResponseHead
from llamad.front.nesting import parsed

HIT = b"X-Llamad-Cache: hit\r\n"
_PATHS = frozenset(
    (
        b"/v1/chat/completions",
        b"/chat/completions",
        b"/v1/completions",
        b"/completions",
        b"/completion",
        b"/v1/responses",
        b"/responses",
        b"/v1/messages",
        b"/v1/embeddings",
        b"/embeddings",
        b"/embedding",
        b"/v1/rerank",
        b"/v1/reranking",
        b"/rerank",
        b"/reranking",
    )
)
_WITHOUT_CHANCE = frozenset(path for path in _PATHS if b"embedding" in path or b"rerank" in path)
_ENTRY_BYTES = 512  # about what an entry takes besides its body


class Stored(NamedTuple):
    """A whole answer, ready to be sent."""

    head: ResponseHead
    body: bytes


class ResponseCache:
    """The answers that were asked for last, bounded in number and in bytes."""

    def __init__(self, entries_max: int, bytes_max: int) -> None:
        self.entries_max = entries_max
        self.bytes_max = bytes_max
        self.held_bytes = 0
        self.hits = 0
        self.misses = 0
        self._entries: OrderedDict[bytes, Stored] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def entry_bytes_max(self) -> int:
        """The longest answer that is kept."""
        return self.bytes_max // 4

    def bound(self, entries_max: int, bytes_max: int) -> None:
        """Other bounds; forgets everything."""
        self.entries_max, self.bytes_max = entries_max, bytes_max
        self.clear()

    def get(self, key: bytes) -> Stored | None:
        """The answer to the request with this key."""
        found = self._entries.get(key)
        if found is None:
            self.misses += 1
            return None
        self._entries.move_to_end(key)
        self.hits += 1
        return found

    def put(self, key: bytes, head: ResponseHead, body: bytes) -> None:
        """Keep an answer that came whole. What is too long is not kept; what was used longest ago gives way."""
        if head.status != 200 or len(body) > self.entry_bytes_max or not self.entries_max:
            return
        self._forget(key)
        stored = ResponseHead(
            head.status, Framing.LENGTH, len(body), True, head.content_type, head.forwarded + HIT, head.fields
        )
        self._entries[key] = Stored(stored, body)
        self.held_bytes += _size(body)
        while len(self._entries) > self.entries_max or self.held_bytes > self.bytes_max:
            self._forget(next(iter(self._entries)))

    def clear(self) -> int:
        """Forget everything; how many answers that was."""
        count = len(self._entries)
        self._entries.clear()
        self.held_bytes = 0
        return count

    def _forget(self, key: bytes) -> None:
        old = self._entries.pop(key, None)
        if old is not None:
            self.held_bytes -= _size(old.body)


def _size(body: bytes) -> int:
    return len(body) + _ENTRY_BYTES


def key_of(request: RequestHead, body: bytes, definition: str) -> bytes | None:
    """What a request must have in common with another to get its answer; None where its answer is left to chance.

    The body counts as JSON says: blanks and the order of keys do not matter, everything else does.
    """
    if request.method != b"POST" or request.path not in _PATHS:
        return None
    try:
        asked = parsed(body)
        text = json.dumps(asked, sort_keys=True, separators=(",", ":"))
    except (ValueError, RecursionError, TypeError):
        return None
    if not isinstance(asked, dict) or not (request.path in _WITHOUT_CHANCE or _is_determined(asked)):
        return None
    digest = hashlib.sha256()
    for part in (request.target, text.encode(), definition.encode(), *_secrets(request.credentials)):
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.digest()


def _is_determined(asked: dict[str, object]) -> bool:
    temperature, seed = asked.get("temperature"), asked.get("seed")
    at_zero = isinstance(temperature, int | float) and not isinstance(temperature, bool) and temperature == 0
    return at_zero or (isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0)


def _secrets(credentials: Iterable[Field]) -> Iterable[bytes]:
    return (value for _, _, value in credentials)
