"""Seeded fuzz of the front over real sockets: whatever comes in, nothing leaks, sticks, or reaches llama-server wrongly,
and a well-behaved client is served all the while.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import random
import re
import resource
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamad.clock import SystemClock
from tests.support.fake_upstream import Call
from tests.support.front import Bench, running
from tests.support.hostile_http import BODY_BYTES, CASES, HEAD_BYTES, HEAD_FIELDS, MARK
from tests.support.http import Client

PATIENCE_S = 20.0
POOL_TOKENS = 200_000
_STATUSES = {200, 204, 400, 401, 403, 404, 405, 408, 413, 417, 429, 431, 502, 503, 505}
_TOKENS = [
    b"Content-Length: ", b"Transfer-Encoding: chunked\r\n", b"\r\n\r\n", b"\r\n", b"\n", b"\r", b"\0", b": ", b" ", b"\xff",
    b"0\r\n\r\n", b"Host: localhost\r\n", b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"HTTP/1.0", b"%0d%0a", b"{", b"[",
    b"Connection: keep-alive, Content-Length\r\n", b"ffffffffffffffff\r\n", b'"id_slot":1,', b"\\u0000", b"GET /health HTTP/1.1\r\n",
]  # fmt: skip
_HEAD_FORM = re.compile(rb"HTTP/1\.1 ([0-9]{3}) [ -~]*\r\n((?:[!-9;-~]+: ?[ -~]*\r\n)*)\r\n")


@dataclass
class Found:
    """What a run has seen."""

    statuses: Counter[int] = field(default_factory=Counter)
    witness: list[float] = field(default_factory=list)
    """Seconds of each request of the well-behaved client."""
    upstream: int = 0
    problems: list[str] = field(default_factory=list)
    exact: bool = True
    """Requests come as they are written down: a changed one may rightly ask for what was hidden in it."""


@contextlib.asynccontextmanager
async def fuzzed_front(**changes: Any) -> AsyncIterator[tuple[Bench, Found]]:
    """A front with short deadlines before a llama-server that looks closely; checks for leaks at the end."""
    found = Found()
    before = len(os.listdir("/proc/self/fd"))
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: found.problems.append(f"in the loop: {context}"))
    limits: dict[str, Any] = {
        "head_bytes": HEAD_BYTES, "head_fields": HEAD_FIELDS, "body_bytes": BODY_BYTES, "client_idle_s": 60.0,
        "head_timeout_s": 1.0, "body_idle_s": 1.0, "queue_requests": 10_000, **changes,
    }  # fmt: skip
    async with running(handler=None, clock=SystemClock(), **limits) as bench:
        await bench.serve(_closely(found), pool_tokens=POOL_TOKENS, default_output_tokens=16)
        yield bench, found
        await _settle(bench, found)
    gc.collect()
    left = len(os.listdir("/proc/self/fd")) - before
    if left > 2:  # the loop's own
        found.problems.append(f"{left} file descriptors left")


async def _settle(bench: Bench, found: Found) -> None:
    """Wait until every connection that nobody uses any more is gone from the front."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + PATIENCE_S
    while (bench.front.connections or bench.front.in_flight) and loop.time() < until_s:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    if bench.front.connections or bench.front.in_flight or bench.front.waiting:
        stuck = (bench.front.connections, bench.front.in_flight, bench.front.waiting)
        found.problems.append(f"connections, requests and waiting ones that are stuck: {stuck}")
    if bench.front.tokens[0]:
        found.problems.append(f"{bench.front.tokens[0]} tokens are never given back")


