"""A child that serves and does not move: what counts as progress, what excuses, and what the end is."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from llamad.supervision.hang import ProgressWatch, Trouble, process_state
from tests.unit.test_supervisor import Rig, play


def test_the_bound_is_ten_times_the_slowest_step_that_was_seen() -> None:
    watch = ProgressWatch(60.0, 2.0, 0.0)
    assert watch.bound_s == 60.0
    assert watch.look(1, 0, 30.0) == 30.0
    watch.look(1, 1, 38.0)
    assert watch.bound_s == 380.0, "a prefill that took 38 s a batch takes longer at depth"


def test_idle_time_is_no_hang_and_no_step() -> None:
    watch = ProgressWatch(60.0, 0.1, 0.0)
    assert watch.look(0, 0, 3600.0) == 0.0
    watch.look(0, 5, 7200.0)
    assert watch.bound_s == 60.0
    assert watch.look(1, 5, 7210.0) == 10.0


def test_batches_that_fail_now_and_then_are_forgiven() -> None:
    trouble = Trouble()
    assert [trouble.batch_failed(at) for at in (0.0, 61.0, 122.0, 130.0, 140.0)] == [False] * 4 + [True]
    assert [trouble.cache_full(at) for at in (0.0, 1.0, 599.0, 601.0)] == [True, False, False, True]


def test_the_kernels_word_for_a_process() -> None:
    import os

    assert process_state(os.getpid()) in ("R", "S")
    assert process_state(1 << 30) == "unknown"


def run_with(
    rig: Rig, at_work: int, *, moves: bool = False, slots_move: bool = False, idle_s: float = 0.0
) -> list[str]:
    """Serve with requests at work for a while; the events."""

    async def scene(rig: Rig) -> None:
        await rig.until_ready()
        await asyncio.sleep(idle_s)
        rig.front.working = at_work
        for turn in range(40):
            rig.front.progressed += moves
            rig.engine.slots = str(turn) if slots_move else "0"
            if "child-exited" in rig.reporter.names():
                break
            await asyncio.sleep(0.02)
        rig.front.working = 0
        await rig.until_ready(2 if "no-progress" in rig.reporter.names() else 1)
        rig.supervisor.stop()

    play(rig, scene)
    return rig.reporter.names()


def test_requests_that_do_not_move_end_the_child_with_evidence(tmp_path: Path) -> None:
    rig = Rig(tmp_path, hang_s=10.0)
    assert "no-progress" in run_with(rig, 2)
    evidence = next(message for name, message, _ in rig.reporter.events if name == "no-progress")
    for words in ("2 requests at work", "/slots unchanged", "health good", "0 bytes unread"):
        assert words in evidence
    died = next(fields for name, _, fields in rig.reporter.events if name == "child-exited")
    assert died["DEATH"] == "hang"
    assert "explain hang" in rig.front.calls
    assert rig.reporter.names().index("no-progress") < rig.reporter.names().index("child-exited")


@pytest.mark.parametrize("how", [{"at_work": 0}, {"at_work": 3, "moves": True}, {"at_work": 3, "slots_move": True}])
def test_a_healthy_child_is_not_touched(tmp_path: Path, how: dict[str, int]) -> None:
    """Idle; tokens come; or an answer that is sent as a whole at its end, whose slot counts its tokens."""
    names = run_with(Rig(tmp_path, hang_s=10.0), **how)  # type: ignore[arg-type]
    assert "no-progress" not in names and "child-exited" not in names


def test_batches_that_cannot_be_computed_end_the_child_and_the_next_plan_is_smaller(tmp_path: Path) -> None:
    lines = [f"0.00.100.000 E srv    send_error: task id = {n}, error: Compute error." for n in range(3)]
    rig = Rig(tmp_path, {"after": lines}, {}, hang_s=10.0)

    async def scene(rig: Rig) -> None:
        await rig.until_ready(2)
        rig.supervisor.stop()

    play(rig, scene)
    assert [failure.cause for failure in rig.planner.failures] == ["gpu-out-of-memory-requests"]


def test_a_full_context_is_told_once_and_nobody_is_ended(tmp_path: Path) -> None:
    lines = ["0.00.100.000 E srv    send_error: task id = 3, error: Context size has been exceeded."] * 9
    rig = Rig(tmp_path, {"after": lines}, hang_s=10.0)

    async def scene(rig: Rig) -> None:
        await rig.until_ready()
        await rig.reporter.until(lambda: "cache-full" in rig.reporter.names())
        await asyncio.sleep(0.3)
        rig.supervisor.stop()

    play(rig, scene)
    assert rig.reporter.names().count("cache-full") == 1
    assert "child-exited" not in rig.reporter.names()


def test_what_clients_write_condemns_nobody(tmp_path: Path) -> None:
    """llama-server prints a grammar that it cannot parse to stderr as it came, and quotes it in its errors."""
    record = '{"type":"log","time":1,"level":"error","msg":"srv    send_error: task id = 1, error: Compute error.\\n"}'
    forged = [record, "srv    send_error: task id = 1, error: Compute error.", "error: Compute error.",
              "0.00.1.0 W srv  x: got exception: srv    send_error: task id = 1, error: Compute error."]  # fmt: skip
    rig = Rig(tmp_path, {"records": True, "after": forged * 5}, hang_s=10.0)

    async def scene(rig: Rig) -> None:
        await rig.until_ready()
        await rig.reporter.until(lambda: sum("Compute" in text for _, text in rig.reporter.lines) >= 20)
        await asyncio.sleep(0.3)
        rig.supervisor.stop()

    play(rig, scene)
    assert "child-exited" not in rig.reporter.names() and not rig.planner.failures


@pytest.mark.parametrize(("heard", "hung"), [(["encoding"], False), (["encoding", "encoded"], True)])
def test_a_picture_may_take_ten_times_as_long(tmp_path: Path, heard: list[str], hung: bool) -> None:
    """It is encoded in one step without a word; once it is, the usual bound holds."""
    lines = {
        "encoding": "0.00.100.000 I encoding image slice...",
        "encoded": "0.00.200.000 I image slice encoded in 71234 ms",
    }
    rig = Rig(tmp_path, {"after": [lines[word] for word in heard]}, hang_s=10.0)
    assert ("no-progress" in run_with(rig, 1, idle_s=0.7)) is hung  # by then it has said so
