"""What `llamad tune` tries, and how it climbs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from llamad.measure.candidates import Axis, Machine, Question, Settings, axes
from llamad.measure.results import PlanInForce
from llamad.measure.search import DUEL_ROUNDS, Measured, Search

PLAN = PlanInForce(
    context_tokens=4096, slots=4, layers=0, layers_total=33, ubatch_tokens=512, flash_attention=True,
    cache_type_k="f16", cache_type_v="f16",
)  # fmt: skip
QUESTION = Question("throughput", PLAN, Machine(8, 16), None, None, None, host_computes=True)


def tried(question: Question, written: Callable[[str], str] = lambda _key: "", may: Sequence[str] = ()) -> dict[str, Axis]:
    return {axis.key: axis for axis in axes(question, written, may)[0]}


def test_each_goal_begins_with_what_matters_most_to_it() -> None:
    first = {goal: axes(replace(QUESTION, goal=goal), lambda _key: "", ())[0][0].key
             for goal in ("throughput", "latency", "prompt")}  # fmt: skip
    assert first == {"throughput": "parallel", "latency": "threads", "prompt": "ubatch"}


def test_slots_are_for_throughput_alone() -> None:
    assert "parallel" in tried(QUESTION)
    assert "parallel" not in tried(replace(QUESTION, goal="latency"))


def test_what_is_written_is_left_alone_unless_it_may_change() -> None:
    def written(key: str) -> str:
        return "/etc/llamad/phi4.toml:5:1" if key == "ubatch" else ""

    found, untouched = axes(QUESTION, written, ())
    assert "ubatch" not in {axis.key for axis in found}
    assert any(text.startswith("ubatch: written in /etc/llamad/phi4.toml:5:1") for text in untouched)
    assert "ubatch" in tried(QUESTION, written, ("ubatch",))


def test_the_value_in_force_is_on_its_axis() -> None:
    odd = replace(QUESTION, plan=PLAN.model_copy(update={"ubatch_tokens": 300, "slots": 3}), threads=5)
    for key, value in (("ubatch", 300), ("parallel", 3), ("threads", 5)):
        axis = tried(odd)[key]
        assert axis.values[axis.current] == value
        assert list(axis.values) == sorted(axis.values)


def test_a_micro_batch_is_no_larger_than_batch_and_context() -> None:
    assert max(tried(replace(QUESTION, batch_tokens=512))["ubatch"].values) == 512
    small = PLAN.model_copy(update={"context_tokens": 700})
    assert max(tried(replace(QUESTION, plan=small))["ubatch"].values) == 512


def test_threads_only_where_the_cpu_computes() -> None:
    assert tried(QUESTION)["threads"].values == (4, 8, 16)
    found, untouched = axes(replace(QUESTION, host_computes=False), lambda _key: "", ())
    assert "threads" not in {axis.key for axis in found}
    assert "threads: no layer runs on the CPU" in untouched


def test_a_quantised_cache_only_where_that_is_allowed_and_then_with_flash_attention() -> None:
    assert "kv_cache" not in tried(QUESTION)
    assert tried(replace(QUESTION, quantised_cache=True))["kv_cache"].values == ("f16", "q8_0")
    quantised = PLAN.model_copy(update={"cache_type_k": "q8_0", "cache_type_v": "q8_0"})
    assert "flash_attention" not in tried(replace(QUESTION, plan=quantised))


class FakeTrial:
    """Speeds by a function of the settings; each call is noted."""

    def __init__(self, speed: Callable[[Settings], float], refused: Callable[[Settings], str] = lambda _one: "") -> None:
        self._speed, self._refused = speed, refused
        self.asked: list[dict[str, object]] = []

    async def measure(self, settings: Settings, repeats: int) -> Measured:
        self.asked.append(dict(settings))
        if reason := self._refused(settings):
            return Measured(refused=reason)
        middle = self._speed(settings)
        return Measured([middle * (1 + n / 1000) for n in range(repeats)], 4096)


def climb(trial: FakeTrial, found: Sequence[Axis], in_time: Callable[[], bool] = lambda: True) -> tuple[Settings, Search]:
    search = Search(trial, 3, in_time)

    async def go() -> Settings:
        return await search.climb(await trial.measure({}, 3), found)

    return asyncio.run(go()), search


UBATCH = Axis("ubatch", (64, 128, 256, 512, 1024), 3)
SLOTS = Axis("parallel", (1, 2, 4, 8), 2)


def value(settings: Settings, key: str, default: int) -> int:
    return int(settings.get(key, default))


def test_it_goes_uphill_in_either_direction_and_stops_behind_the_top() -> None:
    trial = FakeTrial(lambda one: 1000 - abs(value(one, "ubatch", 512) - 128))
    best, search = climb(trial, [UBATCH])
    assert best == {"ubatch": 128}
    assert [row.settings.get("ubatch") for row in search.tried] == [None, 1024, 256, 128, 64]
    assert [row.kept for row in search.tried] == [False, False, True, True, False]


def test_a_later_key_is_tried_with_the_best_of_the_earlier_ones() -> None:
    def speed(one: Settings) -> float:
        return 100 * value(one, "parallel", 4) + (1000 if one.get("parallel") == 8 and one.get("ubatch") == 256 else 0)

    best, _search = climb(FakeTrial(speed), [SLOTS, UBATCH])
    assert best == {"parallel": 8, "ubatch": 256}


def test_a_refused_candidate_is_a_row_with_its_reason_and_ends_the_direction() -> None:
    trial = FakeTrial(lambda one: value(one, "parallel", 4) * 1.0, lambda one: "context 2048" if one else "")
    best, search = climb(trial, [SLOTS])
    assert best == {}
    assert [row.refused for row in search.tried] == ["", "context 2048", "context 2048"]


def test_nothing_better_is_nothing() -> None:
    best, _search = climb(FakeTrial(lambda _one: 100.0), [SLOTS, UBATCH])
    assert best == {}


def test_out_of_time_keeps_what_was_found() -> None:
    left = iter([True, False])
    trial = FakeTrial(lambda one: 1.0 * value(one, "parallel", 4))
    best, search = climb(trial, [SLOTS, UBATCH], lambda: next(left, False))
    assert best == {"parallel": 8}
    assert search.out_of_time


def test_the_last_comparison_is_in_turns_and_each_is_first_as_often_as_can_be() -> None:
    trial = FakeTrial(lambda one: 2.0 if one else 1.0)
    search = Search(trial, 3, lambda: True)
    before, after = asyncio.run(search.duel({"ubatch": 128}))
    assert len(before) == len(after) == 2 * DUEL_ROUNDS
    assert max(before) < min(after)
    assert trial.asked == [{}, {"ubatch": 128}, {"ubatch": 128}, {}, {}, {"ubatch": 128}]


@pytest.mark.parametrize("goal", ["throughput", "latency", "prompt"])
def test_every_value_that_is_tried_is_one_that_a_definition_may_have(goal: str) -> None:
    from llamad.config.load import validate
    from llamad.measure.report import toml_value

    question = replace(QUESTION, goal=goal, quantised_cache=True)  # type: ignore[arg-type]
    for axis in tried(question).values():
        for one in axis.values:
            text = f'model = "/m.gguf"\n[placement]\n{axis.key} = {toml_value(one)}\n'
            assert getattr(validate(text.encode(), Path("x.toml")).placement, axis.key) == one
