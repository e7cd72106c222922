"""The load of `llamad bench` against an HTTP server that is told how fast to be, and that misbehaves."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from llamad.clock import SystemClock
from llamad.errors import AccessError, BusyError, LlamadError
from llamad.measure.bench import Bench, Room, Workload, lengths
from llamad.measure.client import Answer, RequestFailed, Target, complete
from llamad.measure.load import Load, speeds_of
from llamad.measure.traffic import Traffic

Reply = Callable[[dict[str, Any], asyncio.StreamWriter], Awaitable[None]]


class FakeServer:
    """Answers `/completion` as it is told; notes what it was asked."""

    def __init__(self, path: Path, reply: Reply | None = None, metrics: str = "") -> None:
        self.target = Target(unix_path=str(path), key="sesame", model="phi4")
        self._reply = reply or streamed()
        self._metrics = metrics
        self.bodies: list[dict[str, Any]] = []
        self.heads: list[str] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FakeServer]:
        server = await asyncio.start_unix_server(self._serve, self.target.unix_path)
        async with server:
            yield self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.heads.append(head)
            fields = dict(line.lower().split(": ", 1) for line in head.splitlines() if ": " in line)
            body = await reader.readexactly(int(fields["content-length"]))
            if head.startswith("GET /metrics"):
                writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(self._metrics)}\r\n\r\n{self._metrics}".encode())
            else:
                self.bodies.append(json.loads(body))
                await self._reply(self.bodies[-1], writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            return  # the client was told to go away early
        finally:
            writer.close()


def chunk(text: str) -> bytes:
    return f"{len(text):x}\r\n{text}\r\n".encode()


def streamed(*, token_s: float = 0.0, first_s: float = 0.0, cached: int = 0, cut: bool = False) -> Reply:
    async def reply(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(": ping\n\n"))
        await asyncio.sleep(first_s)
        for _ in range(body["n_predict"]):
            writer.write(chunk('data: {"content":"x","stop":false}\n\n'))
            await writer.drain()
            await asyncio.sleep(token_s)
        if not cut:
            tokens = len(body["prompt"])
            last = {"tokens_predicted": body["n_predict"], "tokens_evaluated": tokens, "timings": {"cache_n": cached}}
            writer.write(chunk(f"data: {json.dumps(last)}\n\n") + b"0\r\n\r\n")

    return reply


def status(code: int, message: str = "no") -> Reply:
    async def reply(_body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        text = json.dumps({"error": {"message": message}})
        writer.write(f"HTTP/1.1 {code} X\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())

    return reply


def raw(data: bytes) -> Reply:
    async def reply(_body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(data)

    return reply


def run(server: FakeServer, work: Callable[[], Awaitable[Any]]) -> Any:
    async def go() -> Any:
        async with server.running():
            return await asyncio.wait_for(work(), 20)

    return asyncio.run(go())


def test_a_request_uses_no_cache_and_has_exactly_its_tokens(tmp_path: Path) -> None:
    server = FakeServer(tmp_path / "s")
    answer = run(server, lambda: complete(server.target, [1, 2, 3], 5))
    assert (answer.prompt_tokens, answer.generated_tokens, len(answer.event_s)) == (3, 5, 5)
    body = server.bodies[0]
    assert (body["prompt"], body["n_predict"], body["ignore_eos"]) == ([1, 2, 3], 5, True)
    assert (body["cache_prompt"], body["model"]) == (False, "phi4")
    assert "Authorization: Bearer sesame" in server.heads[0]
    assert "sesame" not in repr(server.target)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (status(401), AccessError),
        (status(503), BusyError),
        (status(500, "bad \x1b[31m"), RequestFailed),
        (streamed(cut=True), RequestFailed),
        (streamed(cached=3), RequestFailed),
        (raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"), RequestFailed),
        (raw(b"SSH-2.0\r\n\r\n"), RequestFailed),
        (raw(b""), RequestFailed),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 26\r\n\r\ndata: {\"error\": \"x\"}\n\n    "), RequestFailed),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n" + b"data: " + b"[" * 6), RequestFailed),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_an_error_in_words(tmp_path: Path, reply: Reply, kind: type[LlamadError]) -> None:
    server = FakeServer(tmp_path / "s", reply)
    with pytest.raises(kind) as caught:
        run(server, lambda: complete(server.target, [1, 2, 3], 2))
    assert str(caught.value).isprintable()


def test_prompts_differ_from_their_first_token_on(tmp_path: Path) -> None:
    server = FakeServer(tmp_path / "s")
    load = Load(server.target, 32000, random.Random(1))
    run(server, lambda: load.round(64, 2, 8))
    assert load.requests == 8
    assert len({body["prompt"][0] for body in server.bodies}) == 8
    assert all(4000 <= token < 16000 for body in server.bodies for token in body["prompt"])


def test_speeds_of_a_round_are_by_the_clock() -> None:
    """Two requests: one is read after 1 s, the other after 2 s; 4 tokens a second each from then on."""
    first = Answer(10.0, tuple(11 + n / 4 for n in range(9)), 100, 9)
    second = Answer(10.0, tuple(12 + n / 4 for n in range(9)), 100, 9)
    speeds = speeds_of([first, second])
    assert speeds.first_token_s == 1.5
    assert speeds.prompt_tokens_s == 100
    assert speeds.generated_tokens_s == pytest.approx(8)
    assert speeds.wall_s == 4
    one = speeds_of([first])
    assert one.generated_tokens_s == pytest.approx(4)


def test_events_of_several_tokens_are_scaled() -> None:
    """Speculative decoding sends several tokens an event: 20 tokens in 10 events within 2.25 s."""
    speeds = speeds_of([Answer(0.0, tuple(1 + n / 4 for n in range(10)), 10, 20)])
    assert speeds.generated_tokens_s == pytest.approx(18 / 2.25)


def test_answers_that_never_overlap_have_no_speed_of_generation() -> None:
    first, second = Answer(0.0, (1.0, 1.1), 10, 2), Answer(0.0, (5.0, 5.1), 10, 2)
    assert speeds_of([first, second]).generated_tokens_s is None


ROOM = Room(context_tokens=4096, slots=4, request_tokens=1024)


def test_what_does_not_fit_is_left_out_with_the_reason() -> None:
    assert lengths((512, 2048), ROOM, 128) == [512]
    assert lengths((2048,), ROOM, 128) == [1024 - 128 - 16]
    assert ROOM.problem(512, 128, 4) == ""
    assert "2624 tokens" in Room(2000, 4, 2000).problem(512, 128, 4)


def points(server: FakeServer, workload: Workload) -> Any:
    load = Load(server.target, 1000, random.Random(1))
    return run(server, lambda: Bench(load, ROOM, SystemClock(), lambda _text: None).run(workload))


def test_each_point_has_its_rounds_after_one_that_warms_up(tmp_path: Path) -> None:
    server = FakeServer(tmp_path / "s", streamed(token_s=0.002))
    found = points(server, Workload((8, 16), (1, 2), 4, 3, 60))
    assert [(one.prompt_tokens, one.requests_at_once) for one in found] == [(8, 1), (16, 1), (8, 2), (16, 2)]
    assert all(len(one.generated_tokens_s.values) == 3 and one.note == "" for one in found)
    assert len(server.bodies) == 4 * (1 + 1 + 2 + 2)
    # At least 2 ms a token and stream: no machine is faster than its clock.
    assert all(one.generated_tokens_s.median <= one.requests_at_once / 0.002 for one in found)


def test_out_of_time_says_how_many_rounds_there_were(tmp_path: Path) -> None:
    server = FakeServer(tmp_path / "s", streamed(first_s=0.2))
    first, second = points(server, Workload((8, 16), (1,), 2, 100, 1.0))
    assert first.note.endswith("of 100 rounds: out of time")
    assert 0 < len(first.first_token_s.values) < 10
    assert second.note.startswith("0 of")
    assert second.prompt_tokens_s is None


METRICS = """# TYPE llamad_requests_total counter
llamad_requests_total{model="phi4",outcome="finished"} %d
llamad_requests_total{model="phi4",outcome="local"} 9%d
llamad_requests_total{model="other",outcome="finished"} 50
# TYPE llamad_active_requests gauge
llamad_active_requests{model="phi4"} %d
"""


def test_requests_of_others_are_counted_without_ours(tmp_path: Path) -> None:
    server = FakeServer(tmp_path / "s", metrics=METRICS % (10, 1, 0))

    async def go() -> tuple[int, int, int]:
        traffic = Traffic(server.target, "phi4")
        present = await traffic.begin()
        server._metrics = METRICS % (15, 4, 1)
        return present, await traffic.others(5), await traffic.others(3)

    assert run(server, go) == (0, 1, 3)


def test_an_address_without_metrics_counts_nobody(tmp_path: Path) -> None:
    server = FakeServer(tmp_path / "s", metrics="not found")

    async def go() -> tuple[int, int]:
        traffic = Traffic(server.target, "phi4")
        return await traffic.begin(), await traffic.others(5)

    assert run(server, go) == (0, 0)


def test_an_address_that_does_not_answer_counts_nobody(tmp_path: Path) -> None:
    """Of a service that is stopped, say: the kernel takes the connection."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        traffic = Traffic(Target(unix_path=str(tmp_path / "s")), "phi4", wait_s=0.1)
        assert asyncio.run(asyncio.wait_for(traffic.begin(), 20)) == 0
