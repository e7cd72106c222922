"""What llamad answers itself, and what it refuses."""

from __future__ import annotations

import pytest

from llamad.front.settings import Outcome
from tests.support.fake_upstream import Call
from tests.support.front import running
from tests.support.http import Answer, scenario

LOADING = {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}


@pytest.mark.parametrize("path", ["/health", "/v1/health", "/ready"])
@scenario
async def test_health_is_told_at_once_and_without_a_key(path: str) -> None:
    async with running(handler=None, keys="k") as bench:
        answer = await bench.ask("GET", path, None)
        assert (answer.status, answer.json) == (503, LOADING)
        await bench.serve()
        answer = await bench.ask("GET", path, None)
        assert (answer.status, answer.json) == (200, {"status": "ok"})
        bench.front.refuse(503, "failed", "it failed")
        assert (await bench.ask("GET", path, None)).status == 503
        assert bench.observer.waits == 0 and bench.upstream.calls == []
        assert {record.outcome for record in bench.observer.records} == {Outcome.LOCAL}


@scenario
async def test_health_of_a_model_says_what_becomes_of_a_request() -> None:
    async with running(handler=None, aliases=("gpt-4o/mini",), keys="k") as bench:
        answer = await bench.ask("GET", "/health?model=tiny", None)
        assert (answer.status, answer.code, answer.json["requests"]) == (503, "model_not_ready", "held")
        await bench.serve()
        for name in ("tiny", "gpt-4o%2Fmini"):
            answer = await bench.ask("GET", f"/health?x=1&model={name}", None)
            assert answer.status == 200
            assert answer.json == {"status": "ok", "model": "tiny", "state": "ready", "requests": "passed"}
        answer = await bench.ask("GET", "/ready?model=other", None)
        assert (answer.status, answer.code) == (404, "model_not_found") and "tiny" not in answer.body.decode()
        assert (await bench.ask("GET", "/health?model=tiny&model=x", None)).status == 400
        bench.front.refuse(503, "failed", "it failed")
        answer = await bench.ask("GET", "/health?model=tiny", None)
        assert (answer.status, answer.json["requests"]) == (503, "refused")
        assert bench.observer.waits == 0 and bench.upstream.calls == []


@scenario
async def test_head_of_a_local_answer_has_no_body() -> None:
    async with running() as bench, await bench.client() as client:
        answer = await client.ask("HEAD", "/health", None)
        assert (answer.status, answer.headers["content-length"]) == (200, "15")
        assert (await client.ask("GET", "/health", None)).body == b'{"status":"ok"}'


@scenario
async def test_models_are_listed_also_while_loading() -> None:
    async with running(handler=None, aliases=("gpt-4o-mini",), keys="k") as bench:
        answer = await bench.ask("GET", "/v1/models", None, Authorization="Bearer k")
        assert answer.json["object"] == "list"
        assert [entry["id"] for entry in answer.json["data"]] == ["tiny", "gpt-4o-mini"]
        assert answer.json["data"][0]["meta"] == {
            "n_ctx": 4096,
            "n_ctx_train": 8192,
            "size": 1000,
            "state": "ready",
        }
        assert (await bench.ask("GET", "/models", None, Authorization="Bearer k")).json == answer.json
        one = await bench.ask("GET", "/v1/models/gpt-4o-mini", None, Authorization="Bearer k")
        assert one.json == answer.json["data"][1]
        none = await bench.ask("GET", "/v1/models/nosuch", None, Authorization="Bearer k")
        assert (none.status, none.code) == (404, "model_not_found")
        assert (await bench.ask("GET", "/v1/models", None)).status == 401


@scenario
async def test_other_methods_on_local_paths() -> None:
    async with running() as bench, await bench.client() as client:
        answer = await client.ask("POST", "/health", b"x" * 1000)
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
        assert (await client.ask("OPTIONS", "*", None)).status == 204
        assert (await client.ask("OPTIONS", "/v1/models", None)).status == 204


