"""One client's connection: reads requests strictly in order, answers what is answered here, relays the rest."""

from __future__ import annotations

import asyncio
import socket
from enum import Enum, auto
from typing import TYPE_CHECKING, cast

from llamad.front.access import is_for_admin
from llamad.front.answers import Answer, error, local_path
from llamad.front.body import BodyReader, LengthBody, reader
from llamad.front.errand import Errand, is_errand
from llamad.front.exchange import Exchange
from llamad.front.head import CONTINUE, HeadError, RequestHead, find_end
from llamad.front.memo import read_request
from llamad.front.peer import has_unread, is_owner, is_tls, reset_when_closed, unwritten_bytes
from llamad.front.reading import Reader
from llamad.front.refuse import answered_here, record_local
from llamad.front.settings import Outcome
from llamad.front.shared import Shared

if TYPE_CHECKING:
    from llamad.front.choice import Choice

_PIPELINE_BYTES, _DISCARD_BYTES = 64 * 1024, 256 * 1024
_LINGER_S, _NEVER = 2.0, float("inf")

# Why reading from the client stops; bits, because several may hold at once.
_FOR_BODY, _FOR_PIPELINE, _FOR_WRITING = 1, 2, 4


class _State(Enum):
    HEAD = auto()  # between requests, or in a head
    BODY = auto()  # an exchange is on, its request is not complete
    ANSWER = auto()  # an exchange is on, its request is complete
    DISCARD = auto()  # answered here; the rest of the request's body is read and dropped
    LINGER = auto()  # no more answers; waiting for the client to close, so that it can read the last one


