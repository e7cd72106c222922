"""The router: who answers for a model, when it is loaded, when it goes; with played lives and a real ledger."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from llamad.errors import BadModelError, BusyError
from llamad.ledger.handover import is_routers, take_over
from llamad.service.status import StatusFile
from tests.support.fake_upstream import Call, answer_when
from tests.support.router import RouterBench, routing


def scene(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test on a loop of its own, with a bound."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 60))

    return run


def two(bench: RouterBench) -> None:
    bench.define("one", 'aliases = ["gpt-4o"]')
    bench.define("two")


@scene
async def test_a_model_is_loaded_with_its_first_request_and_with_no_other() -> None:
    async with routing(two) as bench:
        assert bench.states() == {"one": "unloaded", "two": "unloaded"}
        answers = await asyncio.gather(*(bench.chat("gpt-4o") for _ in range(5)))
        assert {answer.status for answer in answers} == {200}
        assert bench.states() == {"one": "ready", "two": "unloaded"}
        assert bench.world.lives == ["one"]
        assert (await bench.chat("three")).code == "model_not_found"
        listed = (await bench.get("/v1/models")).json["data"]
        assert [(entry["id"], entry["meta"]["state"]) for entry in listed] == [
            ("one", "ready"), ("gpt-4o", "ready"), ("two", "unloaded")
        ]  # fmt: skip


@scene
async def test_an_idle_model_is_unloaded_and_a_busy_one_is_not() -> None:
    go_on = asyncio.Event()

    def prepare(bench: RouterBench) -> None:
        bench.define("one", '[idle]\nkeep_alive = "0.2s"')
        bench.define("two", '[idle]\nkeep_alive = "0.2s"')
        bench.world.handlers["two"] = answer_when(go_on)

    async with routing(prepare) as bench:
        waiting = asyncio.ensure_future(bench.chat("two"))
        assert (await bench.chat("one")).status == 200
        await bench.until(lambda: bench.state("one") == "unloaded", "idle")
        assert bench.state("two") == "ready"
        go_on.set()
        assert (await waiting).status == 200
        await bench.until(lambda: bench.state("two") == "unloaded", "idle")
        assert "keep_alive" in bench.journal.of("unloading")[0][1]


@scene
async def test_a_model_that_is_always_there_is_loaded_at_once_and_stays() -> None:
    def prepare(bench: RouterBench) -> None:
        bench.define("one", 'start = "always"\n[idle]\nkeep_alive = "0.1s"')
        bench.world.needs = {"one": 60, "two": 60}
        bench.define("two", "[limits]\nwait_s = 1")
        bench.world.gates["one"] = asyncio.Event()

    async with routing(prepare) as bench:
        assert (await bench.get("/ready")).code == "not_ready"
        bench.world.gates["one"].set()
        await bench.until(lambda: bench.state("one") == "ready")
        assert (await bench.get("/ready")).status == 200
        assert (await bench.chat("two")).code == "wait_timeout"  # longer than keep_alive
        assert bench.state("one") == "ready"
        await bench.until(lambda: bench.state("two") == "unloaded", "nobody waits for it any more")


@scene
async def test_the_idle_model_makes_room_and_only_where_it_must() -> None:
    def prepare(bench: RouterBench) -> None:
        for name, need in (("one", 60), ("two", 30), ("big", 70), ("huge", 101)):
            bench.define(name, "[limits]\nwait_s = 1")
            bench.world.needs[name] = need

    async with routing(prepare) as bench:
        assert (await bench.chat("one")).status == (await bench.chat("two")).status == 200
        assert bench.journal.of("unloading") == []
        assert (await bench.chat("big")).status == 200
        assert bench.states() == {"one": "unloaded", "two": "ready", "big": "ready", "huge": "unloaded"}
        assert (await bench.chat("huge")).code == "wait_timeout"  # it fits nowhere: nobody was sent away for it
        assert (bench.state("two"), bench.state("big")) == ("ready", "ready")


@scene
async def test_a_model_stays_until_the_request_that_it_was_loaded_for_is_answered() -> None:
    go_on = asyncio.Event()

    def prepare(bench: RouterBench) -> None:
        two(bench)
        bench.world.needs = {"one": 60, "two": 60}
        bench.world.handlers["one"] = answer_when(go_on)

    async with routing(prepare) as bench:
        first = asyncio.ensure_future(bench.chat("one"))
        await bench.until(lambda: bench.state("one") == "ready")
        second = asyncio.ensure_future(bench.chat("two"))
        await bench.until(lambda: bench.state("two") == "waiting")
        await asyncio.sleep(0.3)
        assert bench.state("one") == "ready" and not first.done()
        go_on.set()
        assert (await first).status == (await second).status == 200
        assert bench.states() == {"one": "unloaded", "two": "ready"}


@scene
async def test_a_busy_model_is_drained_with_a_bound_and_its_stream_told() -> None:
    async def for_ever(call: Call) -> None:
        await call.begin_stream()
        await call.event("a")
        await asyncio.sleep(60)

    def prepare(bench: RouterBench) -> None:
        bench.define("one", "[limits]\ndrain_s = 0.3")
        bench.define("two")
        bench.world.needs = {"one": 60, "two": 60}
        bench.world.handlers["one"] = for_ever

    async with routing(prepare) as bench:
        stream = asyncio.ensure_future(bench.chat("one"))
        await bench.until(lambda: bench.router.residents["one"].front.has_answered)
        assert (await bench.chat("two")).status == 200
        events = (await stream).events
        assert events[0] == "a" and '"unloaded"' in events[-1]


@scene
async def test_a_failed_model_says_why_and_is_tried_again_where_that_can_help() -> None:
    def prepare(bench: RouterBench) -> None:
        two(bench)
        bench.world.failures["one"] = [BadModelError("it is no model", fix="use another")]
        bench.world.failures["two"] = [BusyError("others have it all")]

    async with routing(prepare) as bench:
        answer = await bench.chat("one")
        assert (answer.status, answer.code) == (503, "model_failed")
        assert "it is no model" in answer.json["error"]["message"] and "retry-after" not in answer.headers
        assert bench.state("one") == "failed"
        answer = await bench.chat("two")
        assert (answer.code, answer.headers["retry-after"]) == ("model_failed", "5")
        bench.router.reload()
        await bench.until(lambda: bench.state("one") == "unloaded", "tried again after a reload")
        assert (await bench.chat("one")).status == 200


@scene
async def test_broken_and_manual_definitions_are_told_and_a_reload_mends_them() -> None:
    def prepare(bench: RouterBench) -> None:
        bench.define("one")
        bench.define("broken", "contxt = 5")
        bench.define("hand", 'start = "manual"')

    async with routing(prepare) as bench:
        assert bench.states() == {"one": "unloaded", "broken": "broken", "hand": "manual"}
        answer = await bench.chat("broken")
        assert (answer.status, answer.code) == (503, "broken_definition")
        assert "broken.toml:2:1" in answer.json["error"]["message"]
        assert (await bench.chat("hand")).code == "manual_start"
        assert bench.journal.of("config-refused")[0][0] == "broken"
        assert (await bench.chat("one")).status == 200
        bench.define("broken")
        bench.define("new")
        (bench.etc / "hand.toml").unlink()
        bench.router.reload()
        await bench.until(lambda: bench.states() == {"one": "ready", "broken": "unloaded", "new": "unloaded"})
        assert (await bench.chat("broken")).status == (await bench.chat("new")).status == 200
        assert (await bench.chat("hand")).code == "model_not_found"
        bench.define("one", "[placement]\ncontext = 512")
        bench.router.reload()
        await bench.until(lambda: bench.world.reloads == ["one: placement.context"])
        (bench.etc / "one.toml").write_text("nonsense")
        bench.router.reload()
        await bench.until(lambda: bool(bench.journal.of("reload-refused")))
        assert (await bench.chat("one")).status == 200  # with the definition that was in force


@scene
async def test_a_unit_takes_the_model_over_and_gives_it_back() -> None:
    async with routing(two) as bench:
        assert (await bench.chat("one")).status == 200
        unit = bench.unit("one")
        assert is_routers(unit.ledger)
        told: list[bool] = []
        await asyncio.to_thread(take_over, unit.ledger, 10.0, lambda: told.append(True))
        assert told == [True]
        waiting = asyncio.ensure_future(bench.chat("one"))
        await bench.until(lambda: bench.state("one") == "forwarded")
        await unit.serve()
        assert (await waiting).status == 200
        assert unit.upstream is not None and len(unit.upstream.calls) == 1
        assert "llamad@one takes it over" in bench.journal.of("unloading")[0][1]
        await unit.stop()
        assert (await bench.chat("one")).status == 200
        assert bench.world.lives == ["one", "one"]
        assert bench.state("two") == "unloaded"


@scene
async def test_health_of_a_model_tells_which_are_ready_here_and_loads_none() -> None:
    async with routing(two) as bench:
        assert (await bench.get("/health?model=gpt-4o")).json["requests"] == "held"
        assert bench.world.lives == []
        assert (await bench.chat("one")).status == 200
        health = await bench.get("/health?model=gpt-4o")
        assert (health.status, health.json["state"]) == (200, "ready")
        assert (await bench.get("/health?model=two")).status == 503
        assert bench.world.lives == ["one"]


@scene
async def test_a_model_of_a_unit_is_as_healthy_as_the_unit_says() -> None:
    async with routing(two) as bench:
        unit = bench.unit("one")
        await asyncio.to_thread(unit.ledger.take)
        await unit.serve()
        assert (await bench.chat("one")).status == 200
        told = StatusFile(unit.folder, "one")
        for state, status, requests in (("loading", 503, "held"), ("ready", 200, "passed"), ("backoff", 503, "held")):
            told.update(state=state)
            health = await bench.get("/health?model=one")
            assert (health.status, health.json["state"]) == (status, "forwarded")
            assert health.json["requests"] == requests
        await unit.stop()


@scene
async def test_a_request_for_a_model_that_a_unit_serves_goes_there_with_its_keys() -> None:
    async with routing(two) as bench:
        unit = bench.unit("one")
        await asyncio.to_thread(unit.ledger.take)
        await unit.serve()
        answer = await bench.chat("one")
        assert answer.status == 200 and bench.state("one") == "forwarded" and bench.world.lives == []
        await unit.stop()


@scene
async def test_a_unit_that_does_not_come_leaves_the_model_to_the_router() -> None:
    async with routing(two) as bench:
        assert (await bench.chat("one")).status == 200
        unit = bench.unit("one")
        await asyncio.to_thread(take_over, unit.ledger, 10.0, lambda: None)
        await unit.stop()  # it failed at once
        assert (await bench.chat("one")).status == 200


@scene
async def test_an_enabled_unit_that_is_stopped_is_named_after_a_while() -> None:
    def prepare(bench: RouterBench) -> None:
        bench.define("one")
        bench.enable("one")

    async with routing(prepare, "unit_grace_s = 0.3") as bench:
        answer = await bench.chat("one")
        assert (answer.status, answer.code) == (503, "unit_stopped")
        assert "systemctl start llamad@one" in answer.json["error"]["message"]
        unit = bench.unit("one")
        await asyncio.to_thread(unit.ledger.take)
        await unit.serve()
        bench.router.reload()  # a real unit writes its lease, which the router hears of
        await bench.until(lambda: bench.state("one") == "forwarded")
        assert (await bench.chat("one")).status == 200
        await unit.stop()
        await bench.until(lambda: bench.state("one") == "unit-stopped")
        assert bench.world.lives == []


@scene
async def test_a_stopped_unit_that_is_disabled_is_not_waited_for_any_longer() -> None:
    def prepare(bench: RouterBench) -> None:
        bench.define("one")
        bench.enable("one")

    async with routing(prepare, "unit_grace_s = 3600") as bench:
        waiting = asyncio.ensure_future(bench.chat("one"))
        await bench.until(lambda: bench.state("one") == "awaited")
        (bench.enabled / "llamad@one.service").unlink()
        bench.router.reload()  # else it looks after some seconds
        assert (await waiting).status == 200
        assert bench.world.lives == ["one"]


@scene
async def test_a_stop_answers_what_was_accepted() -> None:
    go_on = asyncio.Event()

    def prepare(bench: RouterBench) -> None:
        two(bench)
        bench.world.handlers["one"] = answer_when(go_on)
        bench.world.gates["two"] = asyncio.Event()

    async with routing(prepare) as bench:
        accepted = asyncio.ensure_future(bench.chat("one"))
        await bench.until(lambda: bench.state("one") == "ready")
        bench.router.stop()
        await asyncio.sleep(0.1)
        go_on.set()
        assert (await accepted).status == 200
    assert any("STOPPING" in fields for fields in bench.notifier.sent)


@scene
async def test_a_stop_while_a_model_is_just_being_taken_ends() -> None:
    """`routing` itself fails if the router does not end, or leaves a name in the ledger."""
    async with routing(two) as bench:
        bench.world.gates["one"] = asyncio.Event()  # it never becomes ready
        asking = asyncio.ensure_future(bench.chat("one"))
        await bench.until(lambda: bench.router.residents["one"]._task is not None)
        bench.router.residents["one"].leave()
        assert (await asking).status == 503


@pytest.mark.parametrize("held", [True, False])
def test_a_request_for_a_handover_ends_with_who_made_it(tmp_path: Any, held: bool) -> None:
    from llamad.ledger.handover import ROUTER_NOTE, forget_requests, look
    from llamad.ledger.ledger import Ledger

    router, unit, eye = (Ledger(tmp_path, name) for name in ("one", "one", "llamad"))
    if held:
        router.take(ROUTER_NOTE)
        with pytest.raises(BusyError):
            take_over(unit, 0.3, lambda: None)
        assert look(eye)[:3] == (frozenset(), frozenset(), {})
        router.release()
    (tmp_path / "one.wanted").touch()
    assert look(eye).wanted == frozenset()
    forget_requests(eye)
    assert not (tmp_path / "one.wanted").exists()
    unit.take()
    assert look(eye).owners == {"one"} and not is_routers(unit)
    unit.release()