@scenario
async def test_a_wrong_key_is_a_401_and_the_connection_lives() -> None:
    async with running(keys="k") as bench, await bench.client() as client:
        answer = await client.ask(body=b"x" * 100_000, Authorization="Bearer wrong")
        assert (answer.status, answer.code) == (401, "invalid_api_key")
        assert answer.json["error"]["type"] == "authentication_error"
        assert answer.json["error"]["request_id"] == answer.headers["x-request-id"]
        assert (await client.ask(Authorization="Bearer k")).status == 200
        assert (await client.ask("GET", "/metrics", None)).status == 401
        assert len(bench.upstream.calls) == 1


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@scenario
async def test_a_401_is_read_by_a_client_that_sends_a_long_body(kind: str) -> None:
    async with running(kind, keys="k") as bench, await bench.client() as client:
        client.request(body=b"x" * (10 << 20), Authorization="Bearer wrong")
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (401, "close")


@scenario
async def test_a_preflight_needs_no_key() -> None:
    async with running(keys="k") as bench:
        answer = await bench.ask("OPTIONS", "/v1/chat/completions", None, Origin="http://localhost:3000")
        assert answer.status == 200


@scenario
async def test_local_answers_carry_the_origin_that_was_let_in() -> None:
    async with running() as bench:
        answer = await bench.ask("GET", "/v1/models", None, Origin="http://localhost:3000")
        assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"


@pytest.mark.parametrize(
    "path", ["/slots/0?action=erase", "/props", "/lora-adapters", "/%73lots/0", "//slots/0"]
)
@scenario
async def test_what_is_for_the_admin_only(path: str) -> None:
    async with running() as bench, await bench.client() as client:
        answer = await client.ask("POST", path)
        assert (answer.status, answer.code) == (403, "admin_only")
        assert bench.upstream.calls == []
        assert (await client.ask("GET", path, None)).status == 200


@scenario
async def test_dns_rebinding_is_refused_except_through_a_unix_socket() -> None:
    async with running(allowed_hosts=("gpu.lan",)) as bench:
        evil = await bench.ask("GET", "/v1/models", None, Host="evil.example:80")
        assert (evil.status, evil.code) == (403, "host_not_allowed")
        answer = await bench.ask("GET", "/health", None, Origin="https://evil.example")
        assert answer.status == 403 and "access-control-allow-origin" not in answer.headers
        assert (await bench.ask("GET", "/v1/models", None, Host="gpu.lan")).status == 200
        bench.address = await listen_unix(bench)
        assert (await bench.ask("GET", "/v1/models", None, Host="any.thing")).status == 200


async def listen_unix(bench: object) -> str:
    path = bench.listen("unix")  # type: ignore[attr-defined]
    await bench.front.start(bench.sockets[-1:])  # type: ignore[attr-defined]
    return str(path)


@scenario
async def test_the_host_check_can_be_turned_off() -> None:
    async with running(check_host=False) as bench:
        assert (await bench.ask("GET", "/health", None, Host="evil.example")).status == 200


