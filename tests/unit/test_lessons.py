"""From a failure to a lesson: what others took teaches nothing, and six steps are enough."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from llamad.engine.build import Capabilities
from llamad.engine.log import LoadObserver, LogLine, Observed
from llamad.errors import ChildError
from llamad.hardware.device import Device
from llamad.planning.plan import DevicePlan, Parts
from llamad.service.lessons import LOOKS_IN_USE, Lessons
from llamad.service.planner import PlanMaker
from llamad.service.reporter import DaemonReporter
from llamad.supervision.launch import Launch
from llamad.supervision.learned import Learned
from llamad.supervision.step_down import MOST_STEPS, Failure
from llamad.units import GIB, MIB
from tests.support.fakes import FakeReporter, a_plan, loaded_of

CARD = DevicePlan("CUDA0", "GPU-1", 8 * GIB, 8 * GIB, 5, Parts(2 * GIB, 4 * GIB, 100 * MIB, 0, 128 * MIB), 8 * GIB)
LAUNCH = Launch(loaded_of(), a_plan(devices=(CARD,)), ("llama-server", "-c", "4096"), {}, "/s", 300, "completion", "e")
FAILURE = Failure("gpu-out-of-memory-context", "not enough for the context", "CUDA0", 4 * GIB, 2 * GIB, GIB)


class FakeMaker:
    """Knows a device and what was learned."""

    def __init__(self, free_bytes: int = 8 * GIB) -> None:
        self.free_bytes = free_bytes
        self.kept = Learned("k")
        self.saves = 0
        self.scratch = Path("/nonexistent")

    def devices(self) -> list[Device]:
        return [Device("CUDA0", 8 * GIB, self.free_bytes, uuid="GPU-1")]

    def learned(self, _key: str) -> Learned:
        return self.kept

    def keep(self, learned: Learned) -> None:
        self.kept = learned
        self.saves += 1

    def capabilities(self) -> Capabilities:
        return Capabilities("llama-server", "old", 1, frozenset())


def rig(free_bytes: int = 8 * GIB) -> tuple[Lessons, Any, FakeReporter]:
    reporter = FakeReporter()
    return Lessons(cast("DaemonReporter", reporter)), cast("PlanMaker", FakeMaker(free_bytes)), reporter


def test_a_failure_becomes_a_correction_on_disk_and_one_record() -> None:
    lessons, maker, reporter = rig()
    lessons.failed(FAILURE)
    assert lessons.pending
    returned: list[bool] = []
    taken = lessons.learn(maker, LAUNCH, lambda: returned.append(True))
    assert taken is not None and not lessons.pending and returned == [True]
    assert maker.kept.corrections == {"GPU-1": taken.correction_bytes}
    assert 8 * GIB - 128 * MIB - taken.correction_bytes == pytest.approx(3 * GIB, abs=64 * MIB)
    smaller = replace(LAUNCH, plan=a_plan(context_tokens=2048))
    assert lessons.tell(maker, smaller).stepped_from == 4096
    assert lessons.tell(maker, smaller) == smaller, "once"
    ((name, message, fields),) = reporter.events
    assert name == "stepped-down" and "4096 -> 2048" in message
    assert (fields["FORMER"], fields["CONTEXT"]) == ("4096", "2048")


def test_what_others_took_teaches_nothing() -> None:
    lessons, maker, reporter = rig(5 * GIB)
    lessons.failed(FAILURE)
    assert lessons.learn(maker, LAUNCH, lambda: None) is None
    assert maker.saves == 0 and reporter.names() == ["memory-taken"]
    assert reporter.events[0][2]["BYTES"] == str(3 * GIB)


def test_six_steps_are_enough_until_it_serves() -> None:
    lessons, maker, _ = rig()
    blind = replace(FAILURE, size_bytes=0, free_bytes=None)
    for _ in range(MOST_STEPS):
        lessons.failed(blind)
        assert lessons.learn(maker, LAUNCH, lambda: None) is not None
    lessons.failed(blind)
    with pytest.raises(ChildError, match="after 6 steps"):
        lessons.learn(maker, LAUNCH, lambda: None)
    lessons.settled()
    lessons.failed(blind)
    assert lessons.learn(maker, LAUNCH, lambda: None) is not None


def test_a_step_is_forgotten_with_its_definition() -> None:
    lessons, maker, reporter = rig()
    lessons.failed(FAILURE)
    lessons.learn(maker, LAUNCH, lambda: None)
    lessons.drop()
    assert lessons.tell(maker, LAUNCH) == LAUNCH and reporter.names() == []


def test_a_load_is_remembered_once() -> None:
    lessons, maker, _ = rig()
    observer = LoadObserver()
    for text in ("load_tensors:        CUDA0 model buffer size =   100.00 MiB",
                 "llama_kv_cache:      CUDA0 KV buffer size =    20.00 MiB",
                 "sched_reserve:      CUDA0 compute buffer size =     6.00 MiB"):  # fmt: skip
        observer.line(LogLine("info", text))
    for _ in range(3):
        lessons.proved(maker, LAUNCH, observer.observed())
    assert maker.saves == 1, "a start whose figures are known writes nothing"
    assert maker.kept.loads[0].real == Parts(100 * MIB, 20 * MIB, 6 * MIB)
    known = maker.kept.asked(LAUNCH.plan, LAUNCH.argv[1:])
    assert known is not None and known[0]["CUDA0"].compute_bytes == 6 * MIB


HELD = {"GPU-1": (126 + 300) * MIB}


def observed_load() -> Observed:
    observer = LoadObserver()
    for text in ("load_tensors:        CUDA0 model buffer size =   100.00 MiB",
                 "llama_kv_cache:      CUDA0 KV buffer size =    20.00 MiB",
                 "sched_reserve:      CUDA0 compute buffer size =     6.00 MiB"):  # fmt: skip
        observer.line(LogLine("info", text))
    return observer.observed()


def test_what_the_driver_shows_beyond_the_buffers_is_measured_when_ready_and_in_use() -> None:
    lessons, maker, _ = rig()
    lessons.measured(maker, LAUNCH, observed_load(), HELD, ready=True, used=False)
    assert maker.saves == 0, "nothing is proved under this key: it is another definition's by now"
    lessons.proved(maker, LAUNCH, observed_load())
    lessons.measured(maker, LAUNCH, observed_load(), HELD, ready=True, used=False)
    (row,) = maker.kept.measured
    assert (row.device, row.loaded_bytes, row.used) == ("GPU-1", 300 * MIB, False)
    saves = maker.saves
    for _ in range(LOOKS_IN_USE - 1):
        lessons.measured(maker, LAUNCH, observed_load(), HELD, ready=False, used=True)
        lessons.measured(maker, LAUNCH, observed_load(), HELD, ready=False, used=False)
    assert maker.saves == saves and maker.kept.overheads(512) == {}
    lessons.measured(maker, LAUNCH, observed_load(), HELD, ready=False, used=True)
    assert maker.kept.overheads(512) == {"GPU-1": 300 * MIB}
    assert maker.saves == saves + 1


def test_nothing_is_measured_where_not_all_buffers_are_in_the_log_or_the_driver_says_nothing() -> None:
    lessons, maker, _ = rig()
    lessons.proved(maker, LAUNCH, observed_load())
    saves = maker.saves
    beside = replace(CARD, parts=replace(CARD.parts, vision_bytes=GIB))
    lessons.measured(maker, replace(LAUNCH, plan=a_plan(devices=(beside,))), observed_load(), HELD, ready=True, used=False)
    lessons.measured(maker, LAUNCH, observed_load(), {}, ready=True, used=False)
    lessons.measured(maker, LAUNCH, observed_load(), {"GPU-2": GIB}, ready=True, used=False)
    assert maker.saves == saves and maker.kept.measured == ()


def test_a_step_says_on_disk_where_it_led_to() -> None:
    lessons, maker, _ = rig()
    lessons.failed(FAILURE)
    lessons.learn(maker, LAUNCH, lambda: None)
    lessons.tell(maker, replace(LAUNCH, plan=a_plan(context_tokens=2048)))
    (event,) = maker.kept.events
    assert (event["context_tokens"], event["stepped_to_tokens"]) == (4096, 2048)
    assert maker.kept.corrections, "and what it is about stays"
