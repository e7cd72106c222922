"""Answers that are kept for the very same request: for whom, how many, and until when."""

from __future__ import annotations

import json
import random
from typing import Any

from llamad.front.head import Framing, ResponseHead, parse_request
from llamad.front.responses import ResponseCache, key_of
from llamad.front.settings import Outcome
from tests.support.fake_upstream import Call
from tests.support.front import running
from tests.support.http import scenario

HEAD = ResponseHead(200, Framing.CHUNKED, -1, True, b"application/json", b"HTTP/1.1 200 OK\r\n", ())
ZERO = b'{"temperature":0,"prompt":"x"}'


def key(body: bytes, line: bytes = b"POST /v1/completions", auth: bytes = b"", definition: str = "d") -> bytes | None:
    head = parse_request(line + b" HTTP/1.1\r\nHost: a\r\n" + auth + b"\r\n")
    return key_of(head, body, definition)


def test_only_answers_that_are_determined() -> None:
    assert key(ZERO) and key(b'{"temperature":0.0}') and key(b'{"seed":7}')
    for chance in (b"{}", b'{"temperature":0.1}', b'{"temperature":false}', b'{"seed":-1}', b'{"seed":null}', b"[0]", b"{"):
        assert key(chance) is None
    assert key(b"{}", b"POST /v1/embeddings")
    assert key(ZERO, b"GET /v1/completions") is None and key(ZERO, b"POST /tokenize") is None


def test_what_makes_another_request() -> None:
    keys = [
        key(ZERO), key(ZERO, b"POST /v1/chat/completions"), key(ZERO, b"POST /v1/completions?x"),
        key(ZERO, auth=b"Authorization: Bearer a\r\n"), key(ZERO, auth=b"Authorization: Bearer b\r\n"),
        key(ZERO, definition="e"), key(b'{"temperature":0,"prompt":"y"}'), key(b'{"temperature":0.0,"prompt":"x"}'),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert key(b' { "prompt" : "\\u0078", "temperature": 0 } ') == key(ZERO)


def test_bounds_hold_for_any_order_of_calls() -> None:
    draw = random.Random(11)
    cache = ResponseCache(20, 20_000)
    for _ in range(5000):
        name = b"%d" % draw.randrange(60)
        if draw.random() < 0.5:
            cache.put(name, HEAD, b"x" * draw.choice((0, 100, 3000, 5000, 6000)))
        else:
            stored = cache.get(name)
            assert stored is None or stored.head.length == len(stored.body) <= 5000
        assert len(cache) <= 20 and 0 <= cache.held_bytes <= 20_000
    assert cache.clear() and (len(cache), cache.held_bytes) == (0, 0)


def test_the_least_used_gives_way_and_errors_are_not_kept() -> None:
    cache = ResponseCache(2, 100_000)
    cache.put(b"a", HEAD, b"1")
    cache.put(b"b", HEAD, b"2")
    assert cache.get(b"a")
    cache.put(b"c", HEAD, b"3")
    assert cache.get(b"b") is None and cache.get(b"a") and cache.get(b"c")
    cache.put(b"d", ResponseHead(500, Framing.NONE, 0, True, b"", b"", ()), b"4")
    assert cache.get(b"d") is None
    assert (cache.hits, cache.misses) == (3, 2)


@scenario
async def test_the_second_request_is_answered_without_llama_server() -> None:
    async def count(call: Call) -> None:
        await call.reply(json.dumps({"call": len(bench.upstream.calls)}).encode(), Server="llama.cpp")

    async with running(handler=count, keys="k\nl", cache_responses=10) as bench:

        async def ask(body: bytes, key: str = "k") -> Any:
            return await bench.ask(target="/v1/completions", body=body, Authorization=f"Bearer {key}")

        first, second = await ask(ZERO), await ask(b'{"prompt":"x", "temperature":0}')
        assert (first.json, second.json) == ({"call": 1}, {"call": 1})
        assert "x-llamad-cache" not in first.headers and second.headers["x-llamad-cache"] == "hit"
        assert second.headers["server"] == "llama.cpp"
        assert first.headers["x-request-id"] != second.headers["x-request-id"]
        assert (await ask(ZERO, "l")).json == {"call": 2}  # another client
        assert (await ask(b"{}")).json == {"call": 3} and (await ask(b"{}")).json == {"call": 4}
        outcomes = [record.outcome for record in bench.observer.records]
        assert outcomes.count(Outcome.REPEATED) == 1
        assert bench.front.forget_responses() == 2
        assert (await ask(ZERO)).json == {"call": 5}
        bench.front.apply(bench.settings, bench.front._shared.keys)
        assert (await ask(ZERO)).json == {"call": 6}


@scenario
async def test_a_stream_is_repeated_whole_and_only_a_whole_one_is_kept() -> None:
    async def stream(call: Call) -> None:
        await call.begin_stream()
        await call.event('{"n":1}')
        if len(bench.upstream.calls) == 1:
            call.die()
            return
        await call.event("[DONE]")
        await call.end()

    async with running(handler=stream, cache_responses=10) as bench:
        cut = await bench.ask(body=ZERO)
        assert "error" in cut.events[-1]
        for _ in range(2):
            answer = await bench.finish(bench.ask(body=ZERO))
            assert answer.events == ['{"n":1}', "[DONE]"] and answer.clean
            assert answer.headers["content-type"] == "text/event-stream"
        assert len(bench.upstream.calls) == 2


@scenario
async def test_nothing_is_kept_unless_asked_for() -> None:
    async with running() as bench:
        for _ in range(2):
            assert "x-llamad-cache" not in (await bench.ask(body=ZERO)).headers
        assert len(bench.upstream.calls) == 2
