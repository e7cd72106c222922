"""The exposition: valid whatever a name or llama-server says, each family once, rates that nobody's scrape disturbs."""

from __future__ import annotations

import asyncio
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from llamad.front.metrics import Family, Histogram, parse, render, value_of
from llamad.front.responses import ResponseCache
from llamad.service.admin import Orders, OwnAnswers
from llamad.service.figures import ChildFigures, ModelFigures
from llamad.service.reporter import EventCounts
from llamad.service.requests import RequestFigures
from llamad.service.router_answers import RouterAnswers, lane_figures
from tests.support.fake_upstream import Call, FakeUpstream
from tests.support.fakes import a_plan
from tests.support.front import running
from tests.support.http import scenario

CHILD = """# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed.
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total {prompt}
# HELP llamacpp:prompt_seconds_total Prompt process time
# TYPE llamacpp:prompt_seconds_total counter
llamacpp:prompt_seconds_total {seconds}
# HELP llamacpp:prompt_tokens_seconds Average prompt throughput in tokens/s.
# TYPE llamacpp:prompt_tokens_seconds gauge
llamacpp:prompt_tokens_seconds 99
# HELP llamacpp:n_tokens_max Largest observed n_tokens.
# TYPE llamacpp:n_tokens_max counter
llamacpp:n_tokens_max 42
"""
LINE = re.compile(r'[a-zA-Z_:][\w:]*(\{([a-z_]\w*="(\\[\\"n]|[^"\\\n])*",?)+\})? (-?[\d.]+(e[+-]?\d+)?|[+-]Inf|NaN)')


def check(text: bytes) -> dict[str, str]:
    """Every line is valid, every family has one type and stands together; the samples by what is left of the value."""
    lines = text.decode().removesuffix("\n").split("\n")
    typed: list[str] = []
    samples: dict[str, str] = {}
    for line in lines:
        if line.startswith("# TYPE "):
            typed.append(line.split(" ")[2])
        elif not line.startswith("# HELP "):
            assert LINE.fullmatch(line), line
            left, _, value = line.rpartition(" ")
            assert left not in samples, f"{left} twice"
            samples[left] = value
            name = left.partition("{")[0]
            assert name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") in (typed[-1], name)
            assert name.startswith(typed[-1]), line
    assert len(typed) == len(set(typed))
    return samples


def test_labels_are_escaped_and_numbers_are_prometheus_s() -> None:
    odd = Family("a", "gauge", "one\ntwo \\ three")
    odd.add(math.inf, x='q"\\\n').add(math.nan, x="é").add(0.1, x="1").add(1e300, x="2").add(3.0, x="3")
    text = render([odd])
    assert check(text) == {
        'a{x="q\\"\\\\\\n"}': "+Inf", 'a{x="é"}': "NaN", 'a{x="1"}': "0.1", 'a{x="2"}': "1e+300", 'a{x="3"}': "3",
    }  # fmt: skip
    assert b"# HELP a one\\ntwo \\\\ three\n" in text


def test_a_family_of_several_models_stands_once() -> None:
    text = render([Family("a", "gauge", "h").add(1, model=name) for name in ("x", "y")])
    assert check(text) == {'a{model="x"}': "1", 'a{model="y"}': "2".replace("2", "1")}


def test_histograms_are_cumulative() -> None:
    histogram, family = Histogram((0.1, 1.0)), Family("h", "histogram", "")
    for value in (0.1, 0.5, 7.0):
        histogram.observe(value)
    histogram.into(family, model="m")
    assert list(check(render([family])).values()) == ["1", "2", "3", "7.6", "3"]


def test_the_series_of_llama_server_get_the_model_s_name() -> None:
    hostile = CHILD.format(prompt=7, seconds=2) + "x{ 1\nllamacpp:untyped 3\n# TYPE q bogus\nq 1\n\x00\n# TYPE\n#\n"
    found = parse(hostile, model='a"b')
    assert check(render(found))['llamacpp:prompt_tokens_total{model="a\\"b"}'] == "7"
    assert value_of(found, "llamacpp:prompt_seconds_total") == 2 and value_of(found, "q") is None


@scenario
async def test_rates_come_from_the_counters_and_one_question_serves_all(tmp_path: Path) -> None:
    now_s, prompt, seconds = 100.0, 1000, 10.0

    async def answer(call: Call) -> None:
        await call.reply(CHILD.format(prompt=prompt, seconds=seconds).encode())

    path = tmp_path / "child.sock"
    upstream = await FakeUpstream(path, answer).start()
    figures = ChildFigures(lambda: now_s)

    async def rate() -> float:
        found = await figures.families(str(path), "m")
        return value_of(found, "llamacpp_prompt_tokens_seconds") or 0.0

    assert await rate() == 100  # since its start
    prompt, seconds, now_s = 1400, 12.0, 115.0
    assert [await rate() for _ in range(5)] == [200] * 5
    assert len(upstream.calls) == 2
    now_s = 131.0
    assert await rate() == 0  # nothing was computed in the last quarter of a minute
    prompt, seconds, now_s = 10, 1.0, 133.0
    assert await rate() == 10  # another llama-server
    largest = next(family for family in await figures.families(str(path), "m") if family.name == "llamacpp_n_tokens_max")
    assert largest.kind == "gauge", "llama-server calls it a counter; it is no total"
    await upstream.kill()
    now_s = 140.0
    assert await figures.families(str(path), "m") == []


