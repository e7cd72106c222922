"""The supervisor over real processes of the fake llama-server, with in-memory seams around it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from llamad.errors import BadModelError, BusyError, ChildError, DeviceError, ExitCode, LlamadError
from llamad.ledger.booking import GaveUpWaiting, MustWait
from llamad.supervision.child import ProcessSpawner
from llamad.supervision.growth import Offer
from llamad.supervision.launch import Seams
from llamad.supervision.machine import Event, State
from llamad.supervision.message import Message
from llamad.supervision.reload import Reverted
from llamad.supervision.supervisor import Supervisor
from tests.support.fakes import (
    LOAD_LINES,
    FakeEngine,
    FakeFront,
    FakePlanner,
    FakeReporter,
    ScaledClock,
    loaded_of,
)


class Rig:
    """A supervisor with everything it touches."""

    def __init__(
        self, folder: Path, *scenarios: dict[str, Any] | LlamadError, factor: float = 50.0, parks: bool = False, **limits: Any
    ) -> None:
        self.planner = FakePlanner(folder, *scenarios)
        self.engine, self.front, self.reporter = FakeEngine(), FakeFront(), FakeReporter()
        seams = Seams(self.planner, self.engine, self.front, self.reporter)
        limits.setdefault("stop_s", 0.5)
        self.limits = limits
        self.supervisor = Supervisor(
            loaded_of(**limits), seams, ProcessSpawner(), ScaledClock(factor), parks=parks, jitter=lambda: 0.0
        )

    async def until_ready(self, times: int = 1) -> None:
        await self.reporter.until(lambda: self.reporter.names().count("ready") >= times)

    def causes(self) -> list[str]:
        return [fields["CAUSE"] for name, _, fields in self.reporter.events if name == "child-exited"]


def play(rig: Rig, scene: Callable[[Rig], Awaitable[None]] | None = None) -> ExitCode:
    """Run the supervisor beside a scene; its exit code. Whatever happens, no child may be left."""

    async def go() -> ExitCode:
        run = asyncio.create_task(rig.supervisor.run())
        if scene:
            act = asyncio.ensure_future(scene(rig))
            await asyncio.wait({run, act}, return_when=asyncio.FIRST_COMPLETED)
            if act.done():
                act.result()
            else:
                act.cancel()
        code = await asyncio.wait_for(run, 100)
        assert rig.supervisor.child_pid == 0
        return code

    return asyncio.run(go())


async def _stop_when_ready(rig: Rig) -> None:
    await rig.until_ready()
    rig.supervisor.stop()


def test_a_life(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    assert play(rig, _stop_when_ready) is ExitCode.OK
    assert rig.reporter.states == ["waiting", "loading", "warming", "ready", "draining", "stopping", "stopped"]
    assert rig.front.calls == ["hold", "open", "farewell", "close_upstreams"]
    assert rig.engine.warm_ups == 1


def test_requests_past_the_drain_of_a_reload_are_cut_with_a_cause(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.front.in_flight = 2

    async def scene(rig: Rig) -> None:
        await rig.until_ready()
        await rig.supervisor.reload(loaded_of(digest="2", context=1024, **rig.limits))
        rig.supervisor.stop()

    play(rig, scene)
    assert rig.front.calls[2:6] == ["hold", "drain", "cut reload", "close_upstreams"]


def test_a_child_that_ignores_term_is_killed(tmp_path: Path) -> None:
    rig = Rig(tmp_path, {"ignore_term": True})
    assert play(rig, _stop_when_ready) is ExitCode.OK


def test_a_killed_child_is_replaced_and_requests_are_held_meanwhile(tmp_path: Path) -> None:
    rig = Rig(tmp_path)

    async def scene(rig: Rig) -> None:
        await rig.until_ready()
        os.kill(rig.supervisor.child_pid, signal.SIGKILL)
        await rig.until_ready(2)
        rig.supervisor.stop()

    assert play(rig, scene) is ExitCode.OK
    assert rig.front.calls[:5] == ["hold", "open", "explain killed", "hold", "open"]
    assert rig.causes() == ["somebody sent llama-server SIGKILL"]


def test_a_crash_loop_ends_with_the_last_lines(tmp_path: Path) -> None:
    lines = [f"E line {n}" for n in range(40)]
    rig = Rig(tmp_path, {"lines": lines, "exit": 3}, factor=500.0, restarts=3, start_stall_s=100_000.0)
    assert play(rig) is ExitCode.CRASH_LOOP
    assert rig.planner.plans == 4
    name, message, _ = rig.reporter.events[-1]
    assert name == "gave-up"
    assert "line 39" in message and "line 20" in message and "line 19" not in message
    assert rig.front.calls[-1] == "refuse"


@pytest.mark.parametrize(
    ("scenario", "code"),
    [
        ({"lines": ["error: invalid argument: --mlock"], "exit": 1}, ExitCode.CONFIG),
        ({"lines": ["E unknown model architecture: 'x'"], "exit": 1}, ExitCode.BAD_MODEL),
        ({"lines": ["error: invalid device: CUDA0"], "exit": 1}, ExitCode.NO_DEVICE),
        (DeviceError("no device"), ExitCode.NO_DEVICE),
        (BadModelError("not a GGUF"), ExitCode.BAD_MODEL),
    ],
)
def test_what_cannot_be_helped_is_final_at_once(tmp_path: Path, scenario: Any, code: ExitCode) -> None:
    rig = Rig(tmp_path, scenario)
    assert play(rig) is code
    assert rig.planner.plans == 1


def test_misplaced_bytes_are_never_ready(tmp_path: Path) -> None:
    lines = [line.replace("CUDA0 model buffer size =   100.00", "CUDA0 model buffer size =    40.00") for line in LOAD_LINES]
    rig = Rig(tmp_path, {"lines": lines})
    assert play(rig) is ExitCode.NO_DEVICE
    assert "placement-mismatch" in rig.reporter.names() and "ready" not in rig.reporter.names()
    assert rig.engine.warm_ups == 0


def test_a_server_on_the_cpu_that_says_it_offloaded_is_never_ready(tmp_path: Path) -> None:
    lines = ["0.00.1.0 I load_tensors: offloaded 5/5 layers to GPU",
             "0.00.100.000 I load_tensors:   CPU_Mapped model buffer size =   110.00 MiB",
             "0.00.100.000 I llama_kv_cache:        CPU KV buffer size =    20.00 MiB"]  # fmt: skip
    rig = Rig(tmp_path, {"lines": lines})
    assert play(rig) is ExitCode.NO_DEVICE
    assert "ready" not in rig.reporter.names()


def test_a_buffer_that_failed_in_the_warm_up_is_a_failed_start(tmp_path: Path) -> None:
    lines = [*LOAD_LINES, "0.00.1.0 E ggml_gallocr_reserve_n: failed to allocate CUDA0 buffer of size 1000"]
    rig = Rig(tmp_path, {"lines": lines}, restarts=0)
    assert play(rig) is not ExitCode.OK
    assert "ready" not in rig.reporter.names()


OUT_OF_MEMORY = [
    LOAD_LINES[0],
    "0.00.1.0 E ggml_backend_cuda_buffer_type_alloc_buffer: allocating 20.00 MiB on device 0: cudaMalloc failed: out of memory",
    "0.00.1.0 E llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache",
]


def test_out_of_memory_at_load_is_planned_smaller_and_started_at_once(tmp_path: Path) -> None:
    rig = Rig(tmp_path, {"lines": OUT_OF_MEMORY, "exit": 1}, {}, factor=1.0)
    rig.planner.free = {"CUDA0": 5 << 20}
    assert play(rig, _stop_when_ready) is ExitCode.OK
    (failure,) = rig.planner.failures
    assert (failure.cause, failure.device, failure.size_bytes) == ("gpu-out-of-memory-context", "CUDA0", 20 << 20)
    assert failure.held_bytes == 100 << 20 and not failure.running
    assert "restarting" not in rig.reporter.names()
    assert len(rig.planner.observed) == 1


def test_out_of_memory_while_serving_is_planned_smaller(tmp_path: Path) -> None:
    lines = ["CUDA error: out of memory", "/b/ggml-cuda.cu:109: CUDA error"]
    rig = Rig(tmp_path, {"last_words": lines, "die_after": 1, "exit_after": "SIGABRT"}, {}, factor=1.0)

    async def scene(rig: Rig) -> None:
        await rig.until_ready()
        _, writer = await asyncio.open_unix_connection(rig.supervisor.launch.socket_path)  # type: ignore[union-attr]
        writer.write(b"POST /x HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
        await rig.until_ready(2)
        writer.close()
        rig.supervisor.stop()

    assert play(rig, scene) is ExitCode.OK
    assert [failure.cause for failure in rig.planner.failures] == ["gpu-out-of-memory-running"]
    assert rig.planner.failures[0].running


def test_memory_that_is_short_again_and_again_is_given_up(tmp_path: Path) -> None:
    rig = Rig(tmp_path, {"lines": OUT_OF_MEMORY, "exit": 1}, restarts=1)
    assert play(rig) is ExitCode.CRASH_LOOP
    assert 8 <= len(rig.planner.failures) <= 11


def test_a_load_that_stands_still_is_ended(tmp_path: Path) -> None:
    rig = Rig(tmp_path, {"load_s": "never"}, start_stall_s=20.0, restarts=0)
    assert play(rig) is ExitCode.CRASH_LOOP
    assert "start-stalled" in rig.reporter.names()


def test_talking_is_no_progress_for_ever(tmp_path: Path) -> None:
    rig = Rig(tmp_path, {"load_s": "never", "babble": True}, start_stall_s=20.0, restarts=0)
    assert play(rig) is ExitCode.CRASH_LOOP
    assert "start-stalled" in rig.reporter.names()


def test_a_warm_up_without_a_token_is_a_failed_start(tmp_path: Path) -> None:
    rig = Rig(tmp_path, restarts=0)
    rig.engine.fail = ChildError("NaN")
    assert play(rig) is ExitCode.CRASH_LOOP
    assert "warm-up-failed" in rig.reporter.names() and "open" not in rig.front.calls


@pytest.mark.parametrize("moment", ["waiting", "loading"])
def test_a_stop_at_any_moment_ends(tmp_path: Path, moment: str) -> None:
    rig = Rig(tmp_path, {"load_s": 5})

    async def scene(rig: Rig) -> None:
        await rig.reporter.until(lambda: moment in rig.reporter.states)
        rig.supervisor.stop()

    assert play(rig, scene) is ExitCode.OK


def test_a_stop_during_back_off_ends_at_once(tmp_path: Path) -> None:
    rig = Rig(tmp_path, {"exit": 1}, factor=0.01, restarts=3)

    async def scene(rig: Rig) -> None:
        await rig.reporter.until(lambda: "backoff" in rig.reporter.states)
        rig.supervisor.stop()

    assert play(rig, scene) is ExitCode.OK


def test_a_reload_holds_drains_and_swaps(tmp_path: Path) -> None:
    rig = Rig(tmp_path)

    async def scene(rig: Rig) -> None:
        await rig.until_ready()
        old = rig.supervisor.child_pid
        await rig.supervisor.reload(loaded_of(digest="2", context=1024, **rig.limits))
        assert rig.supervisor.child_pid not in (0, old)
        assert rig.supervisor.state is State.READY
        rig.supervisor.stop()

    assert play(rig, scene) is ExitCode.OK
    assert "reload-applied" in rig.reporter.names()
    assert rig.front.calls[:5] == ["hold", "open", "hold", "drain", "close_upstreams"]


def test_a_reload_of_the_relays_keys_touches_no_child(tmp_path: Path) -> None:
    rig = Rig(tmp_path)

    async def scene(rig: Rig) -> None:
        await rig.until_ready()
        old = rig.supervisor.child_pid
        await rig.supervisor.reload(loaded_of(digest="2", **{**rig.limits, "queue_requests": 7}))
        assert rig.supervisor.child_pid == old and rig.supervisor.loaded.digest == "2"
        rig.supervisor.stop()

    play(rig, scene)
    assert rig.planner.plans == 1


def test_a_reload_after_its_files_were_replaced_loads_them(tmp_path: Path) -> None:
    rig = Rig(tmp_path)

    async def scene(rig: Rig) -> None:
        await rig.until_ready()
        old = rig.supervisor.child_pid
        await rig.supervisor.reload(loaded_of(digest="2", **rig.limits), "the files of the model", replaced=True)
        assert rig.supervisor.child_pid not in (0, old)
        rig.supervisor.stop()

    assert play(rig, scene) is ExitCode.OK
    assert ("reload-applied", {"CHANGED": "the files of the model"}) in [(event[0], event[2]) for event in rig.reporter.events]


def test_a_reload_of_the_same_definition_does_not_begin_a_load_again(tmp_path: Path) -> None:
    """Loading a large model takes minutes; a hang-up for a comment must not start them again."""
    rig = Rig(tmp_path)

    async def scene(rig: Rig) -> None:
        await rig.reporter.until(lambda: rig.supervisor.state is State.LOADING and rig.supervisor.child_pid)
        loading = rig.supervisor.child_pid
        await rig.supervisor.reload(loaded_of(digest="2", **rig.limits))
        await rig.until_ready()
        assert rig.supervisor.child_pid == loading and rig.supervisor.loaded.digest == "2"
        rig.supervisor.stop()

    assert play(rig, scene) is ExitCode.OK
    assert rig.planner.plans == 1


def test_what_a_client_wrote_into_the_log_never_gives_the_model_up(tmp_path: Path) -> None:
    rig = Rig(tmp_path)

    async def scene(rig: Rig) -> None:
        await rig.until_ready()
        assert rig.supervisor._intake is not None
        rig.supervisor._intake.feed(2, b"W srv got exception: unknown model architecture, invalid magic characters\n")
        os.kill(rig.supervisor.child_pid, signal.SIGKILL)
        await rig.until_ready(2)
        rig.supervisor.stop()

    assert play(rig, scene) is ExitCode.OK
    assert rig.causes() == ["somebody sent llama-server SIGKILL"]


def test_a_definition_that_cannot_be_planned_changes_nothing(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.planner.refuse_check = DeviceError("does not fit")

    async def scene(rig: Rig) -> None:
        await rig.until_ready()
        old = rig.supervisor.child_pid
        with pytest.raises(DeviceError):
            await rig.supervisor.reload(loaded_of(digest="2", context=1024, **rig.limits))
        assert rig.supervisor.child_pid == old and rig.supervisor.loaded.digest == "1"
        rig.supervisor.stop()

    play(rig, scene)


@pytest.mark.parametrize("failure", [{"exit": 1}, {"lines": ["error: invalid argument: x"], "exit": 1}, DeviceError("gone")])
def test_a_new_definition_that_fails_gives_the_old_one_back(tmp_path: Path, failure: Any) -> None:
    rig = Rig(tmp_path, {}, failure, {})

    async def scene(rig: Rig) -> None:
        await rig.until_ready()
        with pytest.raises(LlamadError):
            await rig.supervisor.reload(loaded_of(digest="2", context=1024, **rig.limits))
        await rig.until_ready(2)
        assert rig.supervisor.loaded.digest == "1"
        rig.supervisor.stop()

    assert play(rig, scene) is ExitCode.OK
    assert "reload-reverted" in rig.reporter.names()


def test_a_flood_a_long_line_and_binary_neither_stall_nor_grow(tmp_path: Path) -> None:
    """200,000 lines, a line of 1 MB and every byte value."""
    rig = Rig(tmp_path, {"flood": 200_000, "long_line": 1_000_000, "binary": True})
    peak = Path("/proc/self/status")

    def resident_kib() -> int:
        return next(int(line.split()[1]) for line in peak.read_text().splitlines() if line.startswith("VmRSS"))

    async def scene(rig: Rig) -> None:
        await rig.until_ready()
        before, late_s, largest = resident_kib(), 0.0, 0
        loop = asyncio.get_running_loop()
        intake = rig.supervisor._intake
        assert intake
        while intake.line_count < 200_000:
            asked = loop.time()
            await asyncio.sleep(0.01)
            late_s = max(late_s, loop.time() - asked - 0.01)
            largest = max(largest, resident_kib())
        assert largest - before < 8 * 1024, "KiB grown"
        assert late_s < 0.5, "the loop stood still"
        rig.supervisor.stop()

    assert play(rig, scene) is ExitCode.OK
    passed = [text for _, text in rig.reporter.lines]
    assert len(passed) < 20_000
    assert "lines-suppressed" in rig.reporter.names()
    assert all(len(text) < 9000 for text in passed)


def test_a_model_waits_for_its_turn_and_is_then_planned_anew(tmp_path: Path) -> None:
    wait = MustWait("waiting for 4.0 GiB on CUDA0, held by phi4 (8.0 GiB); place 1 in the queue")
    rig = Rig(tmp_path, wait, wait, {})

    async def scene(rig: Rig) -> None:
        await rig.reporter.until(lambda: rig.planner.turns == 1 or rig.reporter.states.count("waiting") >= 2)
        assert rig.supervisor.status_text() == str(wait)
        assert rig.supervisor.child_pid == 0
        rig.planner.may_go.set()
        await rig.until_ready()
        assert rig.planner.settles == [rig.supervisor.child_pid] == rig.planner.spawns
        assert rig.planner.ends == 0
        rig.supervisor.stop()

    assert play(rig, scene) is ExitCode.OK
    assert rig.planner.plans == 3 and rig.planner.turns == 2 and rig.planner.ends == 1
    assert "waiting for" not in rig.supervisor.status_text()


def test_a_stop_ends_a_wait_at_once(tmp_path: Path) -> None:
    rig = Rig(tmp_path, MustWait("waiting"))

    async def scene(rig: Rig) -> None:
        await rig.reporter.until(lambda: rig.reporter.states.count("waiting") >= 2)
        rig.supervisor.stop()

    began_s = time.monotonic()
    assert play(rig, scene) is ExitCode.OK
    assert time.monotonic() - began_s < 5.0
    assert rig.planner.plans == 1


def test_who_has_waited_too_long_ends_with_75_and_its_own_event(tmp_path: Path) -> None:
    rig = Rig(tmp_path, MustWait("waiting"), GaveUpWaiting("waited 600 s for 4.0 GiB", fix="stop another"))
    rig.planner.may_go.set()
    assert play(rig) is ExitCode.TEMPORARY
    assert [name for name, _, _ in rig.reporter.events] == ["gave-up-waiting"]


def test_a_new_definition_that_waits_in_vain_gives_way_to_the_old_one(tmp_path: Path) -> None:
    rig = Rig(tmp_path, {}, MustWait("waiting"), GaveUpWaiting("waited"), {})
    rig.planner.may_go.set()

    async def scene(rig: Rig) -> None:
        await rig.until_ready()
        with pytest.raises(Reverted, match="waited"):
            await rig.supervisor.reload(loaded_of(digest="2", context=1024, **rig.limits))
        await rig.until_ready(2)
        rig.supervisor.stop()

    assert play(rig, scene) is ExitCode.OK
    assert "reload-reverted" in rig.reporter.names()


def test_limits_that_change_in_place_are_in_force_at_once(tmp_path: Path) -> None:
    rig = Rig(tmp_path)

    async def scene(rig: Rig) -> None:
        await rig.until_ready()
        child = rig.supervisor.child_pid
        new = {**rig.limits, "restarts": 9, "hang_s": 7.0, "child_log_lines_per_s": 3, "drain_s": 1.0}
        await rig.supervisor.reload(loaded_of(digest="2", **new))
        assert rig.supervisor.child_pid == child
        assert rig.supervisor._backoff.restarts == 9 and rig.supervisor._hang_s() == 7.0
        assert rig.supervisor._intake and rig.supervisor._intake.lines_per_s == 3
        assert rig.supervisor.launch and rig.supervisor.launch.definition.limits.drain_s == 1.0
        rig.supervisor.stop()

    assert play(rig, scene) is ExitCode.OK
    assert rig.planner.plans == 1


LARGER = Offer(4096, {"CUDA0": 8 << 30})


def growing_rig(folder: Path, *scenarios: dict[str, Any] | LlamadError) -> Rig:
    """One that serves 2048 of 4096 tokens, and could have them all. A minute takes 3 ms."""
    rig = Rig(folder, *scenarios, factor=20_000.0, start_stall_s=1e9)
    rig.planner.context_tokens = 2048
    rig.planner.offer = LARGER
    return rig


async def can_have(rig: Rig, tokens: int) -> None:
    """From now on a plan gives so much."""
    await rig.until_ready()
    rig.planner.context_tokens = tokens


def test_a_context_grows_in_a_pause_and_requests_are_held_meanwhile(tmp_path: Path) -> None:
    rig = growing_rig(tmp_path)

    async def scene(rig: Rig) -> None:
        await can_have(rig, 4096)
        await rig.until_ready(2)
        assert rig.supervisor.launch and rig.supervisor.launch.plan.context_tokens == 4096
        await asyncio.sleep(0.3)  # an hour and a half: what cannot grow is left alone
        rig.supervisor.stop()

    assert play(rig, scene) is ExitCode.OK
    assert rig.front.calls[:5] == ["hold", "open", "hold", "close_upstreams", "open"]
    ((_, message, fields),) = [event for event in rig.reporter.events if event[0] == "context-grows"]
    assert (fields["FORMER"], fields["CONTEXT"]) == ("2048", "4096")
    assert "from 2048 to 4096 tokens" in message
    assert rig.planner.bounds == [None, None]
    assert "child-exited" not in rig.reporter.names(), "it was told to go"
    assert any("growing the context from 2048" in text for text in rig.reporter.texts)


def test_nothing_grows_while_somebody_waits_for_an_answer(tmp_path: Path) -> None:
    rig = growing_rig(tmp_path)
    rig.front.idle_s = 0.0

    async def scene(rig: Rig) -> None:
        await can_have(rig, 4096)
        await rig.planner.looks_more(30)
        assert rig.planner.plans == 1
        rig.supervisor.stop()

    assert play(rig, scene) is ExitCode.OK
    assert "context-grows" not in rig.reporter.names()


def test_a_request_that_comes_at_the_last_moment_puts_the_growth_off(tmp_path: Path) -> None:
    rig = growing_rig(tmp_path)
    asked: list[float] = []

    def quiet_s() -> float:
        """Quiet when the watch looks for a pause, and then not any more, twice."""
        asked.append(0.0)
        return 0.0 if len(asked) in (2, 4) else 3600.0

    rig.front.quiet_s = quiet_s  # type: ignore[method-assign]

    async def scene(rig: Rig) -> None:
        await can_have(rig, 4096)
        await rig.until_ready(2)
        rig.supervisor.stop()

    assert play(rig, scene) is ExitCode.OK
    assert len(asked) == 6
    assert rig.reporter.names().count("context-grows") == 1


OUT_OF_GROWN_MEMORY = {"lines": OUT_OF_MEMORY, "exit": 1}


@pytest.mark.parametrize(
    "failure", [OUT_OF_GROWN_MEMORY, {"exit": 1}, {"exit_after": "SIGSEGV", "exit": 1},
                {"lines": ["error: invalid argument: -c"], "exit": 1}],
)  # fmt: skip
def test_a_growth_that_cannot_be_loaded_gives_the_former_context_back_and_is_not_repeated(tmp_path: Path, failure: Any) -> None:
    rig = growing_rig(tmp_path, {}, failure, {})

    async def scene(rig: Rig) -> None:
        await can_have(rig, 4096)
        await rig.until_ready(2)
        assert rig.supervisor.launch and rig.supervisor.launch.plan.context_tokens == 2048
        await rig.planner.looks_more(40)
        assert rig.reporter.names().count("context-grows") == 1
        rig.planner.offer = Offer(4096, {"CUDA0": 10 << 30})
        await rig.until_ready(3)
        rig.supervisor.stop()

    assert play(rig, scene) is ExitCode.OK
    assert rig.planner.bounds == [None, None, 2048, None]


def test_a_restart_gives_no_more_than_before(tmp_path: Path) -> None:
    rig = growing_rig(tmp_path)
    rig.planner.offer = None

    async def scene(rig: Rig) -> None:
        await can_have(rig, 4096)
        os.kill(rig.supervisor.child_pid, signal.SIGKILL)
        await rig.until_ready(2)
        assert rig.supervisor.launch and rig.supervisor.launch.plan.context_tokens == 2048
        await rig.supervisor.reload(loaded_of(digest="2", kv_cache="q8_0", **rig.limits))
        assert rig.supervisor.launch.plan.context_tokens == 4096
        rig.supervisor.stop()

    assert play(rig, scene) is ExitCode.OK
    assert rig.planner.bounds == [None, 2048, None]


def test_a_stable_child_is_watched_on(tmp_path: Path) -> None:
    """After `stable_s` earlier failures are forgotten, and nothing else."""
    rig = Rig(tmp_path, factor=2000.0, stable_s=5.0, hang_s=60.0, start_stall_s=1e9)

    async def scene(rig: Rig) -> None:
        await rig.until_ready()
        await rig.reporter.until(lambda: "stable" in rig.reporter.names())
        rig.front.working = 1
        await rig.reporter.until(lambda: "no-progress" in rig.reporter.names())
        rig.front.working = 0
        await rig.until_ready(2)
        rig.supervisor.stop()

    assert play(rig, scene) is ExitCode.OK


@pytest.mark.parametrize("order", ["stop", "reload"])
def test_an_order_that_comes_with_the_condemnation_does_not_save_the_child(tmp_path: Path, order: str) -> None:
    """Both are in the queue: the state that kills is left before a task of its own could run."""
    rig = Rig(tmp_path, {"ignore_term": True})

    async def scene(rig: Rig) -> None:
        await rig.until_ready()
        old = rig.supervisor.child_pid
        rig.supervisor.condemn("device-lost", ChildError("gone"))
        if order == "reload":
            rig.supervisor._post(Message(Event.RELOAD))
            await rig.until_ready(2)
            assert rig.supervisor.child_pid not in (0, old)
        rig.supervisor.stop()

    async def within(rig: Rig) -> None:
        async with asyncio.timeout(20):
            await scene(rig)

    assert play(rig, within) is ExitCode.OK
    assert rig.reporter.states.count("condemned") == 1


def test_a_child_that_cannot_be_killed_is_told_whatever_was_ordered_meanwhile(tmp_path: Path) -> None:
    """A stop must not wait for ever for a process that sits in the kernel."""
    rig = Rig(tmp_path, factor=200.0)

    async def scene(rig: Rig) -> None:
        await rig.until_ready()
        child = rig.supervisor._child
        assert child is not None
        child.kill_group = lambda: None  # type: ignore[method-assign]
        rig.supervisor.condemn("device-lost", ChildError("gone"))
        await rig.reporter.until(lambda: "condemned" in rig.reporter.states)
        rig.supervisor.stop()
        await rig.reporter.until(lambda: "stuck" in rig.reporter.states)
        del child.kill_group

    async def go() -> None:
        run = asyncio.create_task(rig.supervisor.run())
        await scene(rig)
        await asyncio.wait_for(run, 20)

    asyncio.run(go())
    assert "unkillable" in rig.reporter.names()


def test_a_child_that_dies_as_a_reload_begins_is_one_death(tmp_path: Path) -> None:
    """Its end is in the queue behind the order that would have stopped it."""
    rig = Rig(tmp_path, {"load_s": 60}, {})

    async def scene(rig: Rig) -> None:
        await rig.reporter.until(lambda: "loading" in rig.reporter.states)
        child = rig.supervisor._child
        assert child is not None
        ended = rig.planner.ended

        def told() -> None:
            """Called when the child is gone, just before its death is put into the queue."""
            ended()
            rig.supervisor._post(Message(Event.RELOAD))

        rig.planner.ended = told  # type: ignore[method-assign]
        child.kill_group()
        await rig.until_ready()
        rig.planner.ended = ended  # type: ignore[method-assign]
        rig.supervisor.stop()

    assert play(rig, scene) is ExitCode.OK


def test_a_bad_definition_in_the_middle_of_a_growth_gives_the_old_one_back(tmp_path: Path) -> None:
    """What grows served a moment ago, and would still: an order that fails must not end it."""
    rig = growing_rig(tmp_path, {}, DeviceError("gone"), {})

    async def scene(rig: Rig) -> None:
        await can_have(rig, 4096)
        await rig.reporter.until(lambda: "replacing" in rig.reporter.states)
        with pytest.raises(LlamadError):
            await rig.supervisor.reload(loaded_of(digest="2", kv_cache="q8_0", **rig.limits))
        await rig.until_ready(2)
        assert rig.supervisor.loaded.digest == "1"
        rig.supervisor.stop()

    assert play(rig, scene) is ExitCode.OK
    assert "reload-reverted" in rig.reporter.names()


def test_a_reload_whose_old_child_cannot_be_killed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who reloads is told so, and the definition stays the one of what still runs."""
    rig = Rig(tmp_path, {"ignore_term": True}, factor=200.0, stop_s=0.2)
    monkeypatch.setattr("llamad.supervision.child.STOP_KILL_S", 0.3)

    async def go() -> None:
        run = asyncio.create_task(rig.supervisor.run())
        await rig.until_ready()
        child = rig.supervisor._child
        assert child is not None
        child.kill_group = lambda: None  # type: ignore[method-assign]
        async with asyncio.timeout(30):
            with pytest.raises(BusyError, match="cannot be killed"):
                await rig.supervisor.reload(loaded_of(digest="2", context=1024, **rig.limits))
        assert rig.supervisor.state is State.STUCK and rig.supervisor.loaded.digest == "1"
        del child.kill_group
        child.kill_group()
        await rig.until_ready(2)
        rig.supervisor.stop()
        await asyncio.wait_for(run, 20)

    asyncio.run(go())
