"""What llamad itself answers but not at once, who may ask for it, and what is for the admin; heartbeats."""

from __future__ import annotations

import asyncio
import json

import pytest

from llamad.front.answers import Answer as Made
from llamad.front.keys import KeySet
from llamad.front.settings import Outcome
from tests.support.fake_upstream import Call
from tests.support.front import Bench, running
from tests.support.http import scenario, yield_to_loop

ADMIN = {"Authorization": "Bearer boss"}
KEYS = KeySet(["user"], KeySet(["boss"]))


class Service:
    """What the owner of the address answers, slowly."""

    def __init__(self) -> None:
        self.orders: list[tuple[str, bytes]] = []
        self.go = asyncio.Event()
        self.go.set()

    async def metrics(self) -> bytes:
        await self.go.wait()
        return b"# TYPE a gauge\na 1\n"

    async def admin(self, order: str, body: bytes, request_id: bytes) -> Made:
        await self.go.wait()
        self.orders.append((order, body))
        return Made(200, b'{"done":true}')


def serve_locally(bench: Bench, keys: KeySet = KEYS) -> Service:
    service = Service()
    bench.front._shared.local = service
    bench.front.apply(bench.settings, keys)
    return service


@scenario
async def test_metrics_are_for_who_has_a_key() -> None:
    async with running() as bench, await bench.client() as client:
        serve_locally(bench)
        assert (await client.ask("GET", "/metrics", None)).status == 401
        for key in ("user", "boss"):
            answer = await client.ask("GET", "/metrics", None, X_Api_Key=key)
            assert (answer.status, answer.body) == (200, b"# TYPE a gauge\na 1\n")
            assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        head = await client.ask("HEAD", "/metrics", None, X_Api_Key="user")
        assert head.headers["content-length"] == "19"
        assert (await client.ask("POST", "/metrics", X_Api_Key="user")).status == 405
        assert bench.upstream.calls == []


@scenario
async def test_orders_need_a_key_of_their_own() -> None:
    async with running() as bench, await bench.client() as client:
        service = serve_locally(bench)
        for fields in ({}, {"Authorization": "Bearer user"}):
            answer = await client.ask("POST", "/admin/reload", **fields)
            assert (answer.status, answer.code) == (401, "admin_only")
        assert (await client.ask("POST", "/admin/drain", b'{"deadline_s":1}', **ADMIN)).json == {"done": True}
        assert (await client.ask("GET", "/admin/status", None, **ADMIN)).status == 200
        assert (await client.ask("GET", "/admin/reload", None, **ADMIN)).status == 405
        assert (await client.ask("POST", "/admin/status", **ADMIN)).status == 405
        assert (await client.ask("POST", "/admin/drain", b"x" * 70_000, **ADMIN)).status == 413
        assert service.orders == [("drain", b'{"deadline_s":1}'), ("status", b"")]


@scenario
async def test_without_such_a_key_nobody_gets_there_from_the_network() -> None:
    for keys in (KeySet(), KeySet(["user"])):
        async with running() as bench:
            service = serve_locally(bench, keys)
            for path in ("/admin/status", "/admin", "/admin/", "/%61dmin/status", "/admin/x"):
                answer = await bench.ask("GET", path, None, Authorization="Bearer user", X_Api_Key="")
                assert (answer.status, answer.code) == (403, "admin_only"), path
            assert service.orders == []


@scenario
async def test_the_owner_gets_there_through_a_unix_socket() -> None:
    async with running("unix") as bench:
        service = serve_locally(bench, KeySet(["user"]))
        assert (await bench.ask("POST", "/admin/resume")).status == 200
        assert service.orders == [("resume", b"{}")]
        assert (await bench.ask("POST", "/slots/0?action=erase", b"")).status == 200
        assert bench.upstream.calls[0].target == "/slots/0?action=erase"
        assert (await bench.ask("GET", "/v1/models", None)).status == 401  # only what is for the admin