def model_figures(**changes: Any) -> ModelFigures:
    cache = ResponseCache(1, 1000)
    front = SimpleNamespace(waiting=2, in_flight=1, connections=3, tokens=(70, 100), responses=cache)
    counts = EventCounts()
    counts.told("child-exited", "crash")
    counts.told("restarting", "")
    counts.told("stepped-down", "")

    async def free(_launch: object) -> dict[str, int]:
        return {"Vulkan0": 5}

    device = SimpleNamespace(name="Vulkan0", uuid="", parts=SimpleNamespace(total_bytes=100))
    launch = SimpleNamespace(plan=SimpleNamespace(context_tokens=4096, slots=4, devices=(device,)), socket_path="/none")
    observed = SimpleNamespace(buffers={("Vulkan0", "kv"): 30, ("Vulkan0", "model"): 40, ("CPU", "model"): 7})
    parts: dict[str, Any] = {
        "state": lambda: "loading", "launch": lambda: launch, "observed": lambda: observed, "free_bytes": free, **changes
    }  # fmt: skip
    return ModelFigures("tiny", front, RequestFigures(), counts, **parts)  # type: ignore[arg-type]


@scenario
async def test_the_figures_of_a_model() -> None:
    samples = check(render(await model_figures().families()))
    wanted = {
        'llamad_state{model="tiny",state="loading"}': "1",
        'llamad_state{model="tiny",state="ready"}': "0",
        'llamad_restarts_total{model="tiny",cause="crash"}': "1",
        'llamad_step_downs_total{model="tiny"}': "1",
        'llamad_waiting_requests{model="tiny"}': "2",
        'llamad_admitted_tokens{model="tiny"}': "70",
        'llamad_device_planned_bytes{model="tiny",device="Vulkan0"}': "100",
        'llamad_device_buffer_bytes{model="tiny",device="Vulkan0"}': "70",
        'llamad_device_free_bytes{model="tiny",device="Vulkan0"}': "5",
    }
    assert wanted.items() <= samples.items()
    nothing = check(render(await model_figures(launch=lambda: None).families()))
    assert 'llamad_state{model="tiny",state="loading"}' in nothing


class AdminFront:
    """A relay that remembers orders."""

    def __init__(self) -> None:
        self.orders: list[str] = []

    def clear_cache(self) -> int:
        return 3

    def resume(self) -> None:
        self.orders.append("resume")

    async def drain_for_admin(self, deadline_s: float) -> int:
        self.orders.append(f"drain {deadline_s}")
        return 2

    def status(self) -> dict[str, object]:
        return {"waiting_requests": 1}


@scenario
async def test_orders() -> None:
    front, in_force = AdminFront(), True

    async def reload() -> tuple[bool, str]:
        return in_force, "ready"

    orders = Orders(front, lambda: {"model": "tiny"}, reload)  # type: ignore[arg-type]
    answers = OwnAnswers(model_figures(), orders)

    async def order(name: str, body: bytes = b"") -> tuple[int, Any]:
        answer = await answers.admin(name, body, b"id")
        return answer.status, json.loads(answer.body or b"")

    assert await order("status") == (200, {"model": "tiny", "waiting_requests": 1})
    assert (await order("clear-cache"))[1]["cleared"] == 3
    assert (await order("reload"))[0] == 200
    in_force = False
    status, body = await order("reload")
    assert (status, body["error"]["code"]) == (409, "reload_refused")
    assert (await order("drain"))[1]["left"] == 2
    assert (await order("drain", b'{"deadline_s": 0.5}'))[0] == 200
    endless = b'{"deadline_s": 1%b}' % (b"0" * 400)
    for bad in (b"[]", b"{", b'{"deadline_s": -1}', b'{"deadline_s": "x"}', b'{"deadline_s": null}', b"\xff", endless):
        assert (await order("drain", bad))[1]["error"]["code"] == "bad_order"
    assert (await order("resume"))[0] == 200
    assert front.orders == ["drain 60.0", "drain 0.5", "resume"]
    status, body = await order("selfdestruct")
    assert status == 404 and "clear-cache" in body["error"]["message"]
    assert check(await answers.metrics())
    await asyncio.sleep(0)


@scenario
async def test_the_router_shows_each_family_once_for_all_its_models() -> None:
    async with running() as bench:
        assert (await bench.ask()).status == 200
        lane = SimpleNamespace(lane=bench.front._lane, figures=RequestFigures(), launch=None)
        models = [lane_figures(name, lane, EventCounts(), lambda: "ready", lambda: None) for name in ("a", "b")]  # type: ignore[arg-type]
        answers = RouterAnswers(lambda: models)
        samples = check(await answers.metrics())
        assert samples['llamad_state{model="a",state="ready"}'] == samples['llamad_state{model="b",state="ready"}'] == "1"
        assert (await answers.admin("drain", b"", b"id")).status == 404


class Planned:
    """A life whose llama-server has told its buffers, and whose driver shows what is free."""

    def observed(self) -> Any:
        return SimpleNamespace(buffers={("CUDA0", "model"): 40, ("CUDA0", "kv"): 30})

    async def free_bytes(self, _launch: object) -> dict[str, int]:
        return {"CUDA0": 5}


@scenario
async def test_the_router_shows_buffers_and_free_memory_of_what_it_has_loaded() -> None:
    async with running() as bench:
        launch = SimpleNamespace(plan=a_plan(), socket_path="/none")
        lane = SimpleNamespace(lane=bench.front._lane, figures=RequestFigures(), launch=launch)
        lives: list[Any] = [Planned()]
        model = lane_figures("a", lane, EventCounts(), lambda: "loading", lambda: lives[-1])  # type: ignore[arg-type]
        answers = RouterAnswers(lambda: [model])
        samples = check(await answers.metrics())
        wanted = {"llamad_device_buffer_bytes": "70", "llamad_device_free_bytes": "5"}
        for name, value in wanted.items():
            assert samples[f'{name}{{model="a",device="CUDA0"}}'] == value
        lives.append(None)
        assert not [name for name in check(await answers.metrics()) if name.startswith(tuple(wanted))]