def _closely(found: Found) -> Any:
    async def answer(call: Call) -> None:
        found.upstream += call.headers.get("x-request-id") != "witness"
        smuggled = found.exact and MARK.decode() in call.target
        if smuggled or "x-request-id" not in call.headers:
            found.problems.append(f"llama-server was asked for {call.target} with {call.headers}")
        if call.method == "POST" and b"id_slot" in call.body and b'"id_slot":' in call.body.replace(b" ", b""):
            with contextlib.suppress(ValueError):
                asked = json.loads(call.body)
                if isinstance(asked, dict) and "id_slot" in asked and call.target.partition("?")[0] == "/v1/completions":
                    found.problems.append(f"a slot was named: {call.body[:200]!r}")
        await call.reply(b'{"echo":%d}' % len(call.body))

    return answer


async def run_corpus(bench: Bench, found: Found) -> None:
    """Every hostile case must get its answer."""
    for case in CASES:
        seen = found.upstream
        async with await Client.open(bench.address) as client:
            client.send(case.data)
            try:
                answer = await asyncio.wait_for(client.answer(), PATIENCE_S)
                if answer.status != case.status:
                    found.problems.append(f"{case.name}: {answer.status} instead of {case.status}: {answer.body[:200]!r}")
                elif case.stays:
                    again = await asyncio.wait_for(client.ask("GET", "/health", None), PATIENCE_S)
                    if again.status != 200:
                        found.problems.append(f"{case.name}: the connection does not serve on")
                elif not await asyncio.wait_for(client.closed(), PATIENCE_S):
                    found.problems.append(f"{case.name}: more came behind the refusal")
            except (asyncio.IncompleteReadError, ConnectionError, TimeoutError) as error:
                found.problems.append(f"{case.name}: {type(error).__name__} instead of {case.status}")
        if found.upstream - seen != int(case.passes):
            found.problems.append(f"{case.name}: llama-server got {found.upstream - seen} requests")


async def witness(bench: Bench, found: Found) -> None:
    """A well-behaved client, again and again: it must always be answered."""
    body = json.dumps({"prompt": "hello", "max_tokens": 3}).encode()
    loop = asyncio.get_running_loop()
    async with await Client.open(bench.address) as client:
        while True:
            began_s = loop.time()
            answer = await asyncio.wait_for(
                client.ask(target="/v1/completions", body=body, X_Request_Id="witness"), PATIENCE_S
            )
            found.witness.append(loop.time() - began_s)
            if (answer.status, answer.body) != (200, b'{"echo":%d}' % len(body)):
                found.problems.append(f"a good request got {answer.status}: {answer.body[:200]!r}")
            for kept in (bench.observer.records, bench.observer.counted, bench.upstream.calls):
                kept.clear()  # what the test's side keeps would look like a leak
            await asyncio.sleep(0.02)


def resident_mib() -> float:
    """Memory of this process."""
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS:")) / 1024


