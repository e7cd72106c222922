"""Requests at the gate, on the wire: while the model loads, restarts, is full or has failed."""

from __future__ import annotations

import asyncio

from llamad.front.settings import Outcome
from tests.support.fake_upstream import Call
from tests.support.front import running
from tests.support.http import scenario, yield_to_loop


@scenario
async def test_a_request_that_comes_while_loading_is_answered_when_loaded() -> None:
    async with running(handler=None) as bench, await bench.client() as client:
        client.request(body=b"early")
        await bench.until(lambda: bench.observer.waits == 1)
        await bench.pass_s(100)
        await bench.serve()
        assert (await client.answer()).status == 200
        assert bench.upstream.calls[0].body == b"early"
        [record] = bench.observer.records
        assert record.hold_s == 100 and record.duration_s >= 100


@scenario
async def test_past_the_bound_of_the_queue() -> None:
    async with running(handler=None, queue_requests=2) as bench:
        clients = [await bench.client() for _ in range(3)]
        for number, client in enumerate(clients, start=1):
            client.request()
            if number <= 2:
                await bench.until(lambda number=number: bench.observer.waits == number)
        answer = await clients[2].answer()
        assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "queue_full", "5")
        assert answer.json["error"]["type"] == "unavailable_error"
        assert bench.observer.records[0].outcome is Outcome.HELD_OUT
        await bench.serve()
        assert [(await client.answer()).status for client in clients[:2]] == [200, 200]
        for client in clients:
            client.writer.close()


@scenario
async def test_past_wait_s() -> None:
    async with running(handler=None, wait_s=20) as bench, await bench.client() as client:
        bench.front.hold("the model is loading")
        client.request()
        await bench.until(lambda: bench.front.waiting == 1)
        await bench.pass_s(19)
        assert bench.front.waiting == 1
        await bench.pass_s(2)
        answer = await client.answer()
        assert (answer.status, answer.code) == (503, "wait_timeout")
        assert "the model is loading" in answer.json["error"]["message"]
        assert "retry-after" in answer.headers
        await bench.serve()
        assert (await client.ask()).status == 200  # the same connection serves on


@scenario
async def test_a_failed_model_refuses_those_that_wait_and_those_that_come() -> None:
    async with running(handler=None) as bench, await bench.client() as client:
        client.request()
        await bench.until(lambda: bench.front.waiting == 1)
        bench.front.refuse(503, "crash_loop", "llama-server died 5 times", 30)
        for answer in (await client.answer(), await client.ask()):
            assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "crash_loop", "30")
        bench.front.refuse(500, "failed", "no more")
        assert "retry-after" not in (await client.ask()).headers


@scenario
async def test_a_client_that_leaves_the_queue() -> None:
    async with running("unix", handler=None) as bench:
        client = await bench.client()
        client.request()
        await bench.until(lambda: bench.front.waiting == 1)
        client.writer.close()
        await bench.until(lambda: bool(bench.observer.records))
        assert bench.front.waiting == 0
        await bench.serve()
        await yield_to_loop()
        assert bench.upstream.calls == []


@scenario
async def test_concurrent_requests_are_bounded_and_first_come_first_served() -> None:
    release = asyncio.Semaphore(0)
    order: list[bytes] = []

    async def handler(call: Call) -> None:
        order.append(call.body)
        await release.acquire()
        await call.reply()

    async with running(handler=handler, max_concurrent_requests=2) as bench:
        clients = [await bench.client() for _ in range(6)]
        for number, client in enumerate(clients):
            client.request(body=b"%d" % number)
            if number < 2:
                await bench.upstream.call(number)
            else:
                await bench.until(lambda number=number: bench.observer.waits == number - 1)
        assert (bench.front.in_flight, bench.front.waiting) == (2, 4)
        for number, client in enumerate(clients):
            release.release()
            await client.answer()
            await bench.upstream.call(min(number + 2, 5))
        assert order == [b"0", b"1", b"2", b"3", b"4", b"5"]
        for client in clients:
            client.writer.close()


@scenario
async def test_held_while_swapped_no_request_is_lost() -> None:
    """A reload under load: hold, drain, close, another llama-server, open."""
    generation = 1

    async def handler(call: Call) -> None:
        await asyncio.sleep(0)
        await call.reply(b"%d" % generation)

    async with running(handler=handler) as bench:
        bodies: list[bytes] = []

        async def load() -> None:
            async with await bench.client() as client:
                for _ in range(30):
                    answer = await client.ask()
                    assert answer.status == 200
                    bodies.append(answer.body)

        loads = [asyncio.ensure_future(load()) for _ in range(10)]
        for _ in range(3):
            want = len(bodies) + 20
            await bench.until(lambda want=want: len(bodies) >= want)
            bench.front.hold("reload")
            assert await bench.front.drain(5) == 0
            await bench.front.close_upstreams()
            await bench.upstream.kill()
            generation += 1
            await bench.serve(handler)
        await asyncio.gather(*loads)
        assert len(bodies) == 300
        assert set(bodies) == {b"1", b"2", b"3", b"4"}
        assert {record.outcome for record in bench.observer.records} == {Outcome.ANSWERED}
        assert bench.observer.lost == []
