"""A reload with room for two: the new child is brought up beside the old one, and nobody waits."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from llamad.errors import BusyError, ChildError, ExitCode, LlamadError
from llamad.supervision.machine import State
from tests.support.fakes import loaded_of
from tests.unit.test_supervisor import OUT_OF_MEMORY, Rig, play


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def rig_with_room(folder: Path, *scenarios: dict[str, Any] | LlamadError, beside: Any = None, **limits: Any) -> Rig:
    rig = Rig(folder, *scenarios, **limits)
    rig.planner.beside_scenario = {} if beside is None else beside
    return rig


def new(rig: Rig, context: int = 1024) -> Any:
    return loaded_of(digest=str(context), context=context, **rig.limits)


def test_the_new_child_serves_before_the_old_one_goes_and_nobody_is_held(tmp_path: Path) -> None:
    rig = rig_with_room(tmp_path)

    async def scene(rig: Rig) -> None:
        await rig.until_ready()
        old, supervisor = rig.supervisor.child_pid, rig.supervisor
        rig.front.may_drain.clear()
        await supervisor.reload(new(rig), "placement.context")
        assert supervisor.child_pid not in (0, old) and alive(old), "the old one still finishes its requests"
        assert supervisor.state is State.RETIRING and supervisor.public_state == "ready"
        assert supervisor.loaded.definition.placement.context == 1024
        rig.front.may_drain.set()
        await rig.reporter.until(lambda: supervisor.state is State.READY)
        assert not alive(old)
        supervisor.stop()

    assert play(rig, scene) is ExitCode.OK
    assert "hold" not in rig.front.calls[1:], "only the start held requests"
    assert rig.front.calls[:5] == ["hold", "open", "open", "drain former", "close_upstreams"]
    assert rig.planner.calls == ["beside", "spawned beside", "adopted", "retired"]
    assert rig.planner.plans == 1
    assert rig.engine.prompts == ["restore", "save", "restore"]
    applied = [fields for name, _, fields in rig.reporter.events if name == "reload-applied"]
    assert applied == [{"CHANGED": "placement.context"}]
    assert set(rig.reporter.states[3:-3]) == {"ready"}


def test_prompts_are_kept_over_a_swap_and_not_over_a_stop(tmp_path: Path) -> None:
    rig = Rig(tmp_path)

    async def scene(rig: Rig) -> None:
        await rig.until_ready()
        rig.engine.kept_tokens = 70
        await rig.supervisor.reload(new(rig))
        rig.supervisor.stop()

    assert play(rig, scene) is ExitCode.OK
    assert rig.engine.prompts == ["restore", "save", "restore"]
    assert ("prompts-kept", {"TOKENS": "70"}) in [(name, fields) for name, _, fields in rig.reporter.events]


def test_requests_that_outlast_the_drain_are_cut_on_the_old_child_alone(tmp_path: Path) -> None:
    rig = rig_with_room(tmp_path)
    rig.front.in_flight = 2

    async def scene(rig: Rig) -> None:
        await rig.until_ready()
        await rig.supervisor.reload(new(rig))
        await rig.reporter.until(lambda: rig.supervisor.state is State.READY)
        rig.front.in_flight = 0
        rig.supervisor.stop()

    play(rig, scene)
    assert rig.front.calls[2:6] == ["open", "drain former", "cut reload", "close_upstreams"]


@pytest.mark.parametrize(
    "beside", [{"lines": ["error: invalid argument: --mlock"], "exit": 1}, {"exit_after": "SIGSEGV", "exit": 3, "lines": []}]
)
def test_a_new_child_that_cannot_start_leaves_the_old_one_serving(tmp_path: Path, beside: dict[str, Any]) -> None:
    rig = rig_with_room(tmp_path, beside=beside)

    async def scene(rig: Rig) -> None:
        await rig.until_ready()
        old = rig.supervisor.child_pid
        with pytest.raises(ChildError, match="its llama-server ended"):
            await rig.supervisor.reload(new(rig))
        assert rig.supervisor.child_pid == old
        assert rig.supervisor.loaded.definition.placement.context == "auto"
        await rig.reporter.until(lambda: rig.supervisor.state is State.READY)
        rig.supervisor.stop()

    assert play(rig, scene) is ExitCode.OK
    assert rig.front.calls == ["hold", "open", "farewell", "close_upstreams"]
    assert rig.planner.calls == ["beside", "spawned beside", "dismissed"]
    assert "child-exited" not in rig.reporter.names()


def test_a_new_child_that_fails_its_warm_up_is_gone_and_the_next_reload_works(tmp_path: Path) -> None:
    rig = rig_with_room(tmp_path)

    async def scene(rig: Rig) -> None:
        await rig.until_ready()
        old = rig.supervisor.child_pid
        rig.engine.fail = ChildError("no finite logits")
        with pytest.raises(ChildError, match="no finite logits"):
            await rig.supervisor.reload(new(rig))
        rig.engine.fail = None
        await rig.supervisor.reload(new(rig, 2048))
        assert rig.supervisor.child_pid not in (0, old)
        rig.supervisor.stop()

    assert play(rig, scene) is ExitCode.OK
    assert rig.planner.calls[:4] == ["beside", "spawned beside", "dismissed", "beside"]


@pytest.mark.parametrize(
    "beside", [{"lines": OUT_OF_MEMORY, "exit": 1}, {"lines": ["error: invalid device: CUDA0"], "exit": 1}]
)
def test_a_new_child_that_lacks_room_beside_gets_it_alone(tmp_path: Path, beside: dict[str, Any]) -> None:
    """What the drivers showed was not all: the edit is no worse for it, requests wait as without a second child."""
    rig = rig_with_room(tmp_path, beside=beside)

    async def scene(rig: Rig) -> None:
        await rig.until_ready()
        old = rig.supervisor.child_pid
        await rig.supervisor.reload(new(rig), "placement.context")
        assert rig.supervisor.child_pid not in (0, old)
        assert rig.supervisor.loaded.definition.placement.context == 1024
        rig.supervisor.stop()

    assert play(rig, scene) is ExitCode.OK
    assert rig.front.calls[2:5] == ["hold", "drain", "close_upstreams"]
    assert rig.planner.calls == ["beside", "spawned beside", "dismissed"] and rig.planner.plans == 2
    assert rig.reporter.names().count("reload-applied") == 1 and "reload-reverted" not in rig.reporter.names()


def test_a_plan_that_is_not_possible_beside_is_a_refusal(tmp_path: Path) -> None:
    rig = rig_with_room(tmp_path, beside=BusyError("no room at all"))

    async def scene(rig: Rig) -> None:
        await rig.until_ready()
        with pytest.raises(BusyError):
            await rig.supervisor.reload(new(rig))
        assert rig.supervisor.state is State.READY
        rig.supervisor.stop()

    assert play(rig, scene) is ExitCode.OK


def test_the_old_child_dies_while_the_new_one_loads(tmp_path: Path) -> None:
    """Then there is nothing to relieve: the new definition is started as after any death."""
    rig = rig_with_room(tmp_path, beside={"load_s": 600})

    async def scene(rig: Rig) -> None:
        await rig.until_ready()
        reload = asyncio.create_task(rig.supervisor.reload(new(rig)))
        await rig.reporter.until(lambda: "spawned beside" in rig.planner.calls)
        os.kill(rig.supervisor.child_pid, signal.SIGKILL)
        await reload
        assert rig.planner.planned[-1].definition.placement.context == 1024
        rig.supervisor.stop()

    assert play(rig, scene) is ExitCode.OK
    assert rig.planner.calls == ["beside", "spawned beside", "dismissed"]
    assert "reload-applied" in rig.reporter.names()


def test_the_new_child_dies_while_the_old_one_retires(tmp_path: Path) -> None:
    rig = rig_with_room(tmp_path)

    async def scene(rig: Rig) -> None:
        await rig.until_ready()
        old = rig.supervisor.child_pid
        rig.front.may_drain.clear()
        await rig.supervisor.reload(new(rig))
        os.kill(rig.supervisor.child_pid, signal.SIGKILL)
        await rig.reporter.until(lambda: rig.supervisor.state is State.WAITING)
        assert alive(old) and rig.planner.plans == 1, "nothing is planned while there is another child"
        rig.front.may_drain.set()
        await rig.until_ready(3)
        assert not alive(old)
        assert rig.planner.planned[-1].definition.placement.context == 1024
        rig.supervisor.stop()

    assert play(rig, scene) is ExitCode.OK
    assert rig.planner.calls == ["beside", "spawned beside", "adopted", "retired last"]


@pytest.mark.parametrize("when", ["loading", "retiring"])
def test_a_stop_ends_both(tmp_path: Path, when: str) -> None:
    rig = rig_with_room(tmp_path, beside={"load_s": 600} if when == "loading" else {})
    pids: list[int] = []

    async def scene(rig: Rig) -> None:
        await rig.until_ready()
        pids.append(rig.supervisor.child_pid)
        reload = asyncio.create_task(rig.supervisor.reload(new(rig)))
        if when == "loading":
            await rig.reporter.until(lambda: "spawned beside" in rig.planner.calls)
            relief = rig.supervisor._second.relief
            assert relief and relief.child
            pids.append(relief.child.pid)
        else:
            await reload
            pids.append(rig.supervisor.child_pid)
        rig.supervisor.stop()

    assert play(rig, scene) is ExitCode.OK
    assert len(set(pids)) == 2 and not any(map(alive, pids))


def test_the_watch_over_hangs_outlives_the_stable_time(tmp_path: Path) -> None:
    rig = Rig(tmp_path, factor=500.0, stable_s=5.0, hang_s=60.0)

    async def scene(rig: Rig) -> None:
        await rig.until_ready()
        await rig.reporter.until(lambda: "stable" in rig.reporter.names())
        rig.front.working = 1
        await rig.reporter.until(lambda: "no-progress" in rig.reporter.names())
        rig.front.working = 0
        await rig.until_ready(2)
        rig.supervisor.stop()

    assert play(rig, scene) is ExitCode.OK
