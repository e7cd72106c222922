"""A front between a test's clients and fake llama-servers, that checks for leaks when the test is over."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from llamad.clock import Clock
from llamad.front.keys import KeySet
from llamad.front.relay import Front
from llamad.front.settings import FrontSettings, ModelDescription
from tests.support.fake_upstream import FakeUpstream, Handler, answer_ok
from tests.support.http import Answer, Client, FakeClock, RecordingObserver, ask, yield_to_loop

MODEL = ModelDescription("ready", context_tokens=4096, trained_context_tokens=8192, size_bytes=1000)


T = TypeVar("T")


class Bench:
    """See `running`."""

    def __init__(self, folder: Path, settings: FrontSettings, keys: KeySet, clock: Clock) -> None:
        self.folder = folder
        self.settings = settings
        self.clock = clock
        self.observer = RecordingObserver()
        self.front = Front(settings, keys, self.observer, clock, lambda: MODEL)
        self.upstreams: list[FakeUpstream] = []
        self.sockets: list[socket.socket] = []
        self.address: str | tuple[str, int] = ""

    @property
    def upstream(self) -> FakeUpstream:
        """The latest llama-server."""
        return self.upstreams[-1]

    async def serve(
        self, handler: Handler = answer_ok, *, open_gate: bool = True, pool_tokens: int | None = None, **opening: Any
    ) -> FakeUpstream:
        """Start a llama-server and let requests through to it."""
        path = self.folder / f"upstream{len(self.upstreams)}.sock"
        upstream = await FakeUpstream(path, handler).start()
        self.upstreams.append(upstream)
        if open_gate:
            self.front.open(str(path), pool_tokens=pool_tokens, **opening)
        return upstream

    async def restart(self, handler: Handler = answer_ok) -> FakeUpstream:
        """What a supervisor does when llama-server dies."""
        self.front.hold("restarting")
        await self.upstream.kill()
        return await self.serve(handler)

    def listen(self, kind: str) -> str | tuple[str, int]:
        """One more address: `unix`, `tcp` or `tcp6`."""
        if kind == "unix":
            path = str(self.folder / f"front{len(self.sockets)}.sock")
            sock = socket.socket(socket.AF_UNIX)
            sock.bind(path)
            address: str | tuple[str, int] = path
        else:
            host = "127.0.0.1" if kind == "tcp" else "::1"
            sock = socket.socket(socket.AF_INET if kind == "tcp" else socket.AF_INET6)
            sock.bind((host, 0))
            address = sock.getsockname()[:2]
        sock.listen(256)
        self.sockets.append(sock)
        return address

    async def client(self) -> Client:
        return await Client.open(self.address)

    async def ask(self, *args: Any, **kwargs: Any) -> Answer:
        return await ask(self.address, *args, **kwargs)

    async def pass_s(self, seconds: float) -> None:
        """Let the fake clock run."""
        assert isinstance(self.clock, FakeClock)
        await self.clock.advance(seconds)

    async def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Let the fake clock run until `work` is done."""
        task = asyncio.ensure_future(work)
        while not task.done() and isinstance(self.clock, FakeClock):
            await self.pass_s(0.5)
        return await task

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that the observer is told of."""
        await self.observer.signal.until(condition)

    async def close(self) -> None:
        await self.finish(self.front.close(0))
        for upstream in self.upstreams:
            await upstream.kill()
        for sock in self.sockets:
            sock.close()
        await yield_to_loop()
        shared = self.front._shared
        assert (shared.memory.held_bytes, self.front.in_flight, self.front.waiting) == (0, 0, 0)
        assert not shared.clients and shared.lane.is_quiet


class QuickClock(FakeClock):
    """A fake clock whose short waits (a full backlog, goodbyes) pass by themselves."""

    async def sleep(self, delay_s: float) -> None:
        if delay_s < 1.0:
            await yield_to_loop(2)
        else:
            await super().sleep(delay_s)


@contextlib.asynccontextmanager
async def running(
    kind: str = "tcp",
    *,
    keys: str = "",
    handler: Handler | None = answer_ok,
    clock: Clock | None = None,
    **changes: Any,
) -> AsyncIterator[Bench]:
    """A front that listens on an address of `kind`, before a llama-server with `handler` (None: not started)."""
    settings = replace(FrontSettings("tiny", cause_wait_s=0.0), **changes)
    with tempfile.TemporaryDirectory(prefix="front") as folder:
        bench = Bench(Path(folder), settings, KeySet.from_text(keys), clock or QuickClock())
        bench.address = bench.listen(kind)
        if handler is not None:
            await bench.serve(handler)
        await bench.front.start(bench.sockets)
        try:
            yield bench
        finally:
            await bench.close()
