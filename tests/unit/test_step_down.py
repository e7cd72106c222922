"""How much smaller the next plan is: measured, tried or guessed, always more than before, never the environment's."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamad.config.definition import Placement
from llamad.engine.log import LoadObserver, LogLine
from llamad.hardware.device import Device, HostMemory
from llamad.planning.plan import BuildGates, Plan
from llamad.planning.refusal import NeverFits, NoRoomNow
from llamad.planning.solve import plan as solve
from llamad.supervision.step_down import (
    GRANULARITY_BYTES,
    MOST_STEPS,
    Failure,
    bisect,
    failure_of,
    is_environments,
    step,
)
from llamad.units import GIB, MIB
from tests.support.fakes import a_plan
from tests.support.planning import facts_of
from tests.support.shapes import LLAMA31_8B

CARD = Device("CUDA0", 24 * GIB, 23 * GIB, uuid="GPU-1", source="nvml")
HOST = HostMemory(64 * GIB, 60 * GIB)
FACTS = facts_of(LLAMA31_8B)


def plan_with(corrections: dict[str, int], context: int | str = "auto", card: Device = CARD) -> Plan:
    placement = Placement(context=context)  # type: ignore[arg-type]
    return solve(FACTS, [card], HOST, placement, frozenset(), BuildGates(), lessons=corrections)


def never() -> int | None:
    raise AssertionError("nothing had to be tried")


def short_by(plan: Plan, capacity_bytes: int) -> Failure:
    """The context could not be had: weights were there, and this much was free beside them."""
    parts = plan.devices[0].parts
    held = parts.weights_bytes
    return Failure("gpu-out-of-memory-context", "x", "CUDA0", parts.context_bytes, held, capacity_bytes - held)


@given(st.integers(5 * GIB, 19 * GIB))
def test_a_measured_step_lands_below_what_there_is_and_wastes_little(capacity_bytes: int) -> None:
    plan = plan_with({})
    taken = step(plan, short_by(plan, capacity_bytes), {}, 0, never)
    assert taken is not None and taken.how == "measured"
    smaller = plan_with({taken.key: taken.correction_bytes})
    assert smaller.context_tokens < plan.context_tokens
    buffers = smaller.devices[0].parts.buffers_bytes
    assert buffers <= capacity_bytes
    per_step = 256 * plan.devices[0].parts.context_bytes // plan.context_tokens
    assert buffers >= capacity_bytes - GRANULARITY_BYTES - capacity_bytes // 50 - 2 * per_step


def test_a_driver_that_claims_more_than_it_gives_is_tried_out() -> None:
    plan = plan_with({})
    claims = replace(short_by(plan, 10 * GIB), free_bytes=22 * GIB)
    taken = step(plan, claims, {}, 0, lambda: 9 * GIB)
    assert taken is not None and taken.how == "tried"
    assert taken.room_bytes == CARD.free_bytes - taken.correction_bytes, "more free memory would not help"
    smaller = plan_with({taken.key: taken.correction_bytes})
    assert smaller.devices[0].parts.buffers_bytes <= 9 * GIB


def test_a_limit_on_one_buffer_leaves_the_weights_alone() -> None:
    plan = plan_with({})
    claims = replace(short_by(plan, 10 * GIB), free_bytes=None)
    cumulative = step(plan, claims, {}, 0, lambda: 6 * GIB)
    single = step(plan, replace(claims, one_buffer=True), {}, 0, lambda: 6 * GIB)
    assert cumulative is not None and single is not None
    parts = plan.devices[0].parts
    others = parts.weights_bytes + parts.compute_bytes
    assert cumulative.correction_bytes - single.correction_bytes == pytest.approx(others, rel=0.01)


def test_guesses_reach_context_min_in_six_steps_and_each_is_smaller() -> None:
    plan = plan_with({})
    corrections: dict[str, int] = {}
    contexts = [plan.context_tokens]
    for steps in range(MOST_STEPS):
        failure = Failure("gpu-out-of-memory-context", "x", "")
        taken = step(plan, failure, corrections, steps, lambda: None)
        assert taken is not None and taken.how == "guessed"
        corrections = {taken.device: taken.correction_bytes}
        try:
            plan = plan_with(corrections)
        except (NoRoomNow, NeverFits):
            break
        contexts.append(plan.context_tokens)
    assert contexts == sorted(contexts, reverse=True) and len(set(contexts)) == len(contexts)
    assert contexts[-1] <= contexts[0] // 4


def test_growth_at_run_time_takes_more_each_time() -> None:
    plan = plan_with({})
    failure = Failure("gpu-out-of-memory-running", "x", "CUDA0", running=True)
    first = step(plan, failure, {}, 0, never)
    assert first is not None and first.how == "grown"
    second = step(plan, failure, {first.device: first.correction_bytes}, 1, never)
    assert second is not None and second.correction_bytes > first.correction_bytes + 64 * MIB
    assert plan_with({second.key: second.correction_bytes}).context_tokens < plan.context_tokens


def test_weights_that_cannot_be_had_are_no_matter_of_the_context() -> None:
    plan = plan_with({})
    taken = step(plan, Failure("gpu-out-of-memory-weights", "x", "CUDA0", GIB, 0, None), {}, 0, never)
    assert taken is not None
    with pytest.raises((NoRoomNow, NeverFits)):
        plan_with({taken.key: taken.correction_bytes})


def test_a_written_context_is_refused_not_made_smaller() -> None:
    plan = plan_with({}, context=32768)
    taken = step(plan, short_by(plan, plan.devices[0].parts.weights_bytes + GIB), {}, 0, never)
    assert taken is not None
    with pytest.raises((NoRoomNow, NeverFits)) as refused:
        plan_with({taken.key: taken.correction_bytes}, context=32768)
    assert "context" in str(refused.value) and "32768" in str(refused.value).replace(",", "")


def test_under_a_written_limit_on_memory_a_step_still_makes_the_plan_smaller() -> None:
    placement = Placement(memory="12GiB")

    def limited(lessons: dict[str, int]) -> Plan:
        return solve(FACTS, [CARD], HOST, placement, frozenset(), BuildGates(), lessons=lessons)

    plan = limited({})
    taken = step(plan, short_by(plan, 9 * GIB), {}, 0, never)
    assert taken is not None
    assert limited({taken.key: taken.correction_bytes}).devices[0].parts.buffers_bytes <= 9 * GIB


@pytest.mark.parametrize("others_bytes", [0, 3 * GIB])
def test_within_a_share_a_step_still_makes_the_plan_smaller(others_bytes: int) -> None:
    def shared(lessons: dict[str, int]) -> Plan:
        return solve(
            FACTS, [CARD], HOST, Placement(), frozenset(), BuildGates(),
            share={"GPU-1": 12 * GIB}, reserved={"GPU-1": others_bytes}, lessons=lessons,
        )  # fmt: skip

    plan = shared({})
    taken = step(plan, short_by(plan, 9 * GIB), {}, 0, never)
    assert taken is not None
    smaller = shared({taken.key: taken.correction_bytes}).devices[0].parts.buffers_bytes
    assert 9 * GIB - 300 * MIB <= smaller <= 9 * GIB


def test_a_second_step_adds_to_the_first() -> None:
    first = step(plan := plan_with({}), short_by(plan, 15 * GIB), {}, 0, never)
    assert first is not None
    earlier = {first.device: first.correction_bytes}
    second = step(plan := plan_with(earlier), short_by(plan, 12 * GIB), earlier, 1, never)
    assert second is not None
    smaller = plan_with({second.key: second.correction_bytes}).devices[0].parts.buffers_bytes
    assert 12 * GIB - 300 * MIB <= smaller <= 12 * GIB


def test_the_same_plan_is_never_tried_twice() -> None:
    plan = plan_with({})
    enough = Failure("gpu-out-of-memory-context", "x", "CUDA0", 1, 20 * GIB, 0)
    taken = step(plan, enough, {"CUDA0": 5 * GIB}, 0, never)
    assert taken is not None and taken.correction_bytes > 5 * GIB


@pytest.mark.parametrize(
    ("free_after", "theirs"),
    [(23 * GIB, False), (23 * GIB - 32 * MIB, False), (10 * GIB, True), (22 * GIB, False), (None, False)],
)
def test_what_others_took_is_not_ours(free_after: int | None, theirs: bool) -> None:
    """Some memory less that would still have been enough explains nothing."""
    assert is_environments(plan_with({}).devices[0], free_after) is theirs


def test_a_failure_is_read_from_the_log() -> None:
    observer = LoadObserver()
    for text in (
        "load_tensors:        CUDA0 model buffer size =   100.00 MiB",
        "load_tensors:   CPU_Mapped model buffer size =    10.00 MiB",
    ):
        observer.line(LogLine("info", text))
    oom = "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 300.00 MiB on device 0: cudaMalloc failed: out of memory"
    observer.line(LogLine("error", oom))
    failure = failure_of("c", "t", a_plan(), observer.observed(), {}, running=False)
    assert (failure.device, failure.size_bytes, failure.held_bytes) == ("CUDA0", 300 * MIB, 100 * MIB)
    assert failure.free_bytes is None
    sampled = failure_of("c", "t", a_plan(), observer.observed(), {"CUDA0": (90 * MIB, 7)}, running=False)
    assert (sampled.held_bytes, sampled.free_bytes) == (90 * MIB, 7)


def test_a_plan_on_the_cpu_has_nothing_to_step_down_on() -> None:
    assert step(a_plan(devices=()), Failure("c", "t", ""), {}, 0, never) is None


@given(st.integers(1, 10**6), st.integers(0, 10**6))
def test_bisection_finds_the_limit(high: int, limit: int) -> None:
    limit = min(limit, high - 1)
    found = bisect(0, high, lambda amount: amount <= limit, 20)
    assert found is not None and limit - high / 2**19 - 1 <= found <= limit


def test_bisection_ends_where_nothing_can_be_told() -> None:
    assert bisect(0, 100, lambda _amount: None, 7) is None


def two_cards() -> Plan:
    first = a_plan().devices[0]
    return replace(a_plan(), devices=(first, replace(first, name="CUDA1", uuid="GPU-2")))


def failure_after(*texts: str, running: bool) -> Failure:
    observer = LoadObserver()
    for text in texts:
        observer.line(LogLine("error", text))
    return failure_of("c", "t", two_cards(), observer.observed(), {}, running=running)


def test_while_it_serves_the_last_failure_is_the_one_and_not_one_that_was_survived() -> None:
    lines = ["x: failed to allocate CUDA0 buffer of size 900000000", "x: failed to allocate CUDA1 buffer of size 1000000"]
    failure = failure_after(*lines, running=True)
    assert (failure.device, failure.size_bytes) == ("CUDA1", 1_000_000)
    failure = failure_after(*lines, running=False)
    assert (failure.device, failure.size_bytes) == ("CUDA0", 900_000_000)


def test_memory_of_the_host_is_no_device_and_its_size_not_the_devices() -> None:
    lines = ["x: failed to allocate CUDA_Host buffer of size 900000000", "x: failed to allocate CUDA1 buffer of size 1000000"]
    failure = failure_after(*lines, running=False)
    assert (failure.device, failure.size_bytes) == ("CUDA1", 1_000_000)


def test_a_size_that_no_device_has_is_not_believed() -> None:
    """A client can have a line printed: it must not teach that nothing fits any more."""
    failure = failure_after("x: failed to allocate CUDA0 buffer of size 900000000000000", running=True)
    assert (failure.device, failure.size_bytes) == ("CUDA0", 0)
