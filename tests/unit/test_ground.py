"""What changes under a child that serves: told once, and only a child that no longer works is replaced."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from llamad.errors import ChildError, ConfigError, DeviceError, LlamadError
from llamad.hardware.faults import Fault
from llamad.hardware.nvml_errors import DriverUpgraded
from llamad.supervision.ground import GroundWatch
from llamad.supervision.launch import Launch, Seams
from llamad.supervision.machine import State
from tests.support.fakes import FakeFront, FakeReporter, ScaledClock, a_plan, loaded_of

LAUNCH = Launch(
    loaded_of(), a_plan(), ("llama-server",), {}, "/s", 300, "completion", "0.7.0", engine_key="k1", engine_words="b11669"
)


class FakeGround:
    """A ground that a test moves."""

    def __init__(self) -> None:
        self.key, self.words = "k1", "b11669"
        self.half_installed = False
        self.why = ""
        self.gone: DeviceError | None = None
        self.cannot_tell: DeviceError | None = None
        self.slept_s = 1000.0
        self.on_fault: Callable[[Fault], None] | None = None
        self.looks = 0

    def engine_key(self, launch: Launch) -> str:
        self.looks += 1
        return self.key

    def engine_words(self, launch: Launch) -> str:
        if self.half_installed:
            raise ConfigError("no such file")
        return self.words

    def driver(self, launch: Launch) -> str:
        return self.why

    def lost(self, launch: Launch) -> DeviceError | None:
        if self.cannot_tell:
            raise self.cannot_tell
        return self.gone

    def suspended_s(self) -> float:
        return self.slept_s

    def listen(self, launch: Launch, on_fault: Callable[[Fault], None]) -> Callable[[], None]:
        self.on_fault = on_fault

        def stop() -> None:
            self.on_fault = None

        return stop


class Engine:
    """Healthy, and computes, unless told otherwise."""

    def __init__(self) -> None:
        self.health, self.warm_ups = True, 0
        self.fail: ChildError | None = None

    async def healthy(self, socket_path: str) -> bool:
        return self.health

    async def warm_up(self, launch: Launch, deadline_s: float) -> float:
        self.warm_ups += 1
        if self.fail:
            raise self.fail
        return 0.1


class Served:
    """A supervisor that serves; a condemned child is replaced by another at once."""

    def __init__(self) -> None:
        self.state, self.child_pid = State.READY, 1
        self.launch: Launch | None = LAUNCH
        self.remarks: dict[str, str] = {}
        self.condemned: list[tuple[str, str]] = []

    def remark(self, topic: str, text: str) -> None:
        self.remarks[topic] = text

    def condemn(self, because: str, error: LlamadError) -> None:
        self.condemned.append((because, str(error)))
        self.child_pid += 1

    def said(self) -> str:
        return "; ".join(text for text in self.remarks.values() if text)


class Rig:
    """A watch with everything it touches."""

    watch: GroundWatch

    def __init__(self) -> None:
        self.ground, self.engine, self.served = FakeGround(), Engine(), Served()
        self.front, self.reporter = FakeFront(), FakeReporter()
        self.planner: Any = None
        engine: Any = self.engine
        self.seams = Seams(self.planner, engine, self.front, self.reporter)

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    async def looked(self, times: int = 1) -> None:
        """Return when that many whole looks were had from now on: the one after them has begun."""
        for _ in range(times + 1):
            seen = self.ground.looks
            self.watch.state_changed()
            await self.until(lambda seen=seen: self.ground.looks > seen)


def play(scene: Callable[[Rig], Awaitable[None]], factor: float = 2000.0) -> Rig:
    rig = Rig()

    async def go() -> None:
        rig.watch = GroundWatch(rig.served, rig.seams, rig.ground, ScaledClock(factor))
        task = asyncio.create_task(rig.watch.run())
        await rig.until(lambda: rig.ground.looks)
        await scene(rig)
        assert not task.done(), "the watch goes on"
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(go())
    return rig


def test_nothing_is_said_where_nothing_changed() -> None:
    async def scene(rig: Rig) -> None:
        await rig.looked(3)

    rig = play(scene)
    assert (rig.served.said(), rig.reporter.names(), rig.served.condemned) == ("", [], [])
    assert rig.engine.warm_ups == 0, "a child that serves is left alone"


def test_an_engine_replaced_on_disk_is_told_once_and_restarts_nothing() -> None:
    async def scene(rig: Rig) -> None:
        rig.ground.key, rig.ground.half_installed = "k2", True
        await rig.looked(2)
        assert rig.served.said() == "", "in the middle of an upgrade"
        rig.ground.half_installed, rig.ground.words = False, "b11702"
        await rig.looked(3)
        assert rig.served.said() == "running b11669, installed b11702"
        rig.ground.key = "k3"
        await rig.looked()
        assert rig.reporter.names() == ["engine-replaced"] * 2, "another one is another record"
        rig.ground.key = "k1"
        await rig.looked()
        assert rig.served.said() == "", "put back"

    rig = play(scene)
    fields = rig.reporter.events[0][2]
    assert fields == {"CAUSE": "running b11669, installed b11702", "FIX": "systemctl restart llamad@tiny"}
    assert rig.served.condemned == []


def test_other_files_of_the_same_version_are_said_to_be_that() -> None:
    async def scene(rig: Rig) -> None:
        rig.ground.key = "k2"
        await rig.looked()

    assert play(scene).served.said() == "running b11669, installed b11669 (other files)"


def test_it_is_noticed_within_a_minute_or_so_without_a_change_of_state() -> None:
    async def scene(rig: Rig) -> None:
        rig.ground.key, rig.ground.words = "k2", "b11702"
        await rig.until(rig.served.said)

    play(scene)


def test_the_next_child_is_judged_by_its_own_engine() -> None:
    async def scene(rig: Rig) -> None:
        rig.ground.key, rig.ground.words = "k2", "b11702"
        await rig.looked()
        assert rig.served.said()
        rig.served.child_pid, rig.served.launch = 2, replace(LAUNCH, engine_key="k2", engine_words="b11702")
        await rig.looked()
        assert rig.served.said() == ""

    play(scene)


def test_an_upgraded_driver_leaves_the_child_alone_and_is_told_once() -> None:
    async def scene(rig: Rig) -> None:
        rig.ground.why = "the kernel runs 550.54.14, the libraries are 550.90.07"
        rig.ground.cannot_tell = DriverUpgraded("NVIDIA driver was upgraded")
        await rig.looked(3)
        rig.ground.slept_s += 60
        await rig.looked()
        rig.ground.why = ""
        await rig.looked()
        assert rig.served.said() == "", "the module was reloaded"
        rig.ground.why = "the kernel runs 550.54.14, the libraries are 550.90.07"
        await rig.looked()

    rig = play(scene)
    assert rig.served.said() == "NVIDIA driver was upgraded: reboot (or reload the module)"
    assert rig.reporter.names() == ["driver-upgraded", "resumed"]
    assert "550.90.07" in rig.reporter.events[0][2]["CAUSE"]
    assert rig.served.condemned == []


def test_a_model_without_devices_does_not_care_about_drivers_and_sleep() -> None:
    async def scene(rig: Rig) -> None:
        rig.served.launch = replace(LAUNCH, plan=a_plan(devices=()))
        rig.served.child_pid = 2
        await rig.looked()
        assert rig.ground.on_fault is None
        rig.ground.why, rig.ground.slept_s = "upgraded", rig.ground.slept_s + 3600
        await rig.looked(2)

    rig = play(scene)
    assert (rig.served.said(), rig.reporter.names(), rig.engine.warm_ups) == ("", [], 0)


def test_after_sleep_a_child_that_computes_goes_on() -> None:
    async def scene(rig: Rig) -> None:
        rig.ground.slept_s += 3600
        await rig.until(lambda: rig.engine.warm_ups)
        await rig.looked(2)

    rig = play(scene)
    assert rig.reporter.names() == ["resumed"] and rig.engine.warm_ups == 1 and rig.served.condemned == []


def test_after_sleep_one_that_fails_is_replaced_once() -> None:
    async def scene(rig: Rig) -> None:
        rig.engine.fail = ChildError("HTTP 500")
        rig.ground.slept_s += 3600
        await rig.until(lambda: rig.served.condemned)
        await rig.looked(3)

    (one,) = play(scene).served.condemned
    assert one == ("device-lost", "the machine slept for 3600 s, and then: HTTP 500")


def test_after_sleep_one_that_does_not_answer_is_replaced() -> None:
    async def scene(rig: Rig) -> None:
        rig.engine.health = False
        rig.ground.slept_s += 3600
        await rig.until(lambda: rig.served.condemned)

    rig = play(scene)
    assert "does not answer" in rig.served.condemned[0][1] and rig.engine.warm_ups == 0


def test_after_sleep_requests_at_work_are_the_proof() -> None:
    async def scene(rig: Rig) -> None:
        rig.front.working = 1
        rig.ground.slept_s += 3600
        await rig.until(rig.reporter.names)
        await rig.looked()

    rig = play(scene)
    assert rig.engine.warm_ups == 0 and rig.served.condemned == []


def test_a_device_that_is_gone_after_sleep_is_named() -> None:
    async def scene(rig: Rig) -> None:
        rig.ground.gone = DeviceError("CUDA0 is lost", why="GPU 0 is lost: it has fallen off the bus", fix="reboot")
        rig.ground.slept_s += 3600
        await rig.until(lambda: rig.served.condemned)

    because, text = play(scene).served.condemned[0]
    assert because == "device-lost" and "CUDA0 is lost" in text and "reboot" in text


def test_a_fault_of_the_device_is_told_and_tested_and_ends_nothing_that_works() -> None:
    async def scene(rig: Rig) -> None:
        assert rig.ground.on_fault
        threading.Thread(target=rig.ground.on_fault, args=(Fault("GPU-1", 94),)).start()
        await rig.until(lambda: rig.engine.warm_ups)
        await rig.looked(2)

    rig = play(scene)
    assert rig.reporter.names() == ["device-fault"] and rig.served.condemned == []
    assert rig.served.said().startswith("CUDA0: Xid 94 (")


def test_a_fault_that_took_the_device_ends_the_child_and_a_programs_own_fault_does_not() -> None:
    async def scene(rig: Rig) -> None:
        assert rig.ground.on_fault
        rig.ground.gone = DeviceError("CUDA0 is lost")
        rig.ground.on_fault(Fault("GPU-1", 31))
        await rig.looked(2)
        assert rig.served.condemned == [] and rig.reporter.names() == []
        rig.ground.on_fault(Fault("GPU-1", 79))
        await rig.until(lambda: rig.served.condemned)

    (one,) = play(scene).served.condemned
    assert one == ("device-lost", "CUDA0: Xid 79 (it has fallen off the bus), and then: CUDA0 is lost")


def test_nobody_listens_while_nothing_serves() -> None:
    async def scene(rig: Rig) -> None:
        assert rig.ground.on_fault
        rig.served.state = State.BACKOFF
        rig.watch.state_changed()
        await rig.until(lambda: rig.ground.on_fault is None)
        rig.served.state = State.READY
        await rig.looked()
        assert rig.ground.on_fault

    rig = play(scene)
    assert rig.ground.on_fault is None, "it ends with the watch"


def test_a_look_for_which_there_is_no_thread_is_had_later(monkeypatch: Any) -> None:
    """The watch goes on: its end would be the daemon's, and with it the child's."""
    refused: list[int] = []

    def none(_thread: threading.Thread) -> None:
        refused.append(1)
        raise RuntimeError("can't start new thread")

    async def scene(rig: Rig) -> None:
        await rig.looked()
        with monkeypatch.context() as lack:
            lack.setattr(threading.Thread, "start", none)
            assert rig.ground.on_fault
            rig.ground.on_fault(Fault("GPU-1", 79))
            await rig.until(lambda: len(refused) >= 3)
        rig.ground.words, rig.ground.key = "b11702", "k2"
        await rig.looked()
        assert "b11702" in rig.served.said()
        assert not rig.served.condemned

    play(scene)


def test_a_fault_that_is_told_over_and_over_takes_no_memory() -> None:
    async def scene(rig: Rig) -> None:
        await rig.looked()
        for _ in range(10_000):
            rig.watch._faulted(Fault("GPU-1", 31))
        assert len(rig.watch._faults) == 1

    play(scene)
