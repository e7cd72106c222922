"""Connections to llama-server: one request at a time on each, kept alive, and retired before llama-server closes
them. One pool for each generation of llama-server.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Coroutine
from typing import Protocol, cast

from llamad.clock import Clock
from llamad.engine.endpoint import TcpEndpoint
from llamad.front.body import BodyReader, reader
from llamad.front.head import HeadError, ResponseHead, find_end
from llamad.front.memo import read_response
from llamad.front.reading import Reader

_HEAD_BYTES = 64 * 1024
_IDLE_CONNECTIONS = 64
_BACKLOG_RETRY_S = (0.002, 0.005, 0.01, 0.02, 0.05)
_GONE = frozenset((errno.ECONNREFUSED, errno.ENOENT, errno.ECONNRESET, errno.EPIPE, errno.ENOTSOCK))


class Receiver(Protocol):
    """Who sent the request that is on a connection."""

    request_sent: bool
    """Whether the whole request has been written."""

    def connected(self, connection: UpstreamConnection) -> None:
        """A connection was made for this request."""
        ...

    def unreachable(self, error: OSError, *, gone: bool) -> None:
        """No connection can be made. `gone`: because no llama-server listens there any more."""
        ...

    def answer_begins(self, head: ResponseHead) -> None:
        """The final head of the answer."""
        ...

    def answer_piece(self, piece: bytes) -> None:
        """Decoded bytes of the body, never empty."""
        ...

    def answer_pauses(self) -> None:
        """All that has arrived so far has been told."""
        ...

    def answer_ends(self) -> None:
        """The answer is complete; the connection is no longer this request's."""
        ...

    def answer_broken(self, what: str) -> None:
        """llama-server sent something that is not HTTP; the connection is closed."""
        ...

    def upstream_lost(self, *, stale: bool) -> None:
        """The connection died before the answer was complete. `stale`: it had been idle and gave no byte
        of this answer, so it may have been closed for idleness in the moment of the request."""
        ...

    def upstream_full(self, full: bool) -> None:
        """Whether to stop sending the body for now."""
        ...


class UpstreamConnection(Reader):
    """One connection to llama-server."""

    def __init__(self, pool: Pool) -> None:
        self.served = 0
        self.idle_since_s = 0.0
        self.has_been_idle = False
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._receiver: Receiver | None = None
        self._method = b""
        self._buffer = bytearray()
        self._body: BodyReader | None = None
        self._keep_alive = True
        self._answered = False  # a byte of the present answer has come
        self._paused = False
        self._is_lost = False

    def send(self, receiver: Receiver, method: bytes, data: bytes) -> None:
        """Put a request (its head, with as much of the body as there is) on this idle connection."""
        assert self._transport is not None
        self._receiver = receiver
        self._method = method
        self._answered = False
        self.served += 1
        if self._is_lost:  # closed by the other side in the moment it was made
            asyncio.get_running_loop().call_soon(self._tell_loss, None)
        else:
            self._transport.write(data)

    def send_more(self, data: bytes) -> None:
        """More of the request's body."""
        assert self._transport is not None
        self._transport.write(data)

    def pause(self, paused: bool) -> None:
        """Stop or go on reading the answer."""
        if self._transport is None or self._paused is paused or self._transport.is_closing():
            return
        self._paused = paused
        if paused:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def drop(self) -> None:
        """Close at once; tell nobody. llama-server cancels the request that is on it."""
        self._receiver = None
        if self._transport is not None:
            self._transport.abort()

    @property
    def is_usable(self) -> bool:
        """Whether an idle connection may carry another request."""
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._pool.joined(self)

    def data_received(self, data: bytes) -> None:
        receiver = self._receiver
        if receiver is None:  # nobody asked: whatever it is, the next answer could not be told from it
            self.drop()
            return
        self._answered = True
        try:
            self._read(receiver, data)
        except HeadError as error:
            self.drop()
            receiver.answer_broken(error.what)

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        self._pool.left(self)
        self._tell_loss(exc)

    def pause_writing(self) -> None:
        if self._receiver is not None:
            self._receiver.upstream_full(True)

    def resume_writing(self) -> None:
        if self._receiver is not None:
            self._receiver.upstream_full(False)

    def _tell_loss(self, exc: Exception | None) -> None:
        receiver, self._receiver = self._receiver, None
        if receiver is None:
            return
        if exc is None and self._body is not None and self._body.end():
            receiver.answer_ends()
        else:
            receiver.upstream_lost(stale=self.has_been_idle and not self._answered)

    def _read(self, receiver: Receiver, data: bytes) -> None:
        if self._body is None:
            rest = self._read_head(receiver, data)
            if rest is None:
                return
            data = rest
        body = self._body
        if body is None:
            self._end(receiver, data)
            return
        if data:
            piece = body.feed(data)
            if piece:
                receiver.answer_piece(piece)
                if self._receiver is not receiver:
                    return
            if body.done:
                self._end(receiver, body.rest)
                return
        receiver.answer_pauses()

    def _read_head(self, receiver: Receiver, data: bytes) -> bytes | None:
        """Read the final head; the bytes behind it, or None where it has not come whole or the request left."""
        seen = len(self._buffer)
        if seen:
            self._buffer += data
            data = bytes(self._buffer)
        while True:
            end = find_end(data, seen, _HEAD_BYTES)
            if end < 0:
                self._buffer = bytearray(data)
                return None
            head = read_response(data[:end], self._method)
            data = data[end:]
            seen = 0
            if head.status >= 200:
                break
            if head.status == 101:
                raise HeadError(502, "switched protocols, which nobody asked for")
        if self._buffer:
            self._buffer = bytearray()
        self._keep_alive = head.keep_alive
        self._body = reader(head.framing, head.length)
        receiver.answer_begins(head)
        return data if self._receiver is receiver else None

    def _end(self, receiver: Receiver, rest: bytes) -> None:
        self._receiver = None
        self._body = None
        self.pause(False)
        self._pool.release(self, reusable=self._keep_alive and not rest and receiver.request_sent)
        receiver.answer_ends()


