"""Admission by tokens on the wire: the cache is never overfilled, and counting delays nobody who fits anyway."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

from llamad.front.keys import KeySet
from llamad.front.settings import Outcome
from tests.support.fake_upstream import Call
from tests.support.front import Bench, running
from tests.support.http import Answer, scenario, yield_to_loop

HEAVY = {"max_tokens": 60, "messages": [{"role": "user", "content": "x" * 20}]}
PROBE = b'{"messages":[{"role":"user","content":"x"}]}'


class Pool:
    """A llama-server whose requests take what they ask for, and fail if that is more than there is."""

    def __init__(self, pool_tokens: int, prompt_tokens: int) -> None:
        self.pool_tokens, self.prompt_tokens = pool_tokens, prompt_tokens
        self.used = self.most = self.most_at_once = self.at_once = 0
        self.release = asyncio.Semaphore(0)

    async def __call__(self, call: Call) -> None:
        tokens = self.prompt_tokens + json.loads(call.body)["max_tokens"]
        self.used += tokens
        self.at_once += 1
        self.most, self.most_at_once = max(self.most, self.used), max(self.most_at_once, self.at_once)
        try:
            await self.release.acquire()
            status = 200 if self.used <= self.pool_tokens else 500
            await call.reply(status=status)
        finally:
            self.used -= tokens
            self.at_once -= 1

    async def count(self, path: str, body: bytes) -> int | None:
        return 5 if body == PROBE else self.prompt_tokens


async def ask(bench: Bench, body: object, **kwargs: Any) -> Answer:
    return await bench.ask(body=json.dumps(body).encode(), **kwargs)


@scenario
async def test_sixteen_clients_that_would_overfill_the_pool_are_all_answered() -> None:
    pool = Pool(200, 20)
    async with running(handler=None) as bench:
        bench.observer.counter = pool.count
        await bench.serve(pool, pool_tokens=200)
        asks = [asyncio.ensure_future(ask(bench, HEAVY)) for _ in range(16)]
        await bench.upstream.call(1)  # counted, two have room
        await yield_to_loop()
        for _ in range(16):
            pool.release.release()
        statuses = [answer.status for answer in await asyncio.gather(*asks)]
        assert statuses == [200] * 16
        assert pool.most <= 200 and pool.most_at_once == 2  # 80 tokens each when counted; more by their bytes


@scenario
async def test_who_came_before_the_model_is_admitted_by_its_tokens_too() -> None:
    """What requests share is known only when a llama-server is there; the next one may share less."""
    pool = Pool(200, 20)
    async with running(handler=None) as bench:
        bench.observer.counter = pool.count
        asks = [asyncio.ensure_future(ask(bench, HEAVY)) for _ in range(8)]
        unnamed = {"messages": HEAVY["messages"]}
        asks += [asyncio.ensure_future(ask(bench, unnamed)) for _ in range(2)]
        await bench.until(lambda: bench.observer.waits == 10)
        first = await bench.serve(pool, pool_tokens=200, default_output_tokens=50)
        await first.call(1)
        await yield_to_loop(50)
        assert 0 < pool.most <= 200
        bench.front.hold("another one comes")
        await first.kill()
        pool.used = pool.most = 0
        pool.pool_tokens = 100
        second = await bench.serve(pool, pool_tokens=100, default_output_tokens=50)
        await second.call(0)
        await yield_to_loop(50)
        assert 0 < pool.most <= 100
        for _ in range(20):
            pool.release.release()
        assert [answer.status for answer in await asyncio.gather(*asks)] == [200] * 10


@scenario
async def test_a_request_that_breaks_a_limit_of_the_model_that_comes_is_refused_then() -> None:
    async with running(handler=None, max_output_tokens=10) as bench:
        asks = [asyncio.ensure_future(ask(bench, {"prompt": "x", "max_tokens": 9})) for _ in range(2)]
        await bench.until(lambda: bench.observer.waits == 2)
        bench.front.apply(replace(bench.settings, max_output_tokens=5), KeySet.from_text(""))
        await bench.serve()
        assert [(answer.status, answer.code) for answer in await asyncio.gather(*asks)] == [(400, "max_tokens_too_large")] * 2


@scenario
async def test_who_fits_by_the_bound_is_not_counted() -> None:
    async with running(handler=None) as bench:
        await bench.serve(pool_tokens=100_000)
        await bench.until(lambda: len(bench.observer.counted) == 1)  # what the template adds, once
        assert (await ask(bench, HEAVY)).status == 200
        assert [body for _, body in bench.observer.counted] == [PROBE]


@scenario
async def test_counting_keeps_a_request_that_fits_from_waiting_and_does_not_delay_the_first() -> None:
    pool = Pool(4096, 20)
    counted: asyncio.Event = asyncio.Event()

    async def slowly(path: str, body: bytes) -> int | None:
        await counted.wait()
        return await pool.count(path, body)

    long = {"max_tokens": 60, "messages": [{"role": "user", "content": "x" * 4000}]}
    async with running(handler=None) as bench:
        bench.observer.counter = slowly
        await bench.serve(pool, pool_tokens=4096)
        first, second = (asyncio.ensure_future(ask(bench, long)) for _ in range(2))
        await bench.upstream.call(0)  # although nothing has been counted yet
        await bench.until(lambda: bench.front.waiting == 1)
        counted.set()
        await bench.upstream.call(1)  # while the first is still at work
        pool.release.release()
        pool.release.release()
        assert [(await one).status for one in (first, second)] == [200, 200]


@scenario
async def test_without_a_count_the_bound_holds() -> None:
    pool = Pool(200, 20)
    async with running(handler=None) as bench:
        await bench.serve(pool, pool_tokens=200)
        asks = [asyncio.ensure_future(ask(bench, HEAVY)) for _ in range(4)]
        await bench.until(lambda: bench.front.waiting == 3)
        for _ in range(4):
            pool.release.release()
        assert [answer.status for answer in await asyncio.gather(*asks)] == [200] * 4
        assert pool.most_at_once == 1


@scenario
async def test_past_the_queue_and_past_the_wait() -> None:
    pool = Pool(200, 20)
    async with running(handler=None, queue_requests=1, wait_s=20) as bench:
        await bench.serve(pool, pool_tokens=200)
        first, second = (asyncio.ensure_future(ask(bench, HEAVY)) for _ in range(2))
        await bench.until(lambda: bench.front.waiting == 1)
        answer = await ask(bench, HEAVY)
        assert (answer.status, answer.code, answer.headers["retry-after"]) == (429, "queue_full", "5")
        assert answer.json["error"]["type"] == "rate_limit_error"
        await bench.pass_s(22)
        answer = await second if second.done() else await first
        assert (answer.status, answer.code) == (503, "wait_timeout")
        assert "the tokens of the context are taken" in answer.json["error"]["message"]
        pool.release.release()
        assert {(await one).status for one in (first, second)} == {200, 503}


@scenario
async def test_limits_are_told_in_the_shape_of_openai() -> None:
    async def count(path: str, body: bytes) -> int | None:
        return len(json.loads(body)["messages"][0]["content"])

    limits = {"max_input_tokens": 30, "max_output_tokens": 50, "max_total_tokens": 60, "default_output_tokens": 50}
    async with running(**limits) as bench:
        bench.observer.counter = count

        async def answer(length: int, **more: object) -> Answer:
            return await ask(bench, {"messages": [{"role": "user", "content": "x" * length}], **more})

        refusal = await answer(1, max_tokens=51)
        assert (refusal.status, refusal.code) == (400, "max_tokens_too_large")
        assert refusal.json["error"]["type"] == "invalid_request_error"
        refusal = await answer(31)
        assert (refusal.status, refusal.code) == (400, "context_length_exceeded")
        assert "31 tokens" in refusal.json["error"]["message"]
        refusal = await answer(29, max_tokens=40)
        assert "max_total_tokens" in refusal.json["error"]["message"]
        assert [record.outcome for record in bench.observer.records] == [Outcome.REFUSED] * 3
        assert (await answer(20, max_tokens=40)).status == 200
        assert (await answer(30)).status == 200
        assert json.loads(bench.upstream.calls[-1].body)["max_tokens"] == 30  # the default gives way
        assert bench.front.in_flight == 0


@scenario
async def test_a_client_that_leaves_while_its_prompt_is_counted() -> None:
    never: asyncio.Event = asyncio.Event()

    async def count(path: str, body: bytes) -> int | None:
        await never.wait()
        return 1

    async with running("unix", max_input_tokens=10) as bench:
        bench.observer.counter = count
        client = await bench.client()
        client.request(body=json.dumps(HEAVY).encode())
        await bench.until(lambda: bool(bench.observer.counted))
        client.writer.close()
        await bench.until(lambda: bool(bench.observer.records))
        assert bench.front.in_flight == 0
        never.set()
        await yield_to_loop()


@scenario
async def test_a_body_too_long_to_be_read_must_not_name_a_slot() -> None:
    async with running(eager_bytes=1000) as bench:
        long = b'{"messages": "' + b"x" * 3000 + b'", "id_' + b'slot" : 3}'
        for cut in (1500, len(long) - 9, len(long) - 14):
            async with await bench.client() as client:
                client.request(body=b"", Content_Length=str(len(long)))
                client.send(long[:cut])
                await bench.upstream.signal.until(lambda: bench.upstream.open_connections > 0)
                client.send(long[cut:])
                answer = await client.answer()
                assert (answer.status, answer.code) == (400, "id_slot")
        assert (await bench.ask(body=long.replace(b"id_slot", b"id_slow"))).status == 200


@scenario
async def test_the_dropped_slot_shortens_the_request() -> None:
    async with running() as bench:
        body = b'{"id_slot": 1, "prompt": "x"}'
        assert (await bench.ask(body=body)).status == 200
        assert bench.upstream.calls[0].body == b'{"prompt":"x"}'
        assert (await bench.ask(target="/v1/models/../slots/1", method="GET", body=None)).status in (200, 404)


@scenario
async def test_other_limits_are_in_force_at_once_and_go_again() -> None:
    async with running(handler=None) as bench:
        await bench.serve(pool_tokens=10_000, default_output_tokens=40)
        keys = bench.front._shared.keys

        async def length_put_in() -> int:
            assert (await ask(bench, {"prompt": "x"})).status == 200
            return int(json.loads(bench.upstream.calls[-1].body)["max_tokens"])

        assert await length_put_in() == 40
        bench.front.apply(replace(bench.settings, max_output_tokens=7), keys)
        assert await length_put_in() == 7
        assert (await ask(bench, {"max_tokens": 8})).code == "max_tokens_too_large"
        bench.front.apply(bench.settings, keys)
        assert await length_put_in() == 40