class ClientConnection(Reader):
    """See the module. `from_network`: not through a unix socket, so a browser could have been led here.
    `forwards`: who connects is not who asks."""

    def __init__(self, shared: Shared, *, from_network: bool, forwards: bool = False) -> None:
        self.writing_paused = False
        self._shared = shared
        self._from_network = from_network
        self._forwards = forwards
        self._transport: asyncio.Transport | None = None
        self._sock: socket.socket | None = None  # kept: TLS forgets it before it says that the connection is lost
        self._state = _State.HEAD
        self._buffer = bytearray()
        self._scanned = 0
        self._body: BodyReader | None = None
        self._body_bytes = 0
        self._exchange: Exchange | Errand | Choice | None = None
        self._eof = False
        self._pauses = 0
        self._deadline_s = _NEVER
        self._stall = (0, 0.0)  # bytes in the write buffer, and since when
        self.served = 0
        self.quiet_since_s = 0.0  # accepted, or done with its last request

    # --- asyncio ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self._sock = cast("asyncio.Transport", transport), transport.get_extra_info("socket")
        self.quiet_since_s = self._shared.clock.monotonic()
        self._deadline_s = self.quiet_since_s + self._shared.settings.client_idle_s
        self._shared.clients.add(self)
        self._shared.work.set()

    def data_received(self, data: bytes) -> None:
        state = self._state
        if state is _State.HEAD:
            self._read_head(data)
        elif state is _State.BODY:
            self._read_body(data)
        elif state is _State.ANSWER:
            self._pipeline(data)
        elif state is _State.DISCARD:
            self._discard(data)

    def eof_received(self) -> bool:
        """True keeps the connection open for the answer: a client may shut its side when its request is out."""
        self._eof = True
        if self._state is _State.HEAD and self._buffer:
            self._next()
        self._give_up_body()
        tls = is_tls(self._writable())  # which ends both ways at once
        if tls or self._exchange is None:
            return not tls and self._state is _State.HEAD and bool(self._buffer)
        self._shared.hangups.watch(self._socket().fileno(), self.break_off)
        if self._from_network:  # through a unix socket the kernel tells without being asked
            self._exchange.reply.probe()
        return True

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        if self._eof:
            self._shared.hangups.unwatch(self._socket().fileno())
        self._shared.clients.discard(self)
        self._deadline_s = _NEVER
        self._state, self._buffer = _State.LINGER, bytearray()  # what waits in it is nobody's now
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.client_gone()
        self._shared.pulse.fire()

    def _give_up_body(self) -> None:
        """The client sends no more: a request whose body is not complete never will be."""
        if self._state is _State.BODY and self._exchange is not None:
            self._state = _State.LINGER
            exchange, self._exchange = self._exchange, None
            exchange.client_gone()

    def pause_writing(self) -> None:
        self.writing_paused = True
        self._stall = (unwritten_bytes(self._writable(), self._socket()), self._shared.clock.monotonic())
        self._pause(_FOR_WRITING, self._exchange is None)
        if self._exchange is not None:
            self._exchange.client_full(True)

    def resume_writing(self) -> None:
        self.writing_paused = False
        self._pause(_FOR_WRITING, False)
        if self._exchange is not None:
            self._exchange.client_full(False)
        elif self._buffer:
            self._next()

    # --- for the exchange ------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        self._writable().write(data)

    def may_keep_alive(self) -> bool:
        return self._state is _State.ANSWER and (not self._shared.closing or bool(self._buffer))

    def pause_body(self, paused: bool) -> None:
        self._pause(_FOR_BODY, paused)

    def exchange_over(self, keep_alive: bool) -> None:
        self._exchange = None
        if keep_alive and self._state is _State.ANSWER:
            self._ready_for_next()
        else:
            self._close_gently()

    def abort(self) -> None:
        self._exchange = None
        if self._from_network:
            reset_when_closed(self._socket())
        self.break_off()

    # --- for the front ---------------------------------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """Whether a request is in work here, or has begun to arrive."""
        return self._state is not _State.HEAD or bool(self._buffer)

    def tick(self, now_s: float) -> None:
        """About once a second: time-outs."""
        if self._exchange is not None:
            self._exchange.tick(now_s)
        if self.writing_paused or self._state is _State.LINGER:
            self._check_stall(now_s)
        if now_s >= self._deadline_s:
            self._expire(now_s)

    def close_idle(self) -> None:
        """Close if no request is in work, nor one lies in the kernel still unread."""
        if not self.is_busy and not has_unread(self._socket()):
            self._close_gently()

    def hurry(self) -> None:
        """The front is closing: a request that has begun to arrive must go on arriving soon."""
        if self._state is _State.BODY or (self._state is _State.HEAD and self._buffer):
            soon_s = self._shared.clock.monotonic() + self._shared.arrival_idle_s
            self._deadline_s = min(self._deadline_s, soon_s)

    def break_off(self) -> None:
        """Close now, whatever is in work."""
        self._writable().abort()

    # --- heads -----------------------------------------------------------------------------------------------

    def _read_head(self, data: bytes) -> None:
        settings = self._shared.settings
        source: bytes | bytearray = data
        if self._buffer:
            self._buffer += data
            source = self._buffer
        try:
            end = find_end(source, self._scanned, settings.head_bytes)
            if end < 0:
                self._await_more(data)
                return
            head = read_request(bytes(source[:end]), settings.head_fields)
        except HeadError as problem:
            self._refuse_head(problem)
            return
        rest = bytes(source[end:])
        if self._buffer:
            self._buffer = bytearray()
        self._scanned = 0
        self._begin(head, rest)

    def _await_more(self, data: bytes) -> None:
        if not self._buffer:
            self._buffer = bytearray(data)
            self._deadline_s = self._shared.clock.monotonic() + self._shared.settings.head_timeout_s
        self._scanned = len(self._buffer)

    def _begin(self, head: RequestHead, rest: bytes) -> None:
        shared = self._shared
        now_s = shared.clock.monotonic()
        request_id = shared.request_id(head)
        self.served += 1
        self._body = body = reader(head.framing, head.length)
        self._body_bytes = 0
        routed = shared.switch.route(head) if shared.switch is not None else None
        path = local_path(head) if routed is None else routed.path
        head = head if routed is None else routed.head
        at_home = not self._from_network and not self._forwards and is_for_admin(head)
        by_owner = at_home and is_owner(self._socket())
        answered = answered_here(
            shared, head, path, request_id, from_network=self._from_network, by_owner=by_owner
        )
        if answered is not None:
            self._answer_here(head, answered[0], request_id, answered[1], rest)
            return
        exchange: Exchange | Errand | Choice
        if shared.local is not None and is_errand(head):
            exchange = Errand(shared, shared.local, self, head, request_id)
        elif shared.switch is None or routed is None:
            exchange = Exchange(shared, shared.lane, self, head, request_id, now_s)
        else:
            exchange = shared.switch.choice(routed, self, request_id, now_s)
        self._exchange = exchange
        if body is None:
            self._state = _State.ANSWER
            self._deadline_s = _NEVER
            if rest:
                self._pipeline(rest)
            exchange.body(b"", complete=True)
            return
        self._state = _State.BODY
        if head.expects_continue and not rest:
            self.write(CONTINUE)
        self._read_body(rest)

    def _refuse_head(self, problem: HeadError) -> None:
        """Where a head is not understood nothing behind it can be: answer and close."""
        request_id = self._shared.new_id()
        code = "request_timeout" if problem.status == 408 else "bad_request"
        answer = error(problem.status, code, problem.what, request_id)
        self._buffer = bytearray()
        self.write(answer.render(None, request_id, keep_alive=False))
        record_local(self._shared.observer, None, answer, request_id, Outcome.REFUSED)
        self._close_gently()

    # --- answers from here -----------------------------------------------------------------------------------

    def _answer_here(
        self, head: RequestHead, answer: Answer, request_id: bytes, outcome: Outcome, rest: bytes
    ) -> None:
        state, rest = self._after_answer_here(head, rest)
        self._state = state
        keep_alive = state is not _State.LINGER and (not self._shared.closing or bool(rest))
        self.write(answer.render(head, request_id, keep_alive=keep_alive))
        record_local(self._shared.observer, head, answer, request_id, outcome)
        if not keep_alive:
            self._close_gently()
        elif state is _State.DISCARD:
            self._deadline_s = self._shared.clock.monotonic() + self._shared.settings.body_idle_s
        else:
            self._buffer += rest
            self._ready_for_next()

    def _after_answer_here(self, head: RequestHead, rest: bytes) -> tuple[_State, bytes]:
        """What to do with the request's body behind an answer that did not need it; what follows the body."""
        body = self._body
        if not head.keep_alive:
            return _State.LINGER, b""
        if body is None:
            return _State.HEAD, rest
        try:
            body.feed(rest)
        except HeadError:
            return _State.LINGER, b""
        if body.done:
            return _State.HEAD, body.rest
        small = isinstance(body, LengthBody) and body.left_bytes <= _DISCARD_BYTES
        return (_State.DISCARD if small and not head.expects_continue else _State.LINGER), b""

    def _discard(self, data: bytes) -> None:
        assert self._body is not None
        self._body.feed(data)
        if self._body.done:
            self._buffer += self._body.rest
            self._ready_for_next()

    def _read_body(self, data: bytes) -> None:
        body, exchange = self._body, self._exchange
        assert body is not None and exchange is not None
        try:
            piece = body.feed(data) if data else b""
        except HeadError as problem:
            exchange.refuse_body(problem.status, "bad_request", problem.what)
            return
        self._body_bytes += len(piece)
        if self._body_bytes > self._shared.settings.body_bytes:
            limit = self._shared.settings.body_bytes
            exchange.refuse_body(413, "body_too_large", f"the body is longer than {limit} bytes")
            return
        if body.done:
            self._state = _State.ANSWER
            self._deadline_s = _NEVER
            if body.rest:
                self._pipeline(body.rest)
        else:
            self._deadline_s = self._shared.clock.monotonic() + self._shared.arrival_idle_s
        exchange.body(piece, complete=body.done)

    def _pipeline(self, data: bytes) -> None:
        """A request that came before the answer to the one before it: it waits here."""
        self._buffer += data
        if len(self._buffer) > _PIPELINE_BYTES:
            self._pause(_FOR_PIPELINE, True)

    def _ready_for_next(self) -> None:
        self._state = _State.HEAD
        self._body = None
        self._scanned = 0
        self.quiet_since_s = self._shared.clock.monotonic()
        self._deadline_s = self.quiet_since_s + self._shared.settings.client_idle_s
        if self._pauses:
            self._pause(_FOR_BODY, False)
        if self.writing_paused:
            self._pause(_FOR_WRITING, True)
        if self._buffer:
            asyncio.get_running_loop().call_soon(self._next)
        elif self._eof:
            self._close_gently()
        elif self._shared.closing:
            self._shared.pulse.fire()

    def _next(self) -> None:
        """Read on in what has gathered in the buffer."""
        if self._state is not _State.HEAD or not self._buffer or self.writing_paused:
            return
        data = bytes(self._buffer)
        self._buffer = bytearray()
        self._pause(_FOR_PIPELINE, False)
        self._read_head(data)
        if self._eof:
            self._give_up_body()
            if self._exchange is None and (self._scanned or self._body is not None):
                self._close_gently()  # the rest of this request will never come

    # --- the end ---------------------------------------------------------------------------------------------

    def _close_gently(self) -> None:
        """Close so that the client can read all that was written: not while its bytes lie here unread."""
        transport = self._writable()
        self._state = _State.LINGER
        self._buffer = bytearray()
        self._deadline_s = _NEVER
        self._stall = (unwritten_bytes(transport, self._socket()), self._shared.clock.monotonic())
        if self._eof or not transport.can_write_eof():
            transport.close()
            return
        try:
            transport.write_eof()
        except OSError:  # the client has broken the connection; asyncio has not told us yet
            transport.abort()
        self._pause(self._pauses, False)

    def _check_stall(self, now_s: float) -> None:
        """Break a connection whose client reads nothing (or, when all is written, does not close)."""
        size, since_s = self._stall
        now_size = unwritten_bytes(self._writable(), self._socket())
        if now_size != size:
            self._stall = (now_size, now_s)
        elif now_s - since_s >= (self._shared.settings.body_idle_s if now_size else _LINGER_S):
            self._writable().abort()

    def _expire(self, now_s: float) -> None:
        if self._state is _State.HEAD and self._buffer:
            self._refuse_head(HeadError(408, "the head of the request did not come in time"))
        elif self._state is _State.BODY and self._exchange is not None:
            if self._pauses:  # it is we who do not read
                self._deadline_s = now_s + self._shared.settings.body_idle_s
            else:
                message = "the body of the request did not come in time"
                self._exchange.refuse_body(408, "request_timeout", message)
        elif self._state is _State.DISCARD:
            self._writable().abort()
        else:
            self._close_gently()

    def _pause(self, why: int, paused: bool) -> None:
        before = self._pauses
        self._pauses = before | why if paused else before & ~why
        transport = self._writable()
        if bool(before) is bool(self._pauses) or self._eof or transport.is_closing():
            return
        if self._pauses:
            transport.pause_reading()
        else:
            transport.resume_reading()

    def _writable(self) -> asyncio.Transport:
        assert self._transport is not None
        return self._transport

    def _socket(self) -> socket.socket:
        return cast("socket.socket", self._sock)
