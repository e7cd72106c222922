"""One completion over HTTP, streamed, with the time of each event. All that the server says is bounded."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

from llamad.errors import AccessError, BusyError, LlamadError
from llamad.front.body import BodyReader, ChunkedBody, LengthBody, UntilCloseBody
from llamad.front.head import HeadError

_HEAD_BYTES = 64 << 10
_READ_BYTES = 64 << 10
_EVENT_BYTES = 1 << 20
_BODY_BYTES = 64 << 20


@dataclass(frozen=True)
class Target:
    """Where a model answers."""

    host: str = ""
    port: int = 0
    unix_path: str = ""
    """Instead of host and port."""
    key: str = field(default="", repr=False)
    model: str = ""
    """What a request calls it; empty where the address has but one."""

    def __str__(self) -> str:
        return self.unix_path or f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Answer:
    """One streamed completion."""

    begun_s: float
    event_s: tuple[float, ...]
    """When each event with tokens came; monotonic."""
    prompt_tokens: int
    generated_tokens: int


class RequestFailed(LlamadError):
    """The service did not answer a request of the measurement as it should."""


async def complete(target: Target, prompt: list[int], generate_tokens: int) -> Answer:
    """One completion of these token ids, of exactly so many tokens, no cache used. Raises LlamadError.

    Sampling is the cheapest there is, so that the model is measured and not the sampler.
    """
    body: dict[str, object] = {
        "prompt": prompt,
        "n_predict": generate_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "samplers": ["temperature"],
        "cache_prompt": False,
        "stream": True,
    }
    if target.model:
        body["model"] = target.model
    payload = json.dumps(body, separators=(",", ":")).encode()
    async with _Connection(target) as connection:
        begun_s = time.monotonic()
        await connection.send("POST", "/completion", payload)
        events = _Events()
        async for piece in connection.body():
            events.feed(piece, time.monotonic())
    return _answer(events, begun_s, len(prompt))


async def get_text(target: Target, path: str) -> str:
    """The body of a GET. Raises LlamadError."""
    async with _Connection(target) as connection:
        await connection.send("GET", path, b"")
        pieces = [piece async for piece in connection.body()]
    return b"".join(pieces).decode("utf-8", "replace")


class _Connection:
    """One request on a connection of its own, closed whatever happens."""

    def __init__(self, target: Target) -> None:
        self._target = target

    async def __aenter__(self) -> _Connection:
        target = self._target
        try:
            if target.unix_path:
                opened = await asyncio.open_unix_connection(target.unix_path, limit=_HEAD_BYTES)
            else:
                opened = await asyncio.open_connection(target.host, target.port, limit=_HEAD_BYTES)
        except PermissionError as error:
            fix = "run it as root, or as a user who may use the socket"
            raise AccessError(f"cannot open {target}", why=error.strerror or "", fix=fix) from error
        except OSError as error:
            raise RequestFailed(f"cannot connect to {target}", why=str(error)) from error
        self._reader, self._writer = opened
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.transport.abort()

    async def send(self, method: str, path: str, payload: bytes) -> None:
        """Send a request and read the head of the answer; its body is left. Raises LlamadError unless it is 200."""
        key = f"Authorization: Bearer {self._target.key}\r\n" if self._target.key else ""
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{key}"
            f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
        )
        try:
            self._writer.write(head.encode() + payload)
            await self._writer.drain()
            status, self._framing = _parse_head(await self._reader.readuntil(b"\r\n\r\n"))
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            raise RequestFailed(f"no HTTP answer from {self._target}", why=str(error)) from error
        if status != 200:
            text = b"".join([piece async for piece in self.body()])
            raise _refused(self._target, path, status, text)

    async def body(self) -> Any:
        """The pieces of the body, as they come. Raises RequestFailed where it breaks off."""
        taken_bytes = 0
        try:
            while not self._framing.done:
                data = await self._reader.read(_READ_BYTES)
                if not data:
                    if not self._framing.end():
                        raise RequestFailed(f"{self._target} broke off an answer")
                    return
                piece = self._framing.feed(data)
                taken_bytes += len(piece)
                if taken_bytes > _BODY_BYTES:
                    raise RequestFailed(f"{self._target} does not end an answer")
                if piece:
                    yield piece
        except (OSError, HeadError) as error:
            raise RequestFailed(f"{self._target} broke off an answer", why=str(error)) from error


def _parse_head(raw: bytes) -> tuple[int, BodyReader]:
    """Status, and the reader of what follows. Raises ValueError."""
    status_line, *lines = raw.decode("latin-1").split("\r\n")
    version, _, rest = status_line.partition(" ")
    if not version.startswith("HTTP/1.") or not rest[:3].isdecimal():
        raise ValueError("not HTTP")
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if fields.get("transfer-encoding", "").lower() == "chunked":
        return int(rest[:3]), ChunkedBody()
    if "content-length" in fields:
        return int(rest[:3]), LengthBody(min(int(fields["content-length"]), _BODY_BYTES))
    return int(rest[:3]), UntilCloseBody()


def _refused(target: Target, path: str, status: int, text: bytes) -> LlamadError:
    message = _message(text)
    if status in (401, 403):
        fix = "give a key of the model: --key-file FILE"
        return AccessError(f"{target} wants an API key", why=message, fix=fix)
    if status in (429, 503):
        return BusyError(f"{target} has no room for a measurement", why=message, fix="try again when it is idle")
    return RequestFailed(f"{target} answered {status} to {path}", why=message)


def _message(text: bytes) -> str:
    """The message of an error in OpenAI's shape, as far as there is one; printable, bounded."""
    try:
        found = str(json.loads(text)["error"]["message"])
    except (ValueError, LookupError, TypeError, RecursionError):
        found = text[:200].decode("utf-8", "replace")
    return "".join(c if c.isprintable() else " " for c in found)[:300]


class _Events:
    """Notes when events with data come; the last one is kept, for it has the counts."""

    def __init__(self) -> None:
        self.event_s: list[float] = []
        self.last = b""
        self._held = b""

    def feed(self, piece: bytes, now_s: float) -> None:
        *whole, self._held = (self._held + piece).replace(b"\r\n", b"\n").split(b"\n\n")
        if len(self._held) > _EVENT_BYTES:
            raise RequestFailed("an event of the stream does not end")
        for event in whole:
            if event.startswith(b"data:"):
                self.event_s.append(now_s)
                self.last = event
            elif event.startswith((b"error:", b"event: error")):
                raise RequestFailed("the stream ended with an error", why=_message(event.partition(b":")[2]))


def _answer(events: _Events, begun_s: float, prompt_tokens: int) -> Answer:
    """Raises RequestFailed for a stream that was cut, or that used a cache."""
    try:
        last = json.loads(events.last.removeprefix(b"data:"))
        if "error" in last:
            raise RequestFailed("the stream ended with an error", why=_message(events.last.removeprefix(b"data:")))
        generated, evaluated = int(last["tokens_predicted"]), int(last["tokens_evaluated"])
        cached = int(last.get("timings", {}).get("cache_n", 0))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise RequestFailed("the stream has no end as of llama-server", why=type(error).__name__) from error
    if evaluated < prompt_tokens or cached > prompt_tokens // 10 + 1:
        why = f"{evaluated - cached} of {prompt_tokens} tokens were read"
        raise RequestFailed("a prompt was not read as a whole", why=why)
    # The last event has the counts and no token, if there are others.
    token_events = events.event_s[:-1] or events.event_s
    return Answer(begun_s, tuple(token_events), evaluated, generated)
