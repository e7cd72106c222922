"""The end of a front: what was accepted is answered, what was not stays for the next one."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket

import pytest

from llamad.front.keys import KeySet
from llamad.front.relay import Front
from tests.support.fake_upstream import Call
from tests.support.front import MODEL, running
from tests.support.http import scenario, yield_to_loop


@scenario
async def test_answers_say_close_and_idle_connections_go_last() -> None:
    proceed = asyncio.Event()

    async def handler(call: Call) -> None:
        if call.body == b"slow":
            await proceed.wait()
        await call.reply()

    async with running(handler=handler) as bench:
        slow, idle = await bench.client(), await bench.client()
        slow.request(body=b"slow")
        await bench.upstream.call(0)
        await idle.ask()
        await bench.pass_s(5)
        closing = asyncio.ensure_future(bench.front.close(60))
        await yield_to_loop()
        assert bench.front.connections == 2
        answer = await idle.ask()  # still served, and told to go
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await idle.closed()
        assert not closing.done()
        proceed.set()
        answer = await slow.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        slow.writer.close()
        idle.writer.close()
        await bench.finish(wait_for(closing))


@scenario
async def test_a_client_that_hangs_in_an_upload_holds_nobody_up() -> None:
    """It would keep every other client waiting for the next llamad, for as long as drain_s."""
    async with running() as bench:
        hung, head, moving = await bench.client(), await bench.client(), await bench.client()
        for client in (hung, moving):
            client.send(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\n{")
        head.send(b"POST /v1/comp")
        await bench.pass_s(1)
        closing = asyncio.ensure_future(bench.front.close(60))
        await yield_to_loop()
        await bench.pass_s(4)
        moving.send(b"  ")
        await bench.pass_s(2)
        assert (await hung.answer()).status == 408
        assert (await head.answer()).status == 408
        assert not closing.done()
        moving.send(b"}")
        assert (await moving.answer()).status == 200
        for client in (hung, head, moving):
            client.writer.close()
        before_s = bench.clock.monotonic()
        await bench.finish(wait_for(closing))
        assert bench.clock.monotonic() - before_s < 5


async def wait_for(task: asyncio.Future[None]) -> None:
    await task


@scenario
async def test_an_idle_connection_is_closed_cleanly() -> None:
    async with running() as bench, await bench.client() as client:
        await client.ask()
        await bench.pass_s(5)
        closing = asyncio.ensure_future(bench.front.close(60))
        assert await client.closed()
        client.writer.close()
        await closing


@scenario
async def test_a_head_that_has_begun_to_arrive_is_answered() -> None:
    async with running() as bench, await bench.client() as client:
        client.send(b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-")
        await bench.ask("GET", "/health", None)
        await bench.pass_s(5)
        closing = asyncio.ensure_future(bench.front.close(60))
        await yield_to_loop()
        client.send(b"Length: 2\r\n\r\n{}")
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        client.writer.close()
        await closing


@scenario
async def test_a_stream_runs_to_its_end() -> None:
    async def handler(call: Call) -> None:
        await call.begin_stream()
        for number in range(50):
            await call.event(str(number))
            await asyncio.sleep(0)
        await call.end()

    async with running(handler=handler) as bench, await bench.client() as client:
        client.request()
        answer = await client.head()
        closing = asyncio.ensure_future(bench.front.close(60))
        await client.body(answer)
        assert answer.events == [str(number) for number in range(50)]
        assert await client.closed()
        client.writer.close()
        await bench.finish(wait_for(closing))


@scenario
async def test_past_the_linger_the_rest_gets_an_error() -> None:
    async def handler(call: Call) -> None:
        if call.body == b"stream":
            await call.begin_stream()
            await call.event("1")
        await asyncio.Event().wait()

    async with running(handler=handler, max_concurrent_requests=2) as bench:
        stream, plain, waiting = [await bench.client() for _ in range(3)]
        stream.request(body=b"stream")
        plain.request(body=b"plain")
        await bench.upstream.call(1)
        waiting.request()
        await bench.until(lambda: bench.front.waiting == 1)
        answer = await stream.head()
        closing = asyncio.ensure_future(bench.front.close(5))
        await bench.pass_s(6)
        await stream.body(answer)
        assert '"stopping"' in answer.events[-1]
        for client in (plain, waiting):
            refused = await client.answer()
            assert (refused.status, refused.code) == (503, "stopping")
        for client in (stream, plain, waiting):
            client.writer.close()
        await bench.finish(wait_for(closing))


@scenario
async def test_requests_across_a_restart_of_the_front_are_neither_refused_nor_reset() -> None:
    """The listening socket outlives the front; clients open a connection for each request, or keep theirs."""
    async with running() as bench:
        done = 0

        async def fresh() -> None:
            nonlocal done
            for _ in range(60):
                answer = await bench.ask()
                assert answer.status == 200
                done += 1

        async def keeping() -> None:
            nonlocal done
            client = await bench.client()
            for _ in range(60):
                answer = await client.ask()
                assert answer.status == 200
                done += 1
                if answer.headers.get("connection") == "close":
                    client.writer.close()
                    client = await bench.client()
            client.writer.close()

        loads = [asyncio.ensure_future(one()) for one in (fresh, fresh, fresh, keeping, keeping, keeping)]
        for _ in range(3):
            want = done + 60
            await bench.until(lambda want=want: done >= want)
            await bench.finish(bench.front.close(60))
            front = Front(bench.settings, KeySet(), bench.observer, bench.clock, lambda: MODEL)
            front.open(str(bench.upstream.path))
            bench.front = front
            await front.start(bench.sockets)
        await asyncio.gather(*loads)
        assert done == 360


@scenario
async def test_no_file_descriptor_left_for_a_connection_passes(caplog: pytest.LogCaptureFixture) -> None:
    async with running("unix") as bench:
        await bench.ask()
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        spare = os.open("/dev/null", os.O_RDONLY)  # every number below this one is taken
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare + 1, hard))
        try:
            client.connect(str(bench.address))
            with caplog.at_level(logging.WARNING):
                await yield_to_loop()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            os.close(spare)
        assert "cannot accept: Too many open files" in caplog.text
        client.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = await asyncio.get_running_loop().sock_recv(client, 1000)
        assert answer.startswith(b"HTTP/1.1 200 OK")
        client.close()


@scenario
async def test_a_connection_whose_time_out_fails_is_broken_off_alone() -> None:
    problems: list[object] = []
    async with running() as bench, await bench.client() as broken, await bench.client() as other:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: problems.append(context["exception"])
        )
        await broken.ask()
        [connection] = [one for one in bench.front._shared.clients if one.served]
        connection._deadline_s = "never"  # type: ignore[assignment]
        await other.ask()
        await bench.pass_s(2)
        assert await broken.closed()
        assert (await other.ask()).status == 200
        assert [type(problem) for problem in problems] == [TypeError]


@scenario
async def test_a_pipelined_request_that_will_never_be_whole_is_given_up() -> None:
    async with running() as bench, await bench.client() as client:
        client.request(body=b"{}")
        client.send(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n" + b"x" * 50)
        client.writer.write_eof()
        assert (await client.answer()).status == 200
        assert await client.closed()
        assert bench.front._shared.memory.held_bytes == 0 and not bench.front._lane.exchanges
