"""Relaying: what llama-server gets, what the client gets, connections, sizes and time-outs."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace

import pytest

from llamad.front.keys import KeySet
from llamad.front.settings import Outcome
from tests.support.fake_upstream import Call
from tests.support.front import running
from tests.support.http import Client, scenario, yield_to_loop


@pytest.mark.parametrize("kind", ["tcp", "tcp6", "unix"])
@scenario
async def test_a_request_and_its_answer(kind: str) -> None:
    async with running(kind) as bench, await bench.client() as client:
        answer = await client.ask(body=b'{"a":1}', Content_Type="application/json", X_Request_Id="mine-1")
        assert (answer.status, answer.json) == (200, {"ok": True})
        assert answer.headers["x-request-id"] == "mine-1"
        [call] = bench.upstream.calls
        assert (call.method, call.target, call.body) == ("POST", "/v1/chat/completions", b'{"a":1}')
        assert call.headers["content-type"] == "application/json"
        assert call.headers["x-request-id"] == "mine-1"
        [record] = bench.observer.records
        assert (record.method, record.path, record.status) == ("POST", "/v1/chat/completions", 200)
        assert (record.outcome, record.request_bytes, record.response_bytes) == (Outcome.ANSWERED, 7, 11)
        assert record.first_byte_s is not None and bench.observer.progressed == 1


@scenario
async def test_neither_keys_nor_hop_by_hop_fields_go_upstream() -> None:
    async with running(keys="sesame") as bench:
        fields = {
            "Authorization": "Bearer sesame",
            "X_Api_Key": "sesame",
            "Connection": "X-Hop",
            "X_Hop": "1",
        }
        answer = await bench.ask(**fields, Upgrade="websocket", TE="trailers", X_Request_Id="bad id")
        assert answer.status == 200
        [call] = bench.upstream.calls
        assert set(call.headers) == {"host", "content-length", "x-request-id"}
        assert "sesame" not in str(call.headers)
        assert call.headers["x-request-id"] == answer.headers["x-request-id"] != "bad id"


@scenario
async def test_hop_by_hop_fields_of_the_answer_stay_here() -> None:
    async def handler(call: Call) -> None:
        await call.reply(
            Keep_Alive="timeout=5", Connection="X-Hop", X_Hop="1", Server="llama.cpp", X_Request_Id="u"
        )

    async with running(handler=handler) as bench:
        answer = await bench.ask(X_Request_Id="mine")
        assert set(answer.headers) == {"server", "content-type", "content-length", "x-request-id"}
        assert answer.headers["x-request-id"] == "mine"


@scenario
async def test_a_thousand_requests_on_one_connection_retire_upstream_connections() -> None:
    async with running() as bench, await bench.client() as client:
        for number in range(1000):
            assert (await client.ask(body=b"%d" % number)).status == 200
        assert [call.body for call in bench.upstream.calls] == [b"%d" % number for number in range(1000)]
        assert bench.upstream.connections == 11  # 99 requests each
        assert len({record.request_id for record in bench.observer.records}) == 1000


@scenario
async def test_two_hundred_clients_at_once() -> None:
    async def handler(call: Call) -> None:
        await asyncio.sleep(0)
        await call.reply(call.body)

    async with running(handler=handler) as bench:

        async def one(number: int) -> bytes:
            async with await bench.client() as client:
                first = await client.ask(body=b"a%d" % number)
                second = await client.ask(body=b"b%d" % number)
                return first.body + second.body

        got = await asyncio.gather(*(one(number) for number in range(200)))
        assert got == [b"a%db%d" % (number, number) for number in range(200)]
        assert bench.front.in_flight == 0


@scenario
async def test_a_connection_that_retires_has_a_successor_before_the_next_request() -> None:
    async with running(upstream_requests_max=3) as bench:
        client = await bench.client()
        for number in range(3):
            assert (await client.ask()).status == 200
            assert bench.upstream.connections == 1 or number == 2
        await bench.upstream.signal.until(lambda: bench.upstream.connections == 2)
        assert (await client.ask()).status == 200
        assert bench.upstream.connections == 2


@scenario
async def test_a_successor_that_is_closed_before_its_first_request_is_no_death() -> None:
    async with running(upstream_requests_max=1) as bench:
        client = await bench.client()
        assert (await client.ask()).status == 200
        await bench.upstream.signal.until(lambda: bench.upstream.connections == 2)
        bench.upstream.close_connections()
        assert (await client.ask()).status == 200
        assert bench.observer.lost == []


@scenario
async def test_an_idle_upstream_connection_is_retired_before_llama_server_closes_it() -> None:
    async with running() as bench, await bench.client() as client:
        await client.ask()
        await bench.pass_s(3.9)
        await client.ask()
        assert bench.upstream.connections == 1
        await bench.pass_s(5.0)
        await bench.upstream.signal.until(lambda: bench.upstream.open_connections == 0)
        await client.ask()
        assert bench.upstream.connections == 2


async def chunked(call: Call) -> None:
    await call.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/plain\r\n\r\n")
    await call.chunk(b"one,")
    await call.send(b"3;x=y\r\ntwo\r\n0\r\nX-Trailer: 1\r\n\r\n")


@scenario
async def test_a_chunked_answer() -> None:
    async with running(handler=chunked) as bench, await bench.client() as client:
        for _ in range(2):
            answer = await client.ask("GET", "/x", None)
            assert (answer.body, answer.headers["transfer-encoding"]) == (b"one,two", "chunked")
            assert "content-length" not in answer.headers


@scenario
async def test_http_1_0_gets_a_plain_body_and_the_end_of_the_connection() -> None:
    async with running(handler=chunked) as bench, await bench.client() as client:
        client.send(b"GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        answer = await client.answer()
        assert answer.body == b"one,two"
        assert answer.headers["connection"] == "close" and "transfer-encoding" not in answer.headers


@scenario
async def test_http_1_0_keeps_alive_where_the_length_is_known() -> None:
    async with running() as bench, await bench.client() as client:
        for _ in range(2):
            client.send(b"GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            answer = await client.answer()
            assert (answer.status, answer.headers["connection"]) == (200, "keep-alive")
        client.send(b"GET /x HTTP/1.0\r\n\r\n")
        assert (await client.answer()).headers["connection"] == "close"
        assert await client.closed()


@scenario
async def test_an_answer_that_ends_with_its_connection() -> None:
    async def handler(call: Call) -> None:
        await call.send(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nall of it")
        call.writer.close()

    async with running(handler=handler) as bench, await bench.client() as client:
        answer = await client.ask("GET", "/x", None)
        assert (answer.body, answer.headers["connection"]) == (b"all of it", "close")


@scenario
async def test_answers_without_a_body() -> None:
    async def handler(call: Call) -> None:
        if call.method == "HEAD":
            await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        else:
            await call.send(b"HTTP/1.1 %b X\r\nETag: x\r\n\r\n" % call.target[1:].encode())

    async with running(handler=handler) as bench, await bench.client() as client:
        head = await client.ask("HEAD", "/x", None)
        assert (head.status, head.headers["content-length"]) == (200, "5")
        assert (await client.ask("GET", "/204", None)).status == 204
        assert (await client.ask("GET", "/304", None)).status == 304
        assert bench.upstream.connections == 1


@scenario
async def test_interim_answers_of_llama_server_are_not_passed_on() -> None:
    async def handler(call: Call) -> None:
        await call.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
        await call.reply()

    async with running(handler=handler) as bench:
        answer = await bench.ask()
        assert (answer.status, answer.interim) == (200, [])


@scenario
async def test_a_chunked_request_goes_upstream_with_its_length() -> None:
    async with running() as bench, await bench.client() as client:
        client.request(body=b"5\r\nhello\r\n", Transfer_Encoding="chunked")
        await yield_to_loop()
        assert bench.upstream.calls == []  # a slow client costs no connection of llama-server
        client.send(b"6;a=b\r\n world\r\n0\r\nT: 1\r\n\r\n")
        assert (await client.answer()).status == 200
        [call] = bench.upstream.calls
        assert call.body == b"hello world"
        assert call.headers["content-length"] == "11" and "transfer-encoding" not in call.headers


@pytest.mark.parametrize("chunks", [True, False])
@scenario
async def test_a_large_body_is_streamed(chunks: bool) -> None:
    body = bytes(range(256)) * 4096 * 5
    async with running() as bench, await bench.client() as client:
        if chunks:
            client.request(body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body), Transfer_Encoding="chunked")
        else:
            client.request(body=body)
        assert (await client.answer()).status == 200
        [call] = bench.upstream.calls
        assert call.body == body
        assert ("transfer-encoding" in call.headers) is chunks
        assert bench.front._shared.memory.held_bytes == 0


@scenario
async def test_a_large_answer() -> None:
    body = bytes(range(256)) * 4096 * 5

    async def handler(call: Call) -> None:
        await call.reply(body)

    async with running(handler=handler) as bench:
        assert (await bench.ask()).body == body


@scenario
async def test_expect_continue() -> None:
    async with running() as bench, await bench.client() as client:
        client.request(body=b"", Expect="100-continue", Content_Length="5")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(client.head(), 0.05)  # an interim head alone
        client.send(b"hello")
        assert (await client.answer()).status == 200
        assert bench.upstream.calls[0].body == b"hello"
        assert "expect" not in bench.upstream.calls[0].headers


@scenario
async def test_pipelined_requests_are_answered_in_order() -> None:
    async def handler(call: Call) -> None:
        await call.reply(call.target.encode())

    async with running(handler=handler) as bench, await bench.client() as client:
        for number in range(20):
            client.request("POST", f"/{number}", b"x" * number)
            client.request("GET", "/health", None)
        for number in range(20):
            assert (await client.answer()).body == b"/%d" % number
            assert (await client.answer()).json == {"status": "ok"}
        assert bench.upstream.connections == 1


@scenario
async def test_a_client_that_pipelines_without_end_is_not_read_on() -> None:
    async def handler(call: Call) -> None:
        await asyncio.Event().wait()

    async with running("unix", handler=handler) as bench, await bench.client() as client:
        client.request()
        await bench.upstream.call(0)
        client.send(b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100_000)
        await yield_to_loop(100)
        [connection] = bench.front._shared.clients
        assert len(connection._buffer) < 1 << 20
        assert client.writer.transport.get_write_buffer_size() > 1 << 20


@scenario
async def test_a_client_that_reads_nothing_is_not_answered_on() -> None:
    async with running("unix") as bench, await bench.client() as client:
        client.writer.transport.pause_reading()
        client.send(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50_000)
        await yield_to_loop(200)
        [connection] = bench.front._shared.clients
        assert connection._writable().get_write_buffer_size() < 1 << 20
        answered = len(bench.observer.records)
        assert answered < 20_000
        client.writer.transport.resume_reading()
        await bench.until(lambda: len(bench.observer.records) > answered)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@scenario
async def test_a_client_that_has_shut_its_side_is_answered(kind: str) -> None:
    proceed = asyncio.Event()

    async def handler(call: Call) -> None:
        await proceed.wait()
        await call.reply()

    async with running(kind, handler=handler) as bench, await bench.client() as client:
        client.request()
        client.request("GET", "/health", None)
        client.writer.write_eof()
        await bench.upstream.call(0)
        await yield_to_loop()
        assert bench.front.in_flight == 1
        proceed.set()
        answer = await client.answer()
        assert (answer.status, answer.interim) == (200, [100] if kind == "tcp" else [])
        assert (await client.answer()).json == {"status": "ok"}
        assert await client.closed()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("how", ["close", "abort"])
@scenario
async def test_a_client_that_is_gone_cancels_its_request(kind: str, stream: bool, how: str) -> None:
    async def handler(call: Call) -> None:
        if stream:
            await call.begin_stream()
            await call.event("1")
        await asyncio.Event().wait()

    async with running(kind, handler=handler) as bench:
        client = await bench.client()
        client.request()
        call = await bench.upstream.call(0)
        if stream:
            await client.head()
            await client.chunk()
        client.writer.close() if how == "close" else client.writer.transport.abort()
        await bench.upstream.signal.until(lambda: call.cancelled)
        await bench.until(lambda: bool(bench.observer.records))
        assert bench.observer.records[0].outcome is Outcome.CLIENT_GONE
        assert bench.front.in_flight == 0


@scenario
async def test_a_client_that_leaves_in_the_middle_of_its_body() -> None:
    async with running(eager_bytes=10) as bench:
        client = await bench.client()
        client.request(body=b"x" * 20, Content_Length="100")
        await bench.upstream.signal.until(lambda: bench.upstream.open_connections == 1)
        client.writer.write_eof()
        await bench.until(lambda: bool(bench.observer.records))
        assert bench.observer.records[0].outcome is Outcome.CLIENT_GONE
        assert await client.closed()


@scenario
async def test_a_slow_client_slows_llama_server_down_and_gets_all() -> None:
    total = 64 << 20
    sent = 0

    async def handler(call: Call) -> None:
        nonlocal sent
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        while sent < total:
            await call.send(b"x" * (1 << 16))
            sent += 1 << 16

    async with running("unix", handler=handler) as bench, await bench.client() as client:
        client.writer.transport.pause_reading()
        client.request()
        await bench.upstream.call(0)
        [connection] = bench.front._shared.clients
        await yield_to_loop(2000)
        stuck = sent
        await yield_to_loop(200)
        assert sent == stuck < 4 << 20
        assert connection._writable().get_write_buffer_size() < 1 << 20
        client.writer.transport.resume_reading()
        answer = await client.head()
        got = 0
        while got < total:
            got += len(await client.reader.read(1 << 20))
        assert (got, answer.status) == (total, 200)


@scenario
async def test_a_slow_llama_server_slows_the_client_down() -> None:
    async with running("unix") as bench, await bench.client() as client:
        bench.upstream.read_bodies = False
        bench.upstream.handler = lambda call: asyncio.Event().wait()  # type: ignore[assignment,return-value]
        client.request(body=b"x" * (32 << 20))
        await bench.upstream.call(0)
        await yield_to_loop(500)
        assert client.writer.transport.get_write_buffer_size() > 24 << 20
        assert bench.front._shared.memory.held_bytes < 8 << 20


@scenario
async def test_while_held_at_most_the_eager_part_of_a_body_is_read() -> None:
    async with running("unix", handler=None) as bench, await bench.client() as client:
        client.request(body=b"x" * (32 << 20))
        await bench.until(lambda: bench.front.waiting == 1)
        await yield_to_loop(200)
        assert bench.front._shared.memory.held_bytes < 2 << 20
        await bench.serve()
        assert (await client.answer()).status == 200
        assert len(bench.upstream.calls[0].body) == 32 << 20


@scenario
async def test_an_early_answer_ends_both_connections() -> None:
    async with running("unix") as bench, await bench.client() as client:
        bench.upstream.read_bodies = False
        client.request(body=b"x" * (2 << 20), Content_Length=str(8 << 20))
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await client.closed()
        await bench.upstream.signal.until(lambda: bench.upstream.open_connections == 0)


@scenario
async def test_garbage_from_llama_server_is_a_502() -> None:
    async def handler(call: Call) -> None:
        await call.send(b"SSH-2.0-OpenSSH\r\n\r\n")

    async with running(handler=handler) as bench, await bench.client() as client:
        answer = await client.ask()
        assert (answer.status, answer.code) == (502, "bad_answer")
        assert (await client.ask()).status == 502
        assert bench.front.in_flight == 0


@scenario
async def test_bytes_behind_an_answer_never_reach_the_next_request() -> None:
    async def handler(call: Call) -> None:
        await call.send(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
        )

    async with running(handler=handler) as bench, await bench.client() as client:
        assert (await client.ask()).body == b"ok"
        assert (await client.ask()).body == b"ok"
        assert bench.upstream.connections == 2


@scenario
async def test_a_backlog_that_is_full_is_waited_for() -> None:
    """The fake listens with a backlog of 5 and is kept from accepting."""
    async with running(clock=None) as bench:
        fillers = []
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            try:
                sock.connect(str(bench.upstream.path))
            except BlockingIOError:
                sock.close()
                break
            fillers.append(sock)
        async with await bench.client() as client:
            assert (await client.ask()).status == 200
        for sock in fillers:
            sock.close()
        await yield_to_loop()


@scenario
async def test_settings_and_keys_change_in_place() -> None:
    async with running() as bench, await bench.client() as client:
        assert (await client.ask()).status == 200
        bench.front.apply(replace(bench.settings, name="other", body_bytes=5), KeySet(["new"]))
        assert (await client.ask()).status == 401
        assert (await client.ask(X_Api_Key="new")).status == 200
        assert (await client.ask("GET", "/v1/models", None, X_Api_Key="new")).json["data"][0][
            "id"
        ] == "other"
        assert (await client.ask(body=b"123456", X_Api_Key="new")).status == 413


@scenario
async def test_idle_s_counts_from_the_last_relayed_request() -> None:
    proceed = asyncio.Event()

    async def handler(call: Call) -> None:
        await proceed.wait()
        await call.reply()

    async with running(handler=handler) as bench, await Client.open(bench.address) as client:
        await bench.pass_s(10)
        assert bench.front.idle_s() == 10
        client.request()
        await bench.upstream.call(0)
        await bench.pass_s(10)
        assert bench.front.idle_s() == 0
        proceed.set()
        await client.answer()
        await bench.pass_s(3)
        await bench.ask("GET", "/health", None)
        assert bench.front.idle_s() == 3
