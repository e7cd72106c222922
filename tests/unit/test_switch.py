"""Several models behind one address: each request goes to its own, and what goes to none is answered here."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from llamad.front.holding import Refusal
from llamad.front.keys import KeySet
from llamad.front.settings import Outcome
from tests.support.fake_upstream import Call
from tests.support.http import scenario, yield_to_loop
from tests.support.switch import switching

ONE = b'{"messages": [{"role": "user", "content": "hello"}], "model": "one"}'
TWO = b'{"model": "two", "messages": []}'


@scenario
async def test_the_model_in_the_body_chooses_wherever_it_stands() -> None:
    async with switching("one", "two") as bench, await bench.client() as client:
        for body in (ONE, TWO, ONE):
            assert (await client.ask(body=body)).status == 200
        assert bench.served() == {"one": 2, "two": 1}
        assert [call.body for call in bench.upstreams["one"].calls] == [ONE, ONE]


@pytest.mark.parametrize("cut", [1, 20, len(ONE) - 3])
@scenario
async def test_a_body_that_comes_in_pieces_is_passed_on_whole(cut: int) -> None:
    async with switching("one", "two") as bench, await bench.client() as client:
        client.request(body=None, Content_Length=str(len(ONE)))
        for piece in (ONE[:cut], ONE[cut:]):
            client.send(piece)
            await yield_to_loop()
        assert (await client.answer()).status == 200
        assert bench.upstreams["one"].calls[0].body == ONE
        client.request(body=None, Transfer_Encoding="chunked")
        for piece in (ONE[:cut], ONE[cut:]):
            client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            await yield_to_loop()
        client.send(b"0\r\n\r\n")
        assert (await client.answer()).status == 200
        assert bench.upstreams["one"].calls[1].body == ONE


@scenario
async def test_a_form_names_its_model_behind_a_large_file() -> None:
    audio = b"\r\n--x" * 100_000
    body = (
        b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + audio
        + b'\r\n--xyz\r\nContent-Disposition: form-data; name="model"\r\n\r\ntwo\r\n--xyz--\r\n'
    )  # fmt: skip
    async with switching("one", "two") as bench:
        kind = "multipart/form-data; boundary=xyz"
        answer = await bench.ask("POST", "/v1/audio/transcriptions", body, Content_Type=kind)
        assert answer.status == 200 and bench.upstreams["two"].calls[0].body == body


@scenario
async def test_query_and_path_choose_too() -> None:
    async with switching("one", "two") as bench:
        assert (await bench.ask("GET", "/props?model=two", None)).status == 200
        assert (await bench.ask("GET", "/upstream/two/slots?a=b", None)).status == 200
        assert (await bench.ask("POST", "/upstream/two/v1/embeddings", b"[]")).status == 200
        calls = bench.upstreams["two"].calls
        assert [call.target for call in calls] == ["/props?model=two", "/slots?a=b", "/v1/embeddings"]
        assert bench.served()["one"] == 0


@pytest.mark.parametrize(
    ("method", "target", "body", "status", "code"),
    [
        ("POST", "/v1/chat/completions", b'{"model": "three"}', 404, "model_not_found"),
        ("POST", "/v1/chat/completions", b'{"model": 3}', 400, "bad_request"),
        ("POST", "/v1/chat/completions", b'{"model": "one", "model": "two"}', 400, "bad_request"),
        ("POST", "/v1/chat/completions", b"{}", 400, "model_required"),
        ("POST", "/v1/chat/completions", b"[1]", 400, "model_required"),
        ("GET", "/props", None, 400, "model_required"),
        ("GET", "/upstream/three/props", None, 404, "model_not_found"),
        ("GET", "/upstream/one/../../etc", None, 400, "bad_request"),
        ("GET", "/upstream/%2e%2e/props", None, 404, "model_not_found"),
        ("POST", "/upstream/one/slots/0", b"{}", 403, "admin_only"),
        ("POST", "/props?model=one", b"{}", 403, "admin_only"),
        ("GET", "/v1/models/three", None, 404, "model_not_found"),
        ("DELETE", "/v1/models/one", None, 405, "method_not_allowed"),
    ],
)
@scenario
async def test_what_goes_nowhere_is_answered_here(
    method: str, target: str, body: bytes | None, status: int, code: str
) -> None:
    async with switching("one", "two") as bench, await bench.client() as client:
        answer = await client.ask(method, target, body)
        assert (answer.status, answer.code) == (status, code)
        if code == "model_not_found" and "upstream" not in target:
            assert "there is: one, two" in answer.json["error"]["message"]
        assert answer.json["error"]["request_id"] == answer.headers["x-request-id"]
        assert bench.served() == {"one": 0, "two": 0}
        assert len(bench.observer.records) == 1
        assert (await client.ask(body=ONE)).status == 200  # the connection lives on


@scenario
async def test_a_second_name_behind_what_was_sent_already_ends_the_request() -> None:
    async with switching("one", eager_bytes=100) as bench, await bench.client() as client:
        body = b'{"model": "one", "x": "' + b"x" * 3_000_000
        client.request(body=None, Transfer_Encoding="chunked")
        client.send(b"%x\r\n%b\r\n" % (len(body), body))
        await bench.upstreams["one"].signal.until(lambda: bench.upstreams["one"].connections == 1)
        rest = b'", "model": "two"}'
        client.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(rest), rest))
        answer = await client.answer()
        assert (answer.status, answer.code) == (400, "bad_request")


@scenario
async def test_one_model_alone_needs_no_name() -> None:
    async with switching("one") as bench:
        assert (await bench.chat(b"{}")).status == 200
        assert (await bench.ask("GET", "/props", None)).status == 200
        assert bench.served() == {"one": 2}


@scenario
async def test_the_list_of_models_has_all_with_their_aliases() -> None:
    async with switching("one") as bench:
        bench.add("two", "gpt-4o", "one")
        listed = (await bench.ask("GET", "/v1/models", None)).json
        assert [entry["id"] for entry in listed["data"]] == ["one", "two", "gpt-4o", "one"]
        assert listed["data"][0]["meta"] == {"n_ctx": 4096, "n_ctx_train": None, "size": None, "state": "ready"}
        assert (await bench.ask("GET", "/v1/models/gpt-4o", None)).json == listed["data"][2]
        assert (await bench.ask("OPTIONS", "/v1/chat/completions", None)).status == 204
        assert (await bench.ask("GET", "/health", None)).json == {"status": "ok"}
        assert (await bench.ask("GET", "/ready", None)).status == 200
        bench.pending.append("one")
        answer = await bench.ask("GET", "/ready", None)
        assert (answer.status, answer.code) == (503, "not_ready") and "one" in answer.json["error"]["message"]


@scenario
async def test_health_of_a_model_needs_no_key_loads_nothing_and_names_no_other() -> None:
    async with switching("one", keys="k") as bench:
        lane = bench.add("two", "gpt-4o")
        answers = {name: await bench.ask("GET", f"/health?model={name}", None) for name in ("one", "gpt-4o", "three")}
        assert {name: answer.status for name, answer in answers.items()} == {"one": 200, "gpt-4o": 503, "three": 404}
        assert answers["one"].json["requests"] == "passed"
        assert (answers["gpt-4o"].json["model"], answers["gpt-4o"].json["requests"]) == ("two", "held")
        assert b"two" not in answers["three"].body
        assert bench.observers["two"].waits == 0 and bench.served() == {"one": 0}
        lane.gate.refuse(Refusal(503, "model_failed", "it failed"))
        answer = await bench.ask("GET", "/health?model=two", None)
        assert (answer.status, answer.json["requests"]) == (503, "refused")
        assert (await bench.ask("GET", "/health?model=one&model=two", None)).status == 400


@scenario
async def test_a_request_for_a_model_that_is_not_loaded_waits_and_asks_for_it() -> None:
    async with switching("one") as bench:
        bench.add("two")
        waiting = asyncio.ensure_future(bench.chat(TWO))
        await bench.observers["two"].signal.until(lambda: bench.observers["two"].waits == 1)
        assert (await bench.chat(ONE)).status == 200  # nobody else waits for it
        await bench.load("two")
        assert (await waiting).status == 200


@scenario
async def test_the_limits_of_a_model_are_its_own() -> None:
    async with switching("one") as bench:
        bench.add("two", queue_requests=0, wait_s=3.0)
        answer = await bench.chat(TWO)
        assert (answer.status, answer.code) == (503, "queue_full")
        assert bench.observers["two"].waits == 1, "it is asked for all the same: who comes again finds it loaded"


@scenario
async def test_keys_of_the_address_open_what_has_no_keys_of_its_own() -> None:
    async with switching("one", keys="all") as bench:
        bench.add("two", keys="own")
        await bench.load("two")

        async def status(body: bytes, key: str) -> int:
            return (await bench.chat(body, Authorization=f"Bearer {key}")).status

        assert [await status(ONE, key) for key in ("all", "own", "none")] == [200, 401, 401]
        assert [await status(TWO, key) for key in ("all", "own", "none")] == [401, 200, 401]
        assert (await bench.ask("GET", "/v1/models", None, X_Api_Key="own")).status == 401
        assert (await bench.ask("GET", "/v1/models", None, X_Api_Key="all")).status == 200
        refused = [record for record in bench.observer.records if record.outcome is Outcome.REFUSED]
        assert len(refused) == 5
        sent = [field for call in bench.upstreams["two"].calls for field in call.headers]
        assert "authorization" not in [name.lower() for name in sent]


@scenario
async def test_only_a_lane_to_another_llamad_gets_the_keys() -> None:
    async with switching("one", keys="all") as bench:
        bench.lanes["one"].passes_keys = True
        assert (await bench.chat(ONE, Authorization="Bearer all", X_Api_Key="all")).status == 200
        headers = {name.lower(): value for name, value in dict(bench.upstreams["one"].calls[0].headers).items()}
        assert (headers["authorization"], headers["x-api-key"]) == ("Bearer all", "all")


@scenario
async def test_a_client_that_goes_before_its_model_is_known_leaves_nothing() -> None:
    async with switching("one") as bench:
        client = await bench.client()
        client.request(body=None, Content_Length="1000000")
        client.send(b'{"messages": "' + b"x" * 100_000)
        await yield_to_loop()
        assert bench.front._shared.memory.held_bytes > 0
        client.writer.transport.abort()
        await bench.observer.signal.until(lambda: bool(bench.observer.records))
        assert bench.observer.records[0].outcome is Outcome.CLIENT_GONE
        assert bench.front._shared.memory.held_bytes == 0


@scenario
async def test_memory_for_bodies_whose_model_is_not_known_is_bounded() -> None:
    async with switching("one", replay_bytes=200_000, eager_bytes=100_000) as bench:
        clients = [await bench.client() for _ in range(3)]
        for client in clients:
            client.request(body=None, Content_Length="1000000")
            client.send(b'{"messages": "' + b"x" * 150_000)
            await yield_to_loop(40)
        answer = await clients[2].answer()
        assert (answer.status, answer.code) == (503, "busy") and "retry-after" in answer.headers
        for client in clients:
            client.writer.transport.abort()
        await yield_to_loop()


@scenario
async def test_a_model_that_dies_is_replayed_in_its_own_lane() -> None:
    async with switching("one", "two") as bench:
        await bench.upstreams["one"].kill()
        waiting = asyncio.ensure_future(bench.chat(ONE))
        await bench.observers["one"].signal.until(lambda: bool(bench.observers["one"].lost))
        assert (await bench.chat(TWO)).status == 200
        await bench.load("one")
        assert (await waiting).status == 200
        assert json.loads(bench.upstreams["one"].calls[0].body)["model"] == "one"


@scenario
async def test_a_model_that_leaves_is_found_by_nobody_and_answers_what_it_has() -> None:
    async with switching("one", "two") as bench:
        go_on = asyncio.Event()

        async def slowly(call: Call) -> None:
            await go_on.wait()
            await call.reply()

        bench.upstreams["one"].handler = slowly
        answer = asyncio.ensure_future(bench.chat(b'{"model": "one"}'))
        await bench.upstreams["one"].call(0)
        bench.front.leave(bench.lanes["one"])
        assert (await bench.chat(b'{"model": "one"}')).code == "model_not_found"
        assert [one["id"] for one in (await bench.ask("GET", "/v1/models")).json["data"]] == ["two"]
        go_on.set()
        assert (await answer).status == 200
        bench.front.remove(bench.lanes["one"])
        assert (await bench.chat(b'{"model": "two"}')).status == 200


@scenario
async def test_who_was_let_in_is_shut_out_with_the_key() -> None:
    async with switching(keys="address") as bench, await bench.client() as client:
        own = bench.add("own", keys="mine")
        await bench.load("own")

        async def status(key: str, **fields: str) -> int:
            answer = await client.ask("POST", "/v1/chat/completions", b'{"model":"own"}', X_Api_Key=key, **fields)
            return answer.status

        for _ in range(3):
            assert (await status("mine"), await status("address"), await status("none")) == (200, 401, 401)
        assert await status("mine", Origin="https://evil.example") == 403
        bench.front.change(own, own.settings, KeySet(["new"]))
        for _ in range(2):
            assert (await status("mine"), await status("new")) == (401, 200)
        bench.front.change(own, own.settings, KeySet())
        assert (await status("new"), await status("address")) == (401, 200)
        bench.front.apply(replace(own.settings, name="llamad"), KeySet(["other"]))
        assert (await status("address"), await status("other")) == (401, 200)
