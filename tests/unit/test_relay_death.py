"""llama-server dies, or is taken away: nothing is silently cut, what can be replayed is replayed once."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from llamad.front.settings import Outcome
from tests.support.fake_upstream import Call, Handler, answer_ok
from tests.support.front import Bench, running
from tests.support.http import scenario, yield_to_loop


async def stall(call: Call) -> None:
    await asyncio.Event().wait()


async def stream_of_two_and_stall(call: Call) -> None:
    await call.begin_stream()
    await call.ping()
    await call.event('{"n":1}')
    await call.event('{"n":2}')
    await stall(call)


async def head_and_pings(call: Call) -> None:
    await call.begin_stream()
    await call.ping()
    await stall(call)


async def stream_ok(call: Call) -> None:
    await call.begin_stream()
    await call.event('{"n":1}')
    await call.event("[DONE]")
    await call.end()


def last_error(events: list[str]) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(events[-1])["error"]
    return error


async def settled(bench: Bench, call_number: int = 0) -> Call:
    call = await bench.upstream.call(call_number)
    await yield_to_loop()
    return call


@pytest.mark.parametrize("handler", [stall, head_and_pings])
@scenario
async def test_before_the_answer_begins_a_request_is_replayed(handler: Handler) -> None:
    async with running(handler=handler) as bench, await bench.client() as client:
        client.request(body=b"again", X_Request_Id="r1")
        await settled(bench)
        await bench.restart(stream_ok)
        answer = await client.answer()
        assert (answer.status, answer.events) == (200, ['{"n":1}', "[DONE]"])
        assert [upstream.calls[0].body for upstream in bench.upstreams] == [b"again", b"again"]
        assert bench.upstream.calls[0].headers["x-request-id"] == "r1"
        [record] = bench.observer.records
        assert (record.outcome, record.deaths) == (Outcome.ANSWERED, 1)
        assert bench.observer.lost == [1]


@scenario
async def test_a_plain_answer_whose_head_alone_has_come_is_replayed() -> None:
    async def handler(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        await stall(call)

    async with running(handler=handler) as bench, await bench.client() as client:
        client.request()
        await settled(bench)
        await bench.restart()
        assert (await client.answer()).json == {"ok": True}


@scenario
async def test_an_event_that_came_in_part_is_not_the_beginning() -> None:
    async def handler(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(b'event: x\ndata: {"n":')
        await stall(call)

    async with running(handler=handler) as bench, await bench.client() as client:
        client.request()
        await settled(bench)
        await bench.restart(stream_ok)
        assert (await client.answer()).events == ['{"n":1}', "[DONE]"]


@scenario
async def test_a_request_under_which_two_die_is_poison() -> None:
    async with running(handler=stall) as bench, await bench.client() as client:
        client.request()
        await settled(bench)
        await bench.restart(stall)
        await settled(bench)
        await bench.restart()
        answer = await client.answer()
        assert (answer.status, answer.code) == (502, "poison")
        assert bench.observer.records[0].outcome is Outcome.POISON
        assert (bench.observer.records[0].deaths, bench.observer.lost) == (2, [1, 2])
        assert (await client.ask()).status == 200


@scenario
async def test_a_stream_that_has_begun_ends_with_an_error_event() -> None:
    async with running(handler=stream_of_two_and_stall) as bench, await bench.client() as client:
        client.request(X_Request_Id="r7")
        answer = await client.head()
        answer.body = await client.chunk()
        await settled(bench)
        await bench.restart()
        await client.body(answer)
        error = last_error(answer.events)
        assert answer.events[:-1] == ['{"n":1}', '{"n":2}']
        assert (error["type"], error["code"], error["request_id"]) == ("server_error", "upstream_lost", "r7")
        assert await client.closed()
        [record] = bench.observer.records
        assert (record.outcome, record.status) == (Outcome.LOST, 200)


@scenario
async def test_the_error_event_names_the_cause_that_comes_in_time() -> None:
    async with (
        running(handler=stream_of_two_and_stall, cause_wait_s=1.0) as bench,
        await bench.client() as client,
    ):
        client.request()
        answer = await client.head()
        await settled(bench)
        bench.front.hold("restarting")
        await bench.upstream.kill()
        await bench.until(lambda: bench.observer.lost == [1])
        assert bench.front.in_flight == 0
        bench.front.explain_loss(1, "device_out_of_memory", "CUDA0 ran out of memory")
        await client.body(answer)
        error = last_error(answer.events)
        assert (error["code"], error["message"]) == ("device_out_of_memory", "CUDA0 ran out of memory")


@pytest.mark.parametrize("early", [True, False])
@scenario
async def test_the_cause_may_be_known_before_the_death_is_seen_or_never(early: bool) -> None:
    async with (
        running(handler=stream_of_two_and_stall, cause_wait_s=1.0) as bench,
        await bench.client() as client,
    ):
        client.request()
        answer = await client.head()
        call = await settled(bench)
        if early:
            bench.front.explain_loss(1, "killed", "killed by the admin")
        call.die()
        if not early:
            await bench.until(lambda: bench.observer.lost == [1])
            await bench.pass_s(2)
        await client.body(answer)
        assert last_error(answer.events)["code"] == ("killed" if early else "upstream_lost")


@scenario
async def test_half_an_event_is_never_followed_by_the_error() -> None:
    async def handler(call: Call) -> None:
        await call.begin_stream()
        await call.event('{"n":1}')
        await call.send(b'14\r\ndata: {"n":')
        await stall(call)

    async with running(handler=handler) as bench, await bench.client() as client:
        client.request()
        answer = await client.head()
        await settled(bench)
        await bench.restart()
        await client.body(answer)
        assert [json.loads(event).keys() for event in answer.events] == [{"n"}, {"error"}]


@scenario
async def test_a_stream_that_ends_in_death_while_the_request_still_comes() -> None:
    async with running("unix", eager_bytes=10, cause_wait_s=1.0) as bench, await bench.client() as client:
        bench.upstream.read_bodies = False
        bench.upstream.handler = stream_of_two_and_stall
        client.request(body=b"x" * 20, Content_Length="100")
        answer = await client.head()
        call = await settled(bench)
        call.die()
        await bench.until(lambda: bench.observer.lost == [1])
        client.send(b"x" * 80)
        await yield_to_loop()
        assert (bench.front.waiting, bench.front.in_flight) == (0, 0)
        await bench.pass_s(2)
        await client.body(answer)
        assert last_error(answer.events)["code"] == "upstream_lost"


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("known_length", [True, False])
@scenario
async def test_another_body_that_has_begun_is_broken_visibly(kind: str, known_length: bool) -> None:
    async def handler(call: Call) -> None:
        framing = b"Content-Length: 100" if known_length else b"Transfer-Encoding: chunked"
        await call.send(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n")
        await call.chunk(b"some of it")
        await stall(call)

    async with running(kind, handler=handler) as bench, await bench.client() as client:
        client.request()
        answer = await client.head()
        await settled(bench)
        await bench.restart()
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await client.body(answer)
        assert bench.observer.records[0].outcome is Outcome.LOST


@scenario
async def test_http_1_0_sees_a_reset_not_a_plain_end() -> None:
    async def handler(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await call.chunk(b"some of it")
        await stall(call)

    async with running(handler=handler) as bench, await bench.client() as client:
        client.send(b"GET /x HTTP/1.0\r\n\r\n")
        await client.head()
        assert await client.reader.readexactly(10) == b"some of it"
        await bench.restart()
        with pytest.raises(ConnectionResetError):
            await client.reader.read()


@scenario
async def test_thirty_two_streams_and_the_queue_behind_them() -> None:
    async with running(handler=stream_of_two_and_stall, max_concurrent_requests=32) as bench:
        clients = [await bench.client() for _ in range(48)]
        for number, client in enumerate(clients):
            client.request(body=b"%d" % number)
        await bench.upstream.call(31)
        await bench.until(lambda: bench.front.waiting == 16)
        heads = [await client.head() for client in clients[:32]]
        await bench.restart(stream_ok)
        for client, head in zip(clients, heads, strict=False):
            await client.body(head)
            assert last_error(head.events)["code"] == "upstream_lost"
        for client in clients[32:]:
            assert (await client.answer()).events[-1] == "[DONE]"
        for client in clients:
            client.writer.close()
        outcomes = [record.outcome for record in bench.observer.records]
        assert (outcomes.count(Outcome.LOST), outcomes.count(Outcome.ANSWERED)) == (32, 16)


@scenario
async def test_a_body_past_the_bound_is_not_replayed() -> None:
    async with running(handler=stall, replay_bytes=1000) as bench, await bench.client() as client:
        client.request(body=b"x" * 2000)
        await settled(bench)
        await bench.restart()
        answer = await client.answer()
        assert (answer.status, answer.code) == (503, "upstream_lost")
        assert "retry-after" in answer.headers


@scenario
async def test_a_body_that_is_still_coming_is_replayed_whole() -> None:
    async with running(eager_bytes=1000) as bench, await bench.client() as client:
        client.request(body=b"a" * 2000, Content_Length="4000")
        await bench.upstream.signal.until(lambda: bench.upstream.open_connections == 1)
        await bench.restart()
        await bench.upstream.signal.until(lambda: bench.upstream.open_connections == 1)
        client.send(b"b" * 2000)
        assert (await client.answer()).status == 200
        assert bench.upstream.calls[0].body == b"a" * 2000 + b"b" * 2000


@scenario
async def test_llama_server_that_is_gone_holds_requests_and_is_no_death_of_theirs() -> None:
    async with running() as bench, await bench.client() as client:
        await bench.upstream.kill()
        client.request()
        await bench.until(lambda: bench.observer.lost == [1])
        assert (bench.front.waiting, bench.front.in_flight) == (1, 0)
        assert (await bench.ask("GET", "/health", None)).status == 503
        await bench.serve()
        assert (await client.answer()).status == 200
        assert bench.observer.records[-1].deaths == 0


@scenario
async def test_a_connection_that_was_closed_for_idleness_is_tried_again_on_a_fresh_one() -> None:
    served: list[int] = []

    async def handler(call: Call) -> None:
        served.append(1)
        if len(served) == 2:
            call.die()
        else:
            await call.reply()

    async with running(handler=handler) as bench, await bench.client() as client:
        assert (await client.ask()).status == 200
        assert (await client.ask()).status == 200
        assert len(served) == 3 and bench.upstream.connections == 2
        assert bench.observer.lost == [] and bench.observer.records[1].deaths == 0


@scenario
async def test_a_death_on_a_connection_that_had_served_counts_as_one() -> None:
    async def first(call: Call) -> None:
        if call.body == b"kill":
            await stall(call)
        await call.reply()

    async with running(handler=first) as bench, await bench.client() as client:
        await client.ask()
        client.request(body=b"kill")
        await settled(bench, 1)
        await bench.upstream.kill()
        await bench.until(lambda: bench.front.waiting == 1)
        await bench.serve()
        assert (await client.answer()).status == 200
        assert bench.observer.records[-1].deaths == 1


@scenario
async def test_where_only_the_connection_died_the_request_is_tried_again() -> None:
    calls: list[int] = []

    async def handler(call: Call) -> None:
        calls.append(1)
        if len(calls) == 1:
            call.die()
        else:
            await call.reply()

    async with running(handler=handler) as bench, await bench.client() as client:
        client.request()
        await bench.until(lambda: bench.front.waiting == 1)
        await bench.pass_s(3)
        assert (await client.answer()).status == 200


@scenario
async def test_a_stream_without_events_is_opened_after_a_while_and_still_replayed() -> None:
    async with running(handler=head_and_pings) as bench, await bench.client() as client:
        client.request()
        call = await settled(bench)
        assert client.reader._buffer == b""  # type: ignore[attr-defined]
        await bench.pass_s(11)
        answer = await client.head()
        await call.ping()
        assert await client.chunk() == b":\n\n"
        await bench.restart(stream_ok)
        await client.body(answer)
        assert (answer.status, answer.events) == (200, ['{"n":1}', "[DONE]"])


@scenario
async def test_an_error_after_the_stream_was_opened_comes_as_an_event() -> None:
    async def refuse(call: Call) -> None:
        await call.reply(b'{"error":"no"}', 400)

    async with running(handler=head_and_pings) as bench, await bench.client() as client:
        client.request()
        await settled(bench)
        await bench.pass_s(11)
        answer = await client.head()
        await bench.restart(refuse)
        await client.body(answer)
        assert last_error(answer.events)["code"] == "replay_failed"
        assert await client.closed()
    async with running(handler=head_and_pings) as bench, await bench.client() as client:
        client.request()
        await settled(bench)
        await bench.pass_s(11)
        answer = await client.head()
        await bench.upstream.kill()
        bench.front.refuse(503, "crash_loop", "it failed for good")
        await client.body(answer)
        assert last_error(answer.events)["code"] == "crash_loop"


@scenario
async def test_cut_ends_each_kind_of_request_in_its_way() -> None:
    async def handler(call: Call) -> None:
        if call.body == b"stream":
            await stream_of_two_and_stall(call)
        elif call.body == b"plain":
            await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome of it")
        await stall(call)

    async with running(handler=handler) as bench:
        stream, plain, fresh = [await bench.client() for _ in range(3)]
        stream.request(body=b"stream")
        plain.request(body=b"plain")
        fresh.request(body=b"fresh")
        stream_answer, plain_answer = await stream.head(), await plain.head()
        await settled(bench, 2)
        bench.front.hold("reload")
        assert await bench.finish(bench.front.drain(1)) == 3
        assert bench.front.cut("reload", "the definition has changed") == 3
        assert bench.front.in_flight == 0
        await bench.front.close_upstreams()
        await bench.upstream.signal.until(lambda: bench.upstream.open_connections == 0)
        await stream.body(stream_answer)
        assert last_error(stream_answer.events)["code"] == "reload"
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await plain.body(plain_answer)
        await bench.serve()
        assert (await fresh.answer()).status == 200
        outcomes = {record.outcome for record in bench.observer.records}
        assert outcomes == {Outcome.CUT, Outcome.ANSWERED}
        assert bench.observer.lost == []
        for client in (stream, plain, fresh):
            client.writer.close()


@scenario
async def test_cut_of_a_request_that_cannot_be_replayed_is_a_503_with_the_cause() -> None:
    async with running(handler=stall, replay_bytes=10) as bench, await bench.client() as client:
        client.request(body=b"x" * 20)
        await settled(bench)
        bench.front.hold("reload")
        bench.front.cut("reload", "the definition has changed")
        answer = await client.answer()
        assert (answer.status, answer.code) == (503, "reload")


@scenario
async def test_drain_ends_with_the_last_answer() -> None:
    proceed = asyncio.Event()

    async def handler(call: Call) -> None:
        await proceed.wait()
        await call.reply()

    async with (
        running(handler=handler) as bench,
        await bench.client() as client,
        await bench.client() as late,
    ):
        client.request()
        await settled(bench)
        bench.front.hold("reload")
        draining = asyncio.ensure_future(bench.front.drain(60))
        late.request()
        await bench.until(lambda: bench.front.waiting == 1)
        assert not draining.done()
        proceed.set()
        assert await draining == 0
        assert (await client.answer()).status == 200
        assert bench.front.waiting == 1
        bench.front.open(str(bench.upstream.path))
        assert (await late.answer()).status == 200


@scenario
async def test_two_generations_side_by_side() -> None:
    """The new one is opened while the old one still answers; only the old one is drained and cut."""
    async with running(handler=stream_of_two_and_stall) as bench:
        old, new = await bench.client(), await bench.client()
        old.request()
        old_answer = await old.head()
        await bench.serve(stall)
        new.request()
        await settled(bench)
        assert bench.front.in_flight == 2
        assert await bench.finish(bench.front.drain(1, generation=1)) == 1
        assert bench.front.cut("reload", "swapped", generation=1) == 1
        await bench.front.close_upstreams(generation=1)
        await old.body(old_answer)
        assert last_error(old_answer.events)["code"] == "reload"
        assert bench.front.in_flight == 1 and bench.upstream.open_connections == 1
        old.writer.close()
        new.writer.close()


@scenario
async def test_all_generations_before_one_are_ended_together() -> None:
    """An old llama-server may have been opened twice: a connection to it was lost and it lived on."""
    async with running(handler=stream_of_two_and_stall) as bench:
        first, second, new = await bench.client(), await bench.client(), await bench.client()
        first.request()
        answers = [await first.head()]
        bench.front.open(str(bench.upstream.path))
        second.request()
        answers.append(await second.head())
        await bench.serve(stall)
        new.request()
        await settled(bench)
        assert (bench.front.at_work(), bench.front.at_work(since=3)) == (3, 1)
        assert await bench.finish(bench.front.drain(1, before=3)) == 2
        assert bench.front.cut("reload", "swapped", before=3) == 2
        await bench.front.close_upstreams(before=3)
        for client, answer in zip((first, second), answers, strict=True):
            await client.body(answer)
            assert last_error(answer.events)["code"] == "reload"
        assert bench.front.in_flight == 1 and bench.upstream.open_connections == 1
        for client in (first, second, new):
            client.writer.close()


@scenario
async def test_the_observer_is_told_of_progress_but_not_of_pings() -> None:
    ping = asyncio.Event()

    async def handler(call: Call) -> None:
        await call.begin_stream()
        await call.ping()
        await call.event("1")
        await ping.wait()
        for _ in range(10):
            await call.ping()
        await call.event("2")
        await call.end()

    async with running("unix", handler=handler) as bench, await bench.client() as client:
        client.request()
        answer = await client.head()
        assert (await client.chunk()).endswith(b"data: 1\n\n")
        before = bench.observer.progressed
        assert before == 1
        ping.set()
        await client.body(answer)
        assert bench.observer.progressed == before + 1
        assert answer.body.count(b":\n\n") >= 10


@scenario
async def test_the_first_byte_is_the_first_event() -> None:
    async with running(handler=head_and_pings) as bench, await bench.client() as client:
        client.request()
        call = await settled(bench)
        await bench.pass_s(5)
        await call.event("1")
        await call.end()
        await client.answer()
        call.die()
        assert bench.observer.records[0].first_byte_s == 5


@scenario
async def test_answer_ok_is_the_default() -> None:
    async with running(handler=answer_ok) as bench:
        assert (await bench.ask()).status == 200
