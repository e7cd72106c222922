"""One request on its way: body in, gate, llama-server, answer out; replayed once when llama-server dies."""

from __future__ import annotations

import asyncio

from llamad.front.asked import Asked
from llamad.front.body import LAST_CHUNK, chunk
from llamad.front.head import Framing, RequestHead, ResponseHead, build_request
from llamad.front.holding import Refusal, Target
from llamad.front.kept import KeptBody
from llamad.front.lane import Lane
from llamad.front.reply import ClientSide, Reply
from llamad.front.responses import key_of
from llamad.front.settings import Outcome
from llamad.front.shared import Shared
from llamad.front.trace import Trace
from llamad.front.upstream import Pool, UpstreamConnection

_LOST = "llama-server died"


class Exchange:
    """See the module. It is the waiter at the gate, and the receiver of an upstream connection."""

    after = 0  # the last generation that died under it
    ticket = 0
    request_sent = False
    _done = False
    _request_complete = False
    _at_gate = False
    _target: Target | None = None  # admitted, but its tokens are being counted
    _pool: Pool | None = None  # the connections of the generation that it was admitted to
    _connecting: asyncio.Task[None] | None = None
    _connection: UpstreamConnection | None = None
    _retried_stale = False
    _sent_chunked = False
    _stream_since_s = 0.0
    _mourns_since_s: float | None = None
    _beat_s = 0.0
    _unfit = 0  # the status of an answer that cannot follow what the client has got

    def __init__(
        self, shared: Shared, lane: Lane, client: ClientSide, request: RequestHead, request_id: bytes,
        begun_s: float,
    ) -> None:  # fmt: skip
        self.reply = Reply(client, request, request_id)
        self._shared = shared
        self._lane = lane
        self._client = client
        self._request = request
        self._request_id = request_id
        self._trace = Trace(request, lane.settings.name, begun_s)
        self._body = KeptBody(shared.memory)
        self.asked = Asked(lane.admission, request, self._body, self._counted)
        lane.exchanges.add(self)

    # --- from the client -------------------------------------------------------------------------------------

    def body(self, piece: bytes, *, complete: bool) -> None:
        """More of the request's body; `complete` with the last of it (which may be empty)."""
        self._request_complete = complete
        if piece:
            self._trace.request_bytes += len(piece)
        if (refusal := self.asked.watch(piece)) is not None:
            self._drop_upstream()
            self._refuse(refusal)
            return
        if self._connection is not None:
            if piece:
                self._body.add_sent(piece)
            self._send_on(piece)
            return
        if self._mourns_since_s is not None:  # the answer has begun: no one will want this
            return
        if piece:
            self._body.add(piece)
        full = self._body.size_bytes >= self._lane.settings.eager_bytes or self._shared.memory.is_full
        if (complete or full) and self._pool is None and not self._at_gate and self._target is None:
            refusal = None if self.asked.is_read else self.asked.read(complete=complete)
            if refusal is not None:
                self._refuse(refusal)
            elif not (complete and self._lane.settings.cache_responses and self._repeat()):
                self._enter()
        if not complete and self._connection is None and not self._done:
            self._client.pause_body(full)

    def _repeat(self) -> bool:
        """Give the answer that the same request got before; False where there is none."""
        responses = self._lane.responses
        key = key_of(self._request, b"".join(self._body.pieces), self._lane.settings.definition)
        if key is None:
            return False
        stored = responses.get(key)
        if stored is None:
            self._trace.keep_for(responses, key)
            return False
        self.reply.begin(stored.head)
        self._trace.piece(stored.body)
        self.reply.feed(stored.body)
        self.reply.finish()
        self._finish(Outcome.REPEATED)
        return True

    def client_gone(self) -> None:
        """The client has closed its connection, or broken the protocol: llama-server must stop working for it."""
        if not self._done:
            self._drop_upstream()
            self._finish(Outcome.CLIENT_GONE, tell_client=False)

    def refuse_body(self, status: int, code: str, message: str) -> None:
        """The rest of the request's body cannot be accepted."""
        if not self._done:
            self._drop_upstream()
            self._fail(status, code, message, Outcome.REFUSED)

    def client_full(self, full: bool) -> None:
        """Whether the client's buffer is full: llama-server's answer then waits."""
        if self._connection is not None:
            self._connection.pause(full)

    # --- from the gate ---------------------------------------------------------------------------------------

    @property
    def tokens(self) -> int:
        """The most that it takes of the cache."""
        return self.asked.ask.tokens

    def admitted(self, target: Target, held_s: float) -> None:
        self._at_gate = False
        self._trace.hold_s += held_s
        self._target = target
        if not self.asked.begin_count():
            self._target = None
            self._go(target)

    def _counted(self) -> None:
        if self._done:
            return
        target, gate = self._target, self._lane.gate
        if target is None:
            gate.recount(self)
        elif (refusal := self.asked.verdict()) is not None:
            self._refuse(refusal)
        elif gate.generation == target.generation:
            self._target = None
            gate.recount(self)
            self._go(target)
        else:  # another llama-server came meanwhile
            self._leave_gate()
            self._enter()

    def _go(self, target: Target) -> None:
        self._pool = pool = self._lane.pool(target)
        connection = pool.take()
        if connection is not None:
            self.connected(connection)
        else:
            self._connecting = pool.connect(self)

    def refused(self, refusal: Refusal, held_s: float) -> None:
        self._at_gate = False
        self._trace.hold_s += held_s
        self._fail(refusal.status, refusal.code, refusal.message, Outcome.HELD_OUT, refusal.retry_after_s)

    # --- from the upstream connection ------------------------------------------------------------------------

    def connected(self, connection: UpstreamConnection) -> None:
        self._connecting = None
        self._connection = connection
        framing, complete = self._request.framing, self._request_complete
        self._sent_chunked = framing is Framing.CHUNKED and not complete
        length: int | None = self._body.size_bytes if complete else self._request.length
        if framing is Framing.NONE or self._sent_chunked:
            length = None
        head = build_request(
            self._request, self._request_id, length, chunked=self._sent_chunked, with_keys=self._lane.passes_keys
        )
        parts = [head, *(map(chunk, self._body.pieces) if self._sent_chunked else self._body.pieces)]
        self.request_sent = self._request_complete
        if self._body.pieces and self._shared.memory.is_full:
            self._body.give_up()
        if self._client.writing_paused:
            connection.pause(True)
        if not self._request_complete:
            self._client.pause_body(False)  # before sending, which may pause it again
        connection.send(self, self._request.method, parts[0] if len(parts) == 1 else b"".join(parts))

    def unreachable(self, error: OSError, *, gone: bool) -> None:
        self._connecting = None
        pool = self._pool
        assert pool is not None
        if not gone:
            self._leave_gate()
            message = f"cannot reach llama-server: {error.strerror}"
            self._fail(503, "upstream_unreachable", message, Outcome.LOST)
            return
        self._lane.gate.lost(pool.generation)
        self._lane.died(pool.generation)
        if self._retried_stale:  # it was on a connection of this generation when that died
            self._died(pool.generation)
        else:
            self._leave_gate()
            self.after = pool.generation
            self._enter()

    def answer_begins(self, head: ResponseHead) -> None:
        self._trace.answer_begins(head)
        self._unfit = 0 if self.reply.begin(head) else head.status
        if not self._unfit and self.reply.waits_to_open:
            self._stream_since_s = self._shared.clock.monotonic()

    def answer_piece(self, piece: bytes) -> None:
        reply = self.reply
        self._trace.piece(piece)
        if self._unfit:
            return
        if not reply.committed:
            reply.feed(piece)
            if reply.committed:
                self._trace.first_byte_s = self._shared.clock.monotonic() - self._trace.begun_s
                self._body.give_up()
                self._lane.observer.progress()
            return
        reply.feed(piece)
        if not reply.is_stream or b"data:" in piece:
            self._lane.observer.progress()

    def answer_pauses(self) -> None:
        self.reply.flush()

    def answer_ends(self) -> None:
        self._connection = None
        if self._unfit:
            self._end_unfit()
            return
        self.reply.finish()
        self._trace.answer_ends()
        self._finish(Outcome.ANSWERED)

    def _end_unfit(self) -> None:
        """The client has a stream already, and the answer is none: an error, most of the time."""
        self._leave_gate()
        text = self._trace.error_text()
        message = f"llama-server answers {self._unfit}" + (f": {text}" if text else "")
        if self._trace.deaths:
            message = f"the request was sent again after {_LOST}, and now {message}"
        self._fail(502, "replay_failed" if self._trace.deaths else "upstream_error", message, Outcome.LOST)

    def answer_broken(self, what: str) -> None:
        self._connection = None
        self._leave_gate()
        self._fail(502, "bad_answer", f"llama-server sent {what}", Outcome.LOST)

    def upstream_lost(self, *, stale: bool) -> None:
        self._connection = None
        pool = self._pool
        assert pool is not None
        if stale and not self._retried_stale and self._body.is_whole:
            self._retried_stale = True
            self._connecting = pool.connect(self)
            return
        self._lane.died(pool.generation)
        self._died(pool.generation)

    def upstream_full(self, full: bool) -> None:
        if not self._request_complete:
            self._client.pause_body(full)

    # --- from the front --------------------------------------------------------------------------------------

    @property
    def generation(self) -> int:
        """The generation that the request is with; 0 while it is not upstream."""
        if self._target is not None:
            return self._target.generation
        return self._pool.generation if self._pool is not None else 0

    @property
    def is_at_work(self) -> bool:
        """Whether llama-server has it whole and nothing but llama-server holds it up."""
        return self._connection is not None and self.request_sent and not self._client.writing_paused

    def tick(self, now_s: float) -> None:
        """About once a second."""
        settings = self._lane.settings
        if self._mourns_since_s is not None:
            if now_s - self._mourns_since_s >= settings.cause_wait_s:
                self._end_stream("upstream_lost", f"{_LOST} while it answered")
        elif self.reply.waits_to_open and now_s - self._stream_since_s >= settings.stream_open_s:
            self.reply.open_stream()
        elif self._at_gate and settings.heartbeat_s and self.asked.ask.streams:
            self._beat(now_s, settings.heartbeat_s)

    def _beat(self, now_s: float, every_s: float) -> None:
        if now_s - max(self._beat_s, self._trace.begun_s) >= every_s:
            self._beat_s = now_s
            self.reply.heartbeat()

    def explained(self, generation: int, code: str, message: str) -> None:
        """Why a generation died is known."""
        if self._mourns_since_s is not None and self.after == generation:
            self._end_stream(code, message)

    def cut(self, code: str, message: str) -> None:
        """End now, or, where nothing of an answer has gone out, wait at the gate for another llama-server."""
        if self._mourns_since_s is not None:
            self._end_stream(code, message)
            return
        if self._done or (self._pool is None and self._target is None):
            return
        generation = self.generation
        self._drop_upstream()
        if self._body.is_whole and not self.reply.committed:
            self.after = generation
            self._enter()
        else:
            self._fail(503, code, message, Outcome.CUT, self._lane.settings.retry_after_s)

    # --- inside ----------------------------------------------------------------------------------------------

    def _send_on(self, piece: bytes) -> None:
        connection = self._connection
        assert connection is not None
        self.request_sent = self._request_complete
        if self._sent_chunked:
            data = chunk(piece) if piece else b""
            piece = data + LAST_CHUNK if self._request_complete else data
        if piece:
            connection.send_more(piece)

    def renew(self) -> bool:
        """Not upstream, read what it asks for by the rules of now; False where it is refused by them."""
        refusal = self.asked.renew()
        if refusal is not None:
            self._drop_upstream()
            self._refuse(refusal)
        return refusal is None

    def _enter(self) -> None:
        if self.renew():
            self._retried_stale = False
            self._at_gate = True
            self._lane.gate.enter(self)

    def _refuse(self, refusal: Refusal) -> None:
        self._fail(refusal.status, refusal.code, refusal.message, Outcome.REFUSED, refusal.retry_after_s)

    def _leave_gate(self) -> None:
        if self._pool is not None or self._target is not None:
            self._pool = self._target = None
            self._lane.gate.leave(self)

    def _drop_upstream(self) -> None:
        """Leave the gate, the connection or the making of one, whichever it is."""
        if self._at_gate:
            self._at_gate = False
            self._trace.hold_s += self._lane.gate.withdraw(self)
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        if self._connection is not None:
            self._connection.drop()
            self._connection = None
        self._leave_gate()

    def _died(self, generation: int) -> None:
        """llama-server died with this request on it."""
        self._trace.deaths += 1
        self.after = generation
        self._leave_gate()
        if self.reply.committed:
            self._mourn(generation)
        elif self._trace.deaths >= 2:
            message = "llama-server died twice under this request, so it is not tried again"
            self._fail(502, "poison", message, Outcome.POISON)
        elif not self._body.is_whole:
            message = f"{_LOST}, and the request is too large to be kept for another try"
            self._fail(503, "upstream_lost", message, Outcome.LOST, self._lane.settings.retry_after_s)
        else:
            self._enter()

    def _mourn(self, generation: int) -> None:
        """A committed answer was cut: end it now, or wait a little for the cause where it can be told."""
        cause = self._lane.cause(generation)
        if not self.reply.is_stream:
            self._end_stream("upstream_lost", _LOST)
        elif cause is not None:
            self._end_stream(*cause)
        elif self._lane.settings.cause_wait_s <= 0:
            self._end_stream("upstream_lost", f"{_LOST} while it answered")
        else:
            self._mourns_since_s = self._shared.clock.monotonic()

    def _end_stream(self, code: str, message: str) -> None:
        self._mourns_since_s = None
        self._fail(503, code, message, Outcome.LOST)

    def _fail(
        self, status: int, code: str, message: str, outcome: Outcome, retry_after_s: float | None = None
    ) -> None:
        if self.reply.fail(status, code, message, retry_after_s):
            self._finish(outcome)
        else:
            self._client.abort()
            self._finish(outcome, tell_client=False)

    def _finish(self, outcome: Outcome, *, tell_client: bool = True) -> None:
        if self._done:
            return
        self._done = True
        self._leave_gate()
        self._body.give_up()
        self.asked.end()
        now_s = self._shared.clock.monotonic()
        self._lane.finished(self, now_s)
        record = self._trace.record(outcome, self.reply.status, self._request_id, self.reply.body_bytes, now_s)
        self._lane.observer.request_finished(record)
        if tell_client:
            self._client.exchange_over(self.reply.keep_alive)
