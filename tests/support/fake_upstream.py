"""A llama-server for tests of the front: each request is handed to the test, which answers, stalls or dies."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.support.http import Signal


class Call:
    """One request as llama-server got it, and the ways to answer it."""

    def __init__(self, line: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        self.method, self.target, _ = line.split(" ")
        self.headers = headers
        self.body = b""
        self.cancelled = False
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def reply(self, body: bytes = b'{"ok":true}', status: int = 200, **headers: str) -> None:
        """A whole answer of known length."""
        lines = [f"HTTP/1.1 {status} X", "Content-Type: application/json", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    async def begin_stream(self) -> None:
        """llama-server sends this before it has done any work."""
        await self.send(
            b"HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\nKeep-Alive: timeout=5, max=100\r\n\r\n"
        )

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def event(self, data: str) -> None:
        await self.chunk(f"data: {data}\n\n".encode())

    async def ping(self) -> None:
        await self.chunk(b":\n\n")

    async def end(self) -> None:
        await self.send(b"0\r\n\r\n")

    def die(self) -> None:
        """Break this connection."""
        self.writer.transport.abort()


class WatchedReader(asyncio.StreamReader):
    """Knows at once when the other side has gone, without reading."""

    def __init__(self) -> None:
        super().__init__()
        self.gone = asyncio.Event()

    def feed_eof(self) -> None:
        super().feed_eof()
        self.gone.set()

    def set_exception(self, exc: Exception) -> None:
        super().set_exception(exc)
        self.gone.set()


Handler = Callable[[Call], Awaitable[None]]


async def answer_ok(call: Call) -> None:
    await call.reply()


def answer_when(event: asyncio.Event) -> Handler:
    """Answers when it is told to."""

    async def slowly(call: Call) -> None:
        await event.wait()
        await call.reply()

    return slowly


class FakeUpstream:
    """Listens on a unix socket until `kill` or `close`."""

    def __init__(self, path: Path, handler: Handler = answer_ok) -> None:
        self.path = path
        self.handler = handler
        self.calls: list[Call] = []
        self.connections = 0
        self.open_connections = 0
        self.signal = Signal()
        self.read_bodies = True
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> FakeUpstream:
        self._server = await asyncio.get_running_loop().create_unix_server(
            lambda: asyncio.StreamReaderProtocol(WatchedReader(), self._serve), str(self.path), backlog=5
        )
        return self

    async def call(self, number: int) -> Call:
        """Wait for the request with this number (from 0)."""
        await self.signal.until(lambda: len(self.calls) > number)
        return self.calls[number]

    async def kill(self) -> None:
        """Die as a killed process does: every socket closes at once."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        self.path.unlink(missing_ok=True)
        self.close_connections()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def close_connections(self) -> None:
        """Close every connection, as for idleness, and live on."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.connections += 1
        self.open_connections += 1
        self.signal.fire()
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
                while True:
                    await self._one(reader, writer)
        finally:
            self.open_connections -= 1
            self._writers.discard(writer)
            self._tasks.discard(task)
            writer.transport.abort()
            self.signal.fire()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *rest = text[:-4].split("\r\n")
        call = Call(line, {n.lower(): v for n, v in (one.split(": ", 1) for one in rest)}, writer)
        if self.read_bodies:
            await read_body(call, reader)
        self.calls.append(call)
        self.signal.fire()
        assert isinstance(reader, WatchedReader)
        answering = asyncio.ensure_future(self.handler(call))
        watching = asyncio.ensure_future(reader.gone.wait())
        try:
            await asyncio.wait((answering, watching), return_when=asyncio.FIRST_COMPLETED)
            if not answering.done() or isinstance(answering.exception(), ConnectionError):  # the other side went away, as llama-server notices it
                call.cancelled = True
                raise asyncio.IncompleteReadError(b"", None)
            answering.result()
            if not self.read_bodies:  # what follows is the rest of the body
                while await reader.read(1 << 16):
                    pass
                raise asyncio.IncompleteReadError(b"", None)
        finally:
            for one in (answering, watching):
                one.cancel()
            await asyncio.gather(answering, watching, return_exceptions=True)


async def read_body(call: Call, reader: asyncio.StreamReader) -> None:
    if call.headers.get("transfer-encoding") == "chunked":
        while size := int(await reader.readuntil(b"\r\n"), 16):
            call.body += (await reader.readexactly(size + 2))[:-2]
        assert await reader.readexactly(2) == b"\r\n"
    else:
        call.body = await reader.readexactly(int(call.headers.get("content-length", "0")))