@scenario
async def test_a_body_that_is_too_long() -> None:
    async with running(body_bytes=1000) as bench:
        known = await bench.ask(body=b"x" * 1001)
        assert (known.status, known.code) == (413, "body_too_large")
        async with await bench.client() as client:
            client.request(body=b"400\r\n" + b"x" * 1024 + b"\r\n", Transfer_Encoding="chunked")
            answer = await client.answer()
            assert (answer.status, answer.headers["connection"]) == (413, "close")
        assert bench.upstream.calls == []


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nHost: localhost\n\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", 400),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length : 5\r\n\r\nhello", 400),
        (
            b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\n0\n\n", 400),
        (
            b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n",
            400,
        ),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nExpect: magic\r\n\r\nx", 417),
        (b"GET / HTTP/2.0\r\nHost: localhost\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 70_000, 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: 1\r\n" * 300 + b"\r\n", 431),
    ],
)
@scenario
async def test_hostile_requests_are_refused_and_the_connection_closed(sent: bytes, status: int) -> None:
    async with running() as bench, await bench.client() as client:
        client.send(sent + b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (status, "close")
        assert answer.json["error"]["type"] in ("invalid_request_error", "server_error")
        assert await client.closed()
        assert bench.upstream.calls == []
        assert (await bench.ask("GET", "/health", None)).status == 200
        assert bench.observer.records[0].outcome is Outcome.REFUSED


@scenario
async def test_smuggled_requests_stay_in_the_body() -> None:
    """What looks like a request inside a body is body, for both framings."""
    inner = b"POST /slots/0?action=erase HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"

    async with running() as bench, await bench.client() as client:
        await client.ask(body=inner)
        client.request(body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(inner), inner), Transfer_Encoding="chunked")
        await client.answer()
        assert [call.body for call in bench.upstream.calls] == [inner, inner]


@scenario
async def test_a_head_that_comes_byte_by_byte() -> None:
    async with running("unix") as bench, await bench.client() as client:
        for byte in b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n":
            client.send(bytes((byte,)))
            await client.writer.drain()
        assert (await client.answer()).status == 200


@scenario
async def test_a_head_that_does_not_come_in_time() -> None:
    async with running() as bench, await bench.client() as client, await bench.client() as other:
        client.send(b"GET / HTTP/1.1\r\nHost:")
        await connected(bench, 2)
        await bench.pass_s(29)
        client.send(b" localhost\r\n")  # more bytes buy no more time
        await bench.pass_s(2)
        answer = await client.answer()
        assert (answer.status, answer.code) == (408, "request_timeout")
        assert await client.closed()
        await other.ask()


async def connected(bench: object, count: int) -> None:
    """Wait until the front has accepted and read from `count` connections."""
    front = bench.front  # type: ignore[attr-defined]
    answer: Answer = await bench.ask("GET", "/health", None)  # type: ignore[attr-defined]
    assert answer.status == 200 and front.connections >= count


@scenario
async def test_an_idle_connection_is_closed() -> None:
    async with running() as bench, await bench.client() as used, await bench.client() as unused:
        await used.ask()
        await bench.pass_s(74)
        assert bench.front.connections == 2
        await bench.pass_s(2)
        assert await used.closed() and await unused.closed()


@scenario
async def test_a_body_that_does_not_come_in_time() -> None:
    async with running() as bench, await bench.client() as client:
        client.request(body=b"x", Content_Length="2")
        await connected(bench, 1)
        await bench.pass_s(61)
        answer = await client.answer()
        assert (answer.status, answer.code) == (408, "request_timeout")


@scenario
async def test_a_client_that_stops_reading_is_dropped_and_frees_llama_server() -> None:
    async def handler(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        while True:
            await call.send(b"x" * 65536)

    async with running("unix", handler=handler) as bench, await bench.client() as client:
        client.writer.transport.pause_reading()
        client.request()
        call = await bench.upstream.call(0)
        await bench.pass_s(30)
        assert bench.front.in_flight == 1
        await bench.pass_s(32)
        await bench.upstream.signal.until(lambda: call.cancelled)
        assert bench.observer.records[-1].outcome is Outcome.CLIENT_GONE


@scenario
async def test_a_client_that_has_shut_its_side_and_stops_reading_is_dropped() -> None:
    async def handler(call: Call) -> None:
        await call.reply(b"x" * 600_000)

    async with running("unix", handler=handler) as bench, await bench.client() as client:
        client.writer.transport.pause_reading()
        client.request()
        client.writer.write_eof()
        await bench.upstream.call(0)
        await bench.pass_s(30)
        assert bench.front.connections == 1
        await bench.pass_s(62)
        assert bench.front.connections == 0