class Pool:
    """The connections to one llama-server. `left_one` is called whenever a connection has closed."""

    def __init__(
        self,
        generation: int,
        path: str,
        clock: Clock,
        requests_max: int,
        idle_s: float,
        left_one: Callable[[], None],
    ) -> None:
        self.generation = generation
        self.retired = False
        self._path = path
        self._clock = clock
        self._requests_max = requests_max
        self._idle_s = idle_s
        self._left_one = left_one
        self._idle: list[UpstreamConnection] = []
        self._all: set[UpstreamConnection] = set()
        self._connecting: set[asyncio.Task[None]] = set()

    @property
    def is_empty(self) -> bool:
        """Whether no connection is left, nor one in the making."""
        return not self._all and not self._connecting

    def take(self) -> UpstreamConnection | None:
        """An idle connection that llama-server will not close under the next request, or None."""
        oldest_s = self._clock.monotonic() - self._idle_s
        while self._idle:
            connection = self._idle.pop()
            if connection.idle_since_s > oldest_s and connection.is_usable:
                return connection
            connection.drop()
        return None

    def connect(self, receiver: Receiver) -> asyncio.Task[None]:
        """Make a connection for `receiver`, which is told. Cancel the task to give up."""
        return self._begin(self._connect(receiver))

    def joined(self, connection: UpstreamConnection) -> None:
        """For the connection alone: it is open."""
        self._all.add(connection)

    def left(self, connection: UpstreamConnection) -> None:
        """For the connection alone: it has closed."""
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._left_one()

    def release(self, connection: UpstreamConnection, *, reusable: bool) -> None:
        """The answer on `connection` is complete."""
        if (
            reusable
            and not self.retired
            and connection.served < self._requests_max
            and len(self._idle) < _IDLE_CONNECTIONS
        ):
            connection.idle_since_s = self._clock.monotonic()
            connection.has_been_idle = True
            self._idle.append(connection)
        else:
            connection.drop()
            if connection.served >= self._requests_max and not self.retired and not self._idle:
                self._begin(self._connect_spare())  # the next request should not have to wait for it

    def sweep(self) -> None:
        """Close what has been idle for too long."""
        oldest_s = self._clock.monotonic() - self._idle_s
        for connection in [one for one in self._idle if one.idle_since_s <= oldest_s]:
            self._idle.remove(connection)
            connection.drop()

    def retire(self) -> None:
        """Take no new request: close the idle connections now, the others with the end of their answers."""
        self.retired = True
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.drop()

    def drop_all(self) -> None:
        """Close every connection now. Whoever has a request on one must have been told before."""
        self.retire()
        for task in list(self._connecting):
            task.cancel()
        for connection in list(self._all):
            connection.drop()

    def _begin(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._connecting.add(task)
        task.add_done_callback(self._connect_done)
        return task

    def _connect_done(self, task: asyncio.Task[None]) -> None:
        self._connecting.discard(task)
        self._left_one()
        if not task.cancelled():
            task.result()  # an error here is a bug: let the loop's handler show it

    async def _connect(self, receiver: Receiver) -> None:
        try:
            sock = await self._dial()
        except OSError as error:
            receiver.unreachable(error, gone=error.errno in _GONE)
            return
        receiver.connected(await self._opened(sock))

    async def _connect_spare(self) -> None:
        """One more idle connection. Where none is to be had, who needs one is told why."""
        try:
            sock = await self._dial()
        except OSError:
            return
        self.release(await self._opened(sock), reusable=True)

    async def _opened(self, sock: socket.socket) -> UpstreamConnection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: UpstreamConnection(self), sock=sock)
        return connection

    async def _dial(self) -> socket.socket:
        """A connected socket. On a unix socket connecting never takes time: it is done, refused, or the queue of
        the listener is full, which asyncio's own connect would take for success.
        """
        if isinstance(self._path, TcpEndpoint):
            return await _dial_tcp(self._path)
        attempt = 0
        while True:
            sock = socket.socket(
                socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            )
            try:
                sock.connect(self._path)
            except BlockingIOError:
                sock.close()
            except OSError:
                sock.close()
                raise
            else:
                return sock
            await self._clock.sleep(_BACKLOG_RETRY_S[min(attempt, len(_BACKLOG_RETRY_S) - 1)])
            attempt += 1


async def _dial_tcp(endpoint: TcpEndpoint) -> socket.socket:
    family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        await asyncio.get_running_loop().sock_connect(sock, (endpoint.host, endpoint.port))
    except BaseException:
        sock.close()
        raise
    return sock