@scenario
async def test_who_connects_where_requests_are_passed_on_is_nobody_s_owner() -> None:
    """The llama-server of another model runs as the same user, and can connect there."""
    async with running() as bench:
        service = serve_locally(bench, KeySet(["user"]))
        bench.address = bench.listen("unix")
        await bench.front.start([], bench.sockets[-1:])
        assert (await bench.ask("POST", "/admin/resume")).code == "admin_only"
        assert (await bench.ask("POST", "/slots/0?action=erase", b"")).code == "admin_only"
        assert (await bench.ask("GET", "/v1/models", None, X_Api_Key="user")).status == 200
        assert service.orders == [] and bench.upstream.calls == []


@pytest.mark.parametrize("path", ["/slots/0?action=erase", "/props", "/lora-adapters"])
@scenario
async def test_with_the_admin_s_key_llama_server_can_be_changed(path: str) -> None:
    async with running() as bench, await bench.client() as client:
        serve_locally(bench)
        refused = await client.ask("POST", path, X_Api_Key="user")
        assert (refused.status, refused.code) == (401, "admin_only")
        assert (await client.ask("POST", path, X_Api_Key="boss")).status == 200
        assert bench.upstream.calls[0].target == path
        assert "boss" not in str(bench.upstream.calls[0].headers)


@scenario
async def test_a_client_that_leaves_and_one_that_pipelines() -> None:
    async with running("unix") as bench:
        service = serve_locally(bench)
        service.go.clear()
        gone = await bench.client()
        gone.request("POST", "/admin/resume")
        await yield_to_loop()
        gone.writer.close()
        async with await bench.client() as client:
            client.request("GET", "/admin/status", None)
            client.request("GET", "/health", None)
            await yield_to_loop()
            service.go.set()
            assert (await client.answer()).json == {"done": True}
            assert (await client.answer()).json == {"status": "ok"}
        await bench.until(lambda: len(bench.observer.records) == 2)
        assert ("resume", b"{}") in service.orders  # done although nobody waits for the answer
        assert {record.outcome for record in bench.observer.records} == {Outcome.LOCAL}


# --- heartbeats ----------------------------------------------------------------------------------------------

STREAM = b'{"stream":true,"prompt":"x"}'


async def events(call: Call) -> None:
    await call.begin_stream()
    await call.event("1")
    await call.event("[DONE]")
    await call.end()


@scenario
async def test_a_held_stream_gets_comments_and_then_its_answer() -> None:
    async with running(handler=None, heartbeat_s=5) as bench, await bench.client() as client:
        client.request(body=STREAM)
        await bench.until(lambda: bench.front.waiting == 1)
        await bench.pass_s(6)
        head = await client.head()
        assert (head.status, head.headers["content-type"]) == (200, "text/event-stream")
        assert await client.chunk() == b":\n\n"
        await bench.pass_s(6)
        assert await client.chunk() == b":\n\n"
        await bench.serve(events)
        await client.body(head)
        assert head.events == ["1", "[DONE]"]
        assert (await client.ask("GET", "/health", None)).status == 200  # the connection serves on


@scenario
async def test_after_a_heartbeat_errors_are_events() -> None:
    async def refuse(call: Call) -> None:
        await call.reply(b'{"error":{"code":400,"message":"the \\"schema\\" is wrong","type":"x"}}', 400)

    async with running(handler=None, heartbeat_s=5, wait_s=20) as bench:
        for ending in ("upstream_error", "wait_timeout"):
            async with await bench.client() as client:
                client.request(body=STREAM)
                await bench.until(lambda: bench.front.waiting == 1)
                await bench.pass_s(6)
                head = await client.head()
                if ending == "upstream_error":
                    await bench.serve(refuse)
                else:
                    await bench.pass_s(20)
                await client.body(head)
                error = json.loads(head.events[-1])["error"]
                assert error["code"] == ending
                assert ending != "upstream_error" or 'llama-server answers 400: the "schema" is wrong' in error["message"]
                assert await client.closed()
                bench.front.hold("again")


@scenario
async def test_who_asked_for_no_stream_gets_no_heartbeat_and_nobody_unless_it_is_on() -> None:
    for seconds, body in ((5.0, b'{"prompt":"x"}'), (0.0, STREAM)):
        async with running(handler=None, heartbeat_s=seconds) as bench, await bench.client() as client:
            client.request(body=body)
            await bench.until(lambda: bench.front.waiting == 1)
            await bench.pass_s(30)
            await bench.serve()
            assert (await client.answer()).json == {"ok": True}
