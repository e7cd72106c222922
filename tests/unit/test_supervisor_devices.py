"""Devices that are lost and come back, under the supervisor over real processes of the fake llama-server."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from llamad.errors import ChildError, DeviceError, ExitCode
from llamad.supervision.machine import State
from tests.support.fakes import loaded_of
from tests.unit.test_supervisor import Rig, play

LOST = {"lines": ["ggml_vulkan: device lost on Vulkan0"], "exit": 1}
NO_DEVICE = DeviceError("CUDA0 is lost", why="it has fallen off the bus", fix="reset it or reboot")


async def _stop_when_ready(rig: Rig) -> None:
    await rig.until_ready()
    rig.supervisor.stop()


async def _lose(rig: Rig) -> None:
    await rig.until_ready()
    rig.supervisor.condemn("device-lost", ChildError("the machine slept for 60 s, and then: HTTP 500"))


def test_a_lost_device_has_the_child_replaced_once_and_says_why(tmp_path: Path) -> None:
    rig = Rig(tmp_path)

    async def scene(rig: Rig) -> None:
        await _lose(rig)
        await rig.until_ready(2)
        rig.supervisor.stop()

    assert play(rig, scene) is ExitCode.OK
    assert rig.causes() == ["the GPU stopped answering (CUDA0): the machine slept for 60 s, and then: HTTP 500"]
    assert rig.reporter.names().count("restarting") == 1
    assert rig.front.calls[:5] == ["hold", "open", "hold", "explain device-lost", "open"], "its requests are held"


def test_one_that_stays_lost_is_no_crash_loop_and_ends_for_systemd(tmp_path: Path) -> None:
    rig = Rig(tmp_path, {}, LOST, restarts=5)
    assert play(rig, _lose) is ExitCode.NO_DEVICE
    assert rig.planner.plans == 2, "a device that does not answer is not tried on and on"
    name, message, fields = rig.reporter.events[-1]
    assert name == "waiting-for-device" and "the GPU does not answer" in message and "reboot" in fields["FIX"]
    assert "the GPU does not answer (CUDA0)" in rig.supervisor.status_text() and "reset" in rig.supervisor.status_text()


def test_one_that_the_driver_does_not_show_ends_for_systemd(tmp_path: Path) -> None:
    rig = Rig(tmp_path, {}, NO_DEVICE)
    assert play(rig, _lose) is ExitCode.NO_DEVICE
    assert "CUDA0 is lost: it has fallen off the bus; reset it or reboot" in rig.supervisor.status_text()


@pytest.mark.parametrize("lost", [LOST, NO_DEVICE])
def test_without_systemd_it_is_waited_for_and_serves_again(tmp_path: Path, lost: dict[str, object] | DeviceError) -> None:
    rig = Rig(tmp_path, {}, *[lost] * 8, {}, parks=True, factor=500.0, restarts=2, start_stall_s=100_000.0)
    texts: list[str] = []

    async def scene(rig: Rig) -> None:
        await _lose(rig)
        await rig.reporter.until(lambda: "waiting-for-device" in rig.reporter.names())
        await rig.reporter.until(lambda: rig.supervisor.state is State.WAITING)
        texts.append(rig.supervisor.status_text())
        await rig.until_ready(2)
        rig.supervisor.stop()

    assert play(rig, scene) is ExitCode.OK
    assert rig.planner.plans == 10, "more often than a crash loop has restarts"
    assert texts[0].startswith("waiting for a device: ") and "re" in texts[0]
    assert rig.reporter.names().count("waiting-for-device") == 1
    assert not {"gave-up", "no-device"} & set(rig.reporter.names())
    assert "refuse" not in rig.front.calls, "requests wait"


def test_a_wait_for_a_device_ends_with_a_stop_and_a_reload_is_answered(tmp_path: Path) -> None:
    rig = Rig(tmp_path, {}, NO_DEVICE, parks=True)

    async def scene(rig: Rig) -> None:
        await _lose(rig)
        await rig.reporter.until(lambda: "waiting-for-device" in rig.reporter.names())
        with pytest.raises(DeviceError, match="CUDA0 is lost"):
            await rig.supervisor.reload(loaded_of(digest="2", context=1024, **rig.limits))
        rig.supervisor.stop()

    assert play(rig, scene) is ExitCode.OK


def test_what_is_no_matter_of_a_device_is_not_waited_for(tmp_path: Path) -> None:
    rig = Rig(tmp_path, {"lines": ["error: invalid argument: --mlock"], "exit": 1}, parks=True)
    assert play(rig) is ExitCode.CONFIG


def test_a_programs_own_fault_on_the_device_is_a_crash_loop_in_the_end(tmp_path: Path) -> None:
    lines = ["CUDA error: an illegal memory access was encountered"]
    rig = Rig(tmp_path, {"lines": lines, "exit_after": "SIGABRT", "exit": 1}, factor=500.0, restarts=2, start_stall_s=1e5)
    assert play(rig) is ExitCode.CRASH_LOOP
    assert rig.planner.plans == 3


def test_condemning_what_does_not_serve_changes_nothing(tmp_path: Path) -> None:
    rig = Rig(tmp_path, {}, {})

    async def scene(rig: Rig) -> None:
        await rig.until_ready()
        os.kill(rig.supervisor.child_pid, signal.SIGKILL)
        await rig.reporter.until(lambda: rig.supervisor.state is not State.READY)
        rig.supervisor.condemn("device-lost", ChildError("late"))
        await rig.until_ready(2)
        rig.supervisor.stop()

    assert play(rig, scene) is ExitCode.OK
    assert rig.causes() == ["somebody sent llama-server SIGKILL"]


def test_remarks_stand_in_the_status_of_what_serves_and_are_announced_once(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    texts: list[str] = []

    async def scene(rig: Rig) -> None:
        rig.supervisor.remark("driver", "NVIDIA driver was upgraded: reboot")
        await rig.until_ready()
        told = len(rig.reporter.states)
        rig.supervisor.remark("engine", "running b1, installed b2")
        rig.supervisor.remark("engine", "running b1, installed b2")
        assert len(rig.reporter.states) <= told + 2
        texts.append(rig.supervisor.status_text())
        rig.supervisor.remark("driver", "")
        texts.append(rig.supervisor.status_text())
        rig.supervisor.stop()

    assert play(rig, scene) is ExitCode.OK
    assert texts[0].endswith("slots; NVIDIA driver was upgraded: reboot; running b1, installed b2")
    assert texts[1].endswith("slots; running b1, installed b2")
