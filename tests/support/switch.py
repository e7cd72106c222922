"""Several models behind one address, each with a fake llama-server, between them and a test's clients the real front."""

from __future__ import annotations

import contextlib
import socket
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from llamad.front.keys import KeySet
from llamad.front.lane import Lane
from llamad.front.settings import FrontSettings, ModelDescription
from llamad.front.several import SwitchFront
from tests.support.fake_upstream import FakeUpstream, Handler, answer_ok
from tests.support.front import QuickClock
from tests.support.http import Answer, Client, RecordingObserver, ask, yield_to_loop


class SwitchBench:
    """See `switching`."""

    def __init__(self, folder: Path, settings: FrontSettings, keys: str) -> None:
        self.folder = folder
        self.clock = QuickClock()
        self.observer = RecordingObserver()
        self.pending: list[str] = []
        self.front = SwitchFront(settings, KeySet.from_text(keys), self.observer, self.clock, lambda: self.pending)
        self.lanes: dict[str, Lane] = {}
        self.observers: dict[str, RecordingObserver] = {}
        self.upstreams: dict[str, FakeUpstream] = {}
        self.address: tuple[str, int] = ("127.0.0.1", 0)

    def add(self, name: str, *aliases: str, keys: str = "", **changes: Any) -> Lane:
        """One more model, which is not loaded."""
        self.observers[name] = RecordingObserver()
        settings = replace(FrontSettings(name, aliases=aliases, cause_wait_s=0.0), **changes)
        about = ModelDescription("ready", context_tokens=4096)
        lane = self.front.add(settings, KeySet.from_text(keys), self.observers[name], lambda: about)
        self.lanes[name] = lane
        return lane

    async def load(self, name: str, handler: Handler = answer_ok) -> FakeUpstream:
        """Start its llama-server and open its lane."""
        path = self.folder / f"{name}{self.lanes[name].gate.generation}.sock"
        self.upstreams[name] = upstream = await FakeUpstream(path, handler).start()
        self.lanes[name].open(str(path))
        return upstream

    async def ask(self, *args: Any, **kwargs: Any) -> Answer:
        return await ask(self.address, *args, **kwargs)

    async def chat(self, body: bytes, **headers: str) -> Answer:
        return await self.ask("POST", "/v1/chat/completions", body, **headers)

    async def client(self) -> Client:
        return await Client.open(self.address)

    def served(self) -> dict[str, int]:
        """How many requests each llama-server got."""
        return {name: len(upstream.calls) for name, upstream in self.upstreams.items()}


@contextlib.asynccontextmanager
async def switching(*names: str, keys: str = "", **changes: Any) -> AsyncIterator[SwitchBench]:
    """A front over TCP (through a unix socket its own user is the admin), with these models loaded."""
    with tempfile.TemporaryDirectory(prefix="switch") as folder:
        bench = SwitchBench(Path(folder), replace(FrontSettings("llamad"), **changes), keys)
        sock = socket.create_server(bench.address, backlog=64)
        bench.address = sock.getsockname()
        for name in names:
            bench.add(name)
            await bench.load(name)
        await bench.front.start([sock])
        try:
            yield bench
        finally:
            await bench.front.close(0)
            for upstream in bench.upstreams.values():
                await upstream.kill()
            sock.close()
            await yield_to_loop()
            shared = bench.front._shared
            assert (shared.memory.held_bytes, len(shared.clients)) == (0, 0)
            assert all(lane.is_quiet and not lane.gate.in_flight for lane in bench.front.switch.lanes)
