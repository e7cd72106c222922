"""What a plan made now would give a model that serves: its own memory counts as free, that of others does not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import pytest

from llamad.errors import DeviceError
from llamad.hardware.device import Device, HostMemory
from llamad.ledger.booking import Booking, MustWait
from llamad.ledger.ledger import Ledger
from llamad.planning.plan import DevicePlan, Parts
from llamad.service.lookout import Lookout, returned
from llamad.service.planner import Made, PlanMaker
from llamad.supervision.growth import Offer
from llamad.supervision.launch import Launch
from llamad.units import GIB, MIB
from tests.support.fakes import a_plan, loaded_of

PARTS = Parts(2 * GIB, GIB, 100 * MIB, overhead_bytes=500 * MIB, margin_bytes=128 * MIB)
RUNNING = DevicePlan("CUDA0", "GPU-1", 8 * GIB, 24 * GIB, 5, PARTS)
LAUNCH = Launch(loaded_of(), a_plan(devices=(RUNNING,)), (), {}, "/s", 300, "completion", "e")
SHOWN = [Device("CUDA0", 24 * GIB, 10 * GIB, uuid="GPU-1"), Device("CUDA1", 24 * GIB, 5 * GIB, uuid="GPU-2")]


def test_what_the_driver_says_that_it_holds_comes_back() -> None:
    free = [device.free_bytes for device in returned(SHOWN, LAUNCH, {"GPU-1": 4 * GIB, "GPU-2": GIB}, {"GPU-2": GIB})]
    assert free == [14 * GIB, 4 * GIB], "what others were promised does not, nor what it does not use"


def test_without_the_drivers_word_only_its_buffers_come_back() -> None:
    assert returned(SHOWN, LAUNCH, {}, {})[0].free_bytes == 13 * GIB + 100 * MIB


def test_never_more_than_there_is_nor_less_than_nothing() -> None:
    free = [device.free_bytes for device in returned(SHOWN, LAUNCH, {"GPU-1": 90 * GIB}, {"GPU-2": 9 * GIB})]
    assert free == [24 * GIB, 0]


class FakeMaker:
    """Plans 1024 tokens a GiB, and counts how often."""

    def __init__(self, devices: list[Device] | None = None, *, on_cpu: bool = False) -> None:
        self.shown = SHOWN if devices is None else devices
        self.tells = True
        self.on_cpu = on_cpu
        self.makes = 0
        self.fails: DeviceError | None = None
        self.learned_key = ""

    def glance(self) -> list[Device] | None:
        return self.shown if self.tells else None

    def make(self, *, computed: bool, returning: list[Device], host: HostMemory) -> Made:
        self.makes += 1
        assert computed, "llama-server would take memory to be asked"
        if self.fails:
            raise self.fails
        free = host.available_bytes if self.on_cpu else returning[0].free_bytes
        devices = () if self.on_cpu else (DevicePlan("CUDA0", "GPU-1", free, 24 * GIB, 5, PARTS),)
        plan = a_plan(context_tokens=free * 1024 // GIB, devices=devices)
        return Made(plan, cast("Any", None), None, (), self.learned_key)


@pytest.fixture
def booking(tmp_path: Path) -> Any:
    made = Booking(Ledger(tmp_path, "tiny"))
    made.ledger.take()
    yield made
    made.ledger.release()


def offer(lookout: Lookout, maker: FakeMaker, launch: Launch = LAUNCH, pid: int = 1 << 30) -> Offer | None:
    return lookout.offer(cast("PlanMaker", maker), launch, {"GPU-1": 4 * GIB}, pid)


def test_a_minute_in_which_nothing_happened_costs_no_plan(booking: Booking) -> None:
    lookout, maker = Lookout(booking), FakeMaker()
    for _ in range(5):
        assert offer(lookout, maker) == Offer(14 * 1024, {"CUDA0": 14 * GIB})
    assert maker.makes == 1
    maker.shown = [Device("CUDA0", 24 * GIB, 12 * GIB, uuid="GPU-1")]
    assert offer(lookout, maker) == Offer(16 * 1024, {"CUDA0": 16 * GIB})
    assert maker.makes == 2
    other = Launch(loaded_of(digest="2"), LAUNCH.plan, (), {}, "/s", 300, "completion", "e")
    offer(lookout, maker, other)
    assert maker.makes == 3, "another llama-server is another question"


def test_nothing_is_offered_that_only_llama_server_could_tell_or_no_plan_gives(booking: Booking) -> None:
    lookout, maker = Lookout(booking), FakeMaker()
    maker.tells = False
    assert offer(lookout, maker) is None and maker.makes == 0
    maker.tells, maker.fails = True, DeviceError("gone")
    assert offer(lookout, maker) is None


def test_nothing_is_offered_where_file_engine_or_driver_are_others_by_now(booking: Booking) -> None:
    maker = FakeMaker()
    maker.learned_key = "another"
    assert offer(Lookout(booking), maker) is None and maker.makes == 1


def test_nothing_is_offered_while_another_waits(booking: Booking, tmp_path: Path) -> None:
    lookout, maker = Lookout(booking), FakeMaker()
    booking.look()
    with booking.step({"GPU-1": 100}) as step:
        step.promise({"GPU-1": 90})
    other = Booking(Ledger(tmp_path, "other"))
    other.start_wait_s = 60.0
    other.ledger.take()
    other.look()
    with pytest.raises(MustWait), other.step({"GPU-1": 100}) as step:
        step.lacks("GPU-1", 50, ())
    assert offer(lookout, maker) is None
    other.ledger.release()
    assert offer(lookout, maker) is not None


def test_on_the_cpu_the_childs_own_memory_comes_back(booking: Booking) -> None:
    maker = FakeMaker([], on_cpu=True)
    launch = Launch(loaded_of(), a_plan(devices=()), (), {}, "/s", 300, "completion", "e")
    block = bytearray(os.urandom(1)) * (400 * MIB)
    nobodys = offer(Lookout(booking), maker, launch)
    ours = offer(Lookout(booking), maker, launch, os.getpid())
    del block
    assert nobodys and ours and list(ours.free_bytes) == ["host"]
    assert ours.total_bytes - nobodys.total_bytes > 200 * MIB, "other processes of the machine move it by as much"


def test_what_must_be_seen_before_a_larger_plan_is_made(booking: Booking) -> None:
    lookout = Lookout(booking)
    assert lookout.expected(LAUNCH.plan) == {}
    offer(lookout, FakeMaker())
    assert lookout.expected(LAUNCH.plan) == {"CUDA0": 14 * GIB - 64 * MIB}
