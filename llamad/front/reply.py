"""What one client gets as the answer to one request: framing, the point of no return, and honest ends. Pure.

Until the answer is committed (the first whole event of a stream, the first byte of any other body) the request
can be sent to another llama-server. A stream may be opened before that, with its head and pings alone: a replay
goes on in it, and an error then ends it as an event.
"""

from __future__ import annotations

from typing import Protocol

from llamad.front.answers import Answer, error, error_event
from llamad.front.body import LAST_CHUNK
from llamad.front.head import CONTINUE, Framing, RequestHead, ResponseHead
from llamad.front.sse import EventStream

_EVENT_STREAM = b"text/event-stream"
_COMMENT = b":\n\n"
_HELD = ResponseHead(
    200,
    Framing.CHUNKED,
    -1,
    True,
    _EVENT_STREAM,
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n",
    (),
)


class Outlet(Protocol):
    """Where the bytes go: the client's connection."""

    def write(self, data: bytes) -> None:
        """Send `data`; never blocks."""
        ...

    def may_keep_alive(self) -> bool:
        """Whether another request may follow on this connection."""
        ...


class ClientSide(Outlet, Protocol):
    """The client's connection, as an exchange sees it."""

    writing_paused: bool

    def pause_body(self, paused: bool) -> None:
        """Stop or go on reading the request's body."""
        ...

    def exchange_over(self, keep_alive: bool) -> None:
        """The answer is written."""
        ...

    def abort(self) -> None:
        """Break the connection: the client must see that the answer is not whole."""
        ...


class Reply:
    """The answer to one request, over all attempts to get it."""

    opened = False  # the head is with the client
    committed = False
    keep_alive = True
    status = 0
    body_bytes = 0
    _head: ResponseHead | None = None
    _events: EventStream | None = None
    _chunked = False

    def __init__(self, outlet: Outlet, request: RequestHead, request_id: bytes) -> None:
        self._outlet = outlet
        self._request = request
        self._request_id = request_id
        self._out: list[bytes] = []

    @property
    def is_stream(self) -> bool:
        """Whether the answer is a stream of events."""
        return self._events is not None

    @property
    def waits_to_open(self) -> bool:
        """Whether this is a stream whose head the client has not got yet."""
        return self._events is not None and not self.opened

    def begin(self, head: ResponseHead) -> bool:
        """llama-server's head has come. False where it cannot go on with what the client has got already."""
        is_stream = head.status == 200 and head.content_type.startswith(_EVENT_STREAM)
        if self.opened and not is_stream:
            return False
        self._head = head
        self._events = EventStream() if is_stream else None
        return True

    def feed(self, piece: bytes) -> None:
        """Bytes of the body. What may go out does so with `flush`."""
        events = self._events
        if events is None:
            if not self.opened:
                self._open()
            self.committed = True
            self._add(piece)
            return
        piece = events.feed(piece)
        if events.begun:
            self.committed = True
            if not self.opened:
                self._open()
        if piece and self.opened:
            self._add(piece)

    def finish(self) -> None:
        """llama-server's answer is complete."""
        if self._events is not None:
            held = self._events.finish()
            if not self.opened:
                self._open()
            if held:
                self._add(held)
        elif not self.opened:
            self._open()
        self.committed = True
        if self._chunked:
            self._out.append(LAST_CHUNK)
        self.flush()

    def open_stream(self) -> None:
        """Send a stream's head although nothing has happened in it; its pings follow."""
        if self.waits_to_open:
            self._open()
            self.flush()

    def heartbeat(self) -> None:
        """Let the client of a stream see that its request is kept, although no llama-server has it: a comment."""
        if not self.opened:
            self._head, self._events = _HELD, EventStream()
            self._open()
        if self._events is not None and not self._events.inside:
            self._add(_COMMENT)
            self.flush()

    def probe(self) -> None:
        """Send what harms no living client and says nothing, where there is such a thing: an interim head, or
        a comment in a stream. The kernel of a client that is gone answers with a reset."""
        if not self.opened:
            if self._request.minor:
                self._outlet.write(CONTINUE)
        elif self._events is not None and not self._events.inside:
            self._add(_COMMENT)
            self.flush()

    def fail(self, status: int, code: str, message: str, retry_after_s: float | None = None) -> bool:
        """End with an error, as an answer or as an event. False where the client has got part of a body that
        is not a stream: then only breaking the connection is honest.
        """
        if not self.opened:
            self.give(error(status, code, message, self._request_id, retry_after_s=retry_after_s))
            return True
        self.keep_alive = False
        if self._events is None or (self._head is not None and self._head.framing is Framing.LENGTH):
            return False
        self.committed = True
        if self._events.inside:
            self._add(b"\n\n")
        self._add(error_event(code, message, self._request_id))
        if self._chunked:
            self._out.append(LAST_CHUNK)
        self.flush()
        return True

    def give(self, answer: Answer) -> None:
        """Send a whole answer that was made here."""
        self.opened = self.committed = True
        self.status = answer.status
        self.keep_alive = self._request.keep_alive and self._outlet.may_keep_alive()
        self.body_bytes += len(answer.body or b"")
        self._out = [answer.render(self._request, self._request_id, keep_alive=self.keep_alive)]
        self.flush()

    def flush(self) -> None:
        """Send what has gathered, in one piece."""
        out = self._out
        if out:
            self._out = []
            self._outlet.write(out[0] if len(out) == 1 else b"".join(out))

    def _open(self) -> None:
        head = self._head
        assert head is not None
        request = self._request
        keep_alive = request.keep_alive and self._outlet.may_keep_alive()
        lines = [head.forwarded]
        if head.length >= 0 and head.framing in (Framing.LENGTH, Framing.NONE):
            lines.append(b"Content-Length: %d\r\n" % head.length)
        elif head.framing is Framing.CHUNKED and request.minor == 1:
            self._chunked = True
            lines.append(b"Transfer-Encoding: chunked\r\n")
        elif head.framing is not Framing.NONE:
            keep_alive = False  # only the end of the connection can end this body
        self.keep_alive = keep_alive
        self.status = head.status
        self.opened = True
        lines += (b"X-Request-Id: ", self._request_id)
        if not keep_alive:
            lines.append(b"\r\nConnection: close\r\n\r\n")
        elif request.minor == 0:
            lines.append(b"\r\nConnection: keep-alive\r\n\r\n")
        else:
            lines.append(b"\r\n\r\n")
        self._out += lines

    def _add(self, piece: bytes) -> None:
        self.body_bytes += len(piece)
        if self._chunked:
            self._out += (b"%x\r\n" % len(piece), piece, b"\r\n")
        else:
            self._out.append(piece)