class Fuzzer:
    """Requests drawn from a seed: good ones and hostile ones, torn, mixed and cut off anywhere."""

    def __init__(self, bench: Bench, found: Found, seed: int) -> None:
        self._bench = bench
        self._found = found
        self._random = random.Random(seed)
        self._good = [
            b'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 30\r\n\r\n{"prompt":"abc","max_tokens":9}'[:-1] + b"}",
            b"GET /props HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
            b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
            *(case.data for case in CASES),
        ]

    async def run(self, until_s: float) -> int:
        """Go on until then; how many connections were made."""
        count = 0
        loop = asyncio.get_running_loop()
        while loop.time() < until_s:
            await self._one(self._draw())
            count += 1
        return count

    def _draw(self) -> bytes:
        draw = self._random
        data = bytearray(b"".join(draw.choice(self._good)[:8000] for _ in range(draw.choice((1, 1, 1, 2, 3)))))
        for _ in range(draw.choice((0, 1, 1, 2, 4, 8))):
            at = draw.randrange(len(data) + 1)
            how = draw.randrange(6)
            if how == 0 and data:
                data[min(at, len(data) - 1)] ^= 1 << draw.randrange(8)
            elif how == 1:
                data[at:at] = draw.choice(_TOKENS)
            elif how == 2:
                del data[at : at + draw.randrange(1, 30)]
            elif how == 3:
                data[at:at] = data[at : at + draw.randrange(1, 200)]
            elif how == 4:
                data[at:at] = draw.randbytes(draw.randrange(1, 20))
            else:
                del data[at:]
        return bytes(data)

    async def _one(self, data: bytes) -> None:
        draw = self._random
        async with await Client.open(self._bench.address) as client:
            reader, writer = client.reader, client.writer
            try:
                pieces = draw.choice((1, 1, 2, 5))
                step = len(data) // pieces + 1
                for at in range(0, len(data), step):
                    writer.write(data[at : at + step])
                    await asyncio.sleep(0)
                ending = draw.random()
                if ending < 0.15:
                    return  # gone without reading
                if ending < 0.9:
                    writer.write_eof()
                    got = await asyncio.wait_for(reader.read(), PATIENCE_S)
                else:
                    got = await asyncio.wait_for(reader.read(1 << 16), PATIENCE_S)
                self._check(data, got)
            except TimeoutError:
                if not _may_be_silent(data):
                    self._found.problems.append(f"no answer and no end to {data[:300]!r}")
            except (ConnectionError, OSError):
                return  # it may break off whom it does not understand

    def _check(self, data: bytes, got: bytes) -> None:
        if not got:
            return
        match = _HEAD_FORM.match(got)
        if match is None:
            self._found.problems.append(f"no HTTP: {got[:300]!r} to {data[:300]!r}")
            return
        status = int(match[1])
        self._found.statuses[status] += 1
        if status not in _STATUSES and status != 100:
            self._found.problems.append(f"status {status} to {data[:300]!r}")
        if b"Set-Cookie" in match[2]:
            self._found.problems.append(f"a split answer to {data[:300]!r}")


def _may_be_silent(data: bytes) -> bool:
    """Empty lines, or nothing at all, begin no request."""
    return not data.strip(b"\r\n")


async def crowd(bench: Bench, found: Found, count: int) -> int:
    """So many idle connections: whoever asks on one of them is answered. How many there were."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * count + 1000
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # only root may go beyond the hard limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(wanted, hard)))
        if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            count = min(count, (hard - 1000) // 2)
    clients: list[Client] = []
    for at in range(0, count, 100):
        clients += await asyncio.gather(*(Client.open(bench.address) for _ in range(min(100, count - at))))
    for client in clients[:: max(1, count // 20)]:
        answer = await asyncio.wait_for(client.ask("GET", "/health", None), PATIENCE_S)
        if answer.status != 200:
            found.problems.append(f"one of {count} connections got {answer.status}")
    for client in clients:
        client.writer.transport.abort()
    await asyncio.sleep(0.1)
    return count


async def fuzz(seconds: float, seed: int, connections: int, workers: int = 16) -> tuple[Found, dict[str, Any]]:
    """A whole run: the corpus, the fuzz and the crowd, beside a witness. What was found, and figures."""
    loop = asyncio.get_running_loop()
    async with fuzzed_front() as (bench, found):
        watch = asyncio.ensure_future(witness(bench, found))
        await run_corpus(bench, found)
        found.exact = False
        until_s, before_mib = loop.time() + seconds, resident_mib()
        made = await asyncio.gather(*(Fuzzer(bench, found, seed * 1000 + one).run(until_s) for one in range(workers)))
        gc.collect()
        grown_mib = resident_mib() - before_mib
        crowded = await crowd(bench, found, connections)
        if watch.done():
            found.problems.append(f"the well-behaved client ended: {watch.exception()!r}")
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        times = sorted(found.witness)
    figures = {
        "fuzzed connections": sum(made), "idle connections": crowded, "good requests": len(times),
        "good p50 ms": 1e3 * times[len(times) // 2], "good max ms": 1e3 * times[-1],
        "memory grown by MiB": grown_mib, "requests at llama-server": found.upstream, "statuses": dict(sorted(found.statuses.items())),
    }  # fmt: skip
    return found, figures
