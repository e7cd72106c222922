"""Seeded disorder: llama-server dies, clients leave, nothing leaks, and nobody gets a wrong or silently cut answer."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest

from llamad.front.settings import Outcome
from tests.support.fake_upstream import Call
from tests.support.front import Bench, running
from tests.support.http import Client, scenario

CODES = {"upstream_lost", "poison", "wait_timeout", "queue_full", "reload"}


class Disorder:
    """One run: everything is drawn from one seed, but for the order in which sockets become ready."""

    def __init__(self, bench: Bench, seed: int) -> None:
        self.bench = bench
        self.random = random.Random(seed)
        self.whole = 0
        self.errors = 0
        self.broken = 0

    async def serve(self, call: Call) -> None:
        """Answer with what was asked, in one of several ways, or die on the way."""
        fate = self.random.random()
        await self.pause()
        if fate < 0.05:
            call.die()
        elif b"stream" in call.body:
            await self.stream(call, dies=fate < 0.15)
        elif fate < 0.15:
            await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart")
            call.die()
        elif fate < 0.5:
            await call.reply(call.body)
        else:
            await call.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            await self.pause()
            await call.chunk(call.body)
            await call.end()

    async def stream(self, call: Call, *, dies: bool) -> None:
        await call.begin_stream()
        for number in range(self.random.randrange(1, 6)):
            await self.pause()
            await call.ping()
            if dies and number == 2:
                await call.send(b"40\r\ndata: cut in the mid")
                call.die()
                return
            await call.event(call.body.decode())
        await call.event("[DONE]")
        await call.end()

    async def pause(self) -> None:
        for _ in range(self.random.randrange(4)):
            await asyncio.sleep(0)

    async def client(self, number: int) -> None:
        connection = await self.bench.client()
        for turn in range(5):
            body = b"%d-%d-%s" % (number, turn, self.random.choice([b"stream", b"plain"]))
            if self.random.random() < 0.3:
                connection.request(
                    body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body), Transfer_Encoding="chunked"
                )
            else:
                connection.request(body=body)
            if self.random.random() < 0.1:
                await self.pause()
                connection.writer.transport.abort()
                connection = await self.bench.client()
            elif not await self.check(connection, body):
                connection.writer.transport.abort()
                connection = await self.bench.client()
        connection.writer.transport.abort()

    async def check(self, connection: Client, body: bytes) -> bool:
        """Read an answer and judge it; whether the connection can be used on."""
        try:
            answer = await connection.answer()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.broken += 1
            return False
        if answer.status != 200:
            assert answer.code in CODES, answer
            self.errors += 1
        elif answer.headers.get("content-type") == "text/event-stream":
            assert answer.clean, answer
            *events, last = answer.events
            assert set(events) <= {body.decode()}, answer
            assert last == "[DONE]" or '"request_id"' in last
            self.whole += last == "[DONE]"
            self.errors += last != "[DONE]"
        elif answer.clean:
            assert answer.body == body
            self.whole += 1
        else:
            self.broken += 1
        return (
            answer.clean
            and answer.headers.get("connection") != "close"
            and '"error"' not in str(answer.body)
        )

    async def owner(self) -> None:
        """Restarts, reloads, and the time that passes."""
        while True:
            for _ in range(self.random.randrange(5, 60)):
                await asyncio.sleep(0)
            action = self.random.random()
            if action < 0.1:
                await self.bench.restart(self.serve)
            elif action < 0.2:
                self.bench.front.hold("reload")
                self.bench.front.cut("reload", "changed")
                await self.bench.front.close_upstreams()
                self.bench.front.open(str(self.bench.upstream.path))
            else:
                await self.bench.pass_s(0.5)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["tcp", "unix"])
@scenario
async def test_disorder(kind: str, seed: int) -> None:
    async with running(kind, handler=None, max_concurrent_requests=12, queue_requests=25) as bench:
        disorder = Disorder(bench, seed)
        await bench.serve(disorder.serve)
        owner = asyncio.ensure_future(disorder.owner())
        await asyncio.gather(*(disorder.client(number) for number in range(30)))
        owner.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await owner
        if not bench.front._lane.gate.is_open:
            bench.front.refuse(503, "reload", "over")
        assert disorder.whole > 50 and disorder.errors > 0
        outcomes = [record.outcome for record in bench.observer.records]
        assert outcomes.count(Outcome.ANSWERED) >= disorder.whole
        assert len(outcomes) <= 150  # each request ends once
