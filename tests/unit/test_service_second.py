"""Two llama-servers of one model in the ledger: both booked, either may go first, and others plan on what is left."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamad.engine.log import Observed
from llamad.errors import BusyError
from llamad.hardware.device import Device
from llamad.ledger.booking import Booking, MustWait
from llamad.ledger.lease import HOST, Phase
from llamad.ledger.ledger import Ledger
from llamad.planning.plan import Parts, Plan
from llamad.service.planner import Made
from llamad.service.records import LeaseRecorder
from llamad.service.second import SecondServer
from llamad.supervision.launch import Launch
from llamad.units import GIB, MIB
from tests.support.fakes import FakeReporter, a_plan, loaded_of

CARD = {"GPU-1": 8 * GIB, HOST: 1 << 50}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "ledger"
    path.mkdir()
    return path


@pytest.fixture
def children() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Processes that hold the leases that they inherit, as llama-servers do."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*fds: int) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(["sleep", "60"], pass_fds=fds))
        return started[-1]

    yield start
    for child in started:
        child.kill()
        child.wait()


def booking_of(folder: Path, name: str = "tiny", takes: int = 0) -> Booking:
    booking = Booking(Ledger(folder, name))
    booking.start_wait_s = 60.0
    booking.ledger.take()
    if takes:
        promise(booking, takes, CARD)
        booking.settled(booking.promise_id, os.getpid(), 0)
    return booking


def promise(booking: Booking, size: int, free: dict[str, int]) -> None:
    booking.look()
    with booking.step(free) as step:
        if step.available["GPU-1"] < size:
            step.lacks("GPU-1", size - step.available["GPU-1"], ())
        step.promise({"GPU-1": size})


def lease(folder: Path, name: str) -> dict[str, Any]:
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def test_both_leases_are_booked_and_others_see_both(folder: Path) -> None:
    main = booking_of(folder, takes=3 * GIB)
    second = Booking(main.ledger.second(), main.held)
    left = {**CARD, "GPU-1": 5 * GIB}  # what the driver shows with the first one's bytes taken
    promise(second, 4 * GIB, left)
    assert lease(folder, "tiny")["promised"]["GPU-1"] == 3 * GIB
    assert lease(folder, "tiny+1")["promised"]["GPU-1"] == 4 * GIB
    other = booking_of(folder, "other")
    with pytest.raises(MustWait, match=r"tiny\+1"):
        promise(other, 2 * GIB, left)
    second.ledger.leave()
    assert lease(folder, "tiny+1") == {} and not (folder / "tiny+1.lock").exists()
    promise(other, 2 * GIB, left)
    for booking in (main, other):
        booking.ledger.close()


def test_the_second_becomes_the_models_own(folder: Path, children: Callable[..., Any]) -> None:
    main = booking_of(folder, takes=3 * GIB)
    second = Booking(main.ledger.second(), main.held)
    promise(second, 4 * GIB, {**CARD, "GPU-1": 5 * GIB})
    green = children(*main.ledger.lease_fds, *second.ledger.lease_fds)
    before = main.promise_id
    assert main.absorb(second.ledger, green.pid, 7 * MIB) == {"GPU-1": 4 * GIB}
    second.ledger.close()
    own = lease(folder, "tiny")
    assert (own["phase"], own["promised"]["GPU-1"], own["pids"][1]) == (Phase.SETTLED, 4 * GIB, green.pid)
    assert main.promise_id == own["id"] != before
    assert lease(folder, "tiny+1") == {}
    again = main.ledger.second()
    assert again.name == "tiny+2", "the first name is held by who has come up under it"
    third = main.ledger.second
    with pytest.raises(BusyError, match="have not ended"):
        third()
    again.leave()
    green.kill()
    green.wait()
    free = main.ledger.second()
    assert free.name == "tiny+1"
    free.leave()
    main.ledger.close()


def test_a_killed_llamad_leaves_the_bytes_of_its_second_server_booked(
    folder: Path, children: Callable[..., Any]
) -> None:
    main = booking_of(folder, takes=3 * GIB)
    second = Booking(main.ledger.second(), main.held)
    promise(second, 4 * GIB, {**CARD, "GPU-1": 5 * GIB})
    green = children(*main.ledger.lease_fds, *second.ledger.lease_fds)
    main.absorb(second.ledger, green.pid, 0)
    for ledger in (second.ledger, main.ledger):
        ledger.close()  # as the kernel does for a process that is killed
    other = booking_of(folder, "other")
    with other.ledger.transaction() as transaction:
        assert [(one.name, one.promised["GPU-1"]) for one in transaction.others] == [("tiny", 4 * GIB)]
    green.kill()
    green.wait()
    with other.ledger.transaction() as transaction:
        assert transaction.others == []
    other.ledger.close()


# -- whether there is room -------------------------------------------------------------------------------------


class FakeMaker:
    """Plans as it is told; the device has so many free bytes while the first one serves."""

    def __init__(self, plans: list[Plan], free: int) -> None:
        self.plans, self.free = plans, free
        self.returning: list[list[int]] = []
        self.socket_path = ""
        self.slots = Path("/nonexistent/slots")

    def devices(self) -> list[Device]:
        return [Device("CUDA0", 8 * GIB, self.free, "GPU-1", source="fake")]

    def make(self, *, returning: list[Device], computed: bool = False) -> Made:
        self.returning.append([device.free_bytes for device in returning])
        plan = self.plans.pop(0) if len(self.plans) > 1 else self.plans[0]
        caps: Any = SimpleNamespace(path="llama-server", version="b1", key="k", words="b1", has=lambda _flag: False)
        facts: Any = SimpleNamespace(n_vocab=300, file_bytes=1, fingerprint="f")
        return Made(plan, facts, caps, ("--host", self.socket_path))

    def environment(self, _plan: Plan) -> dict[str, str]:
        return {}


def plan_of(weights: int, **changes: Any) -> Plan:
    plan = a_plan(**changes)
    return replace(plan, devices=(replace(plan.devices[0], parts=Parts(weights)),))


RUNNING = Launch(loaded_of(), plan_of(3 * GIB), (), {}, "/run/engine/llama.sock", 300, "completion", "fake")


class Rig:
    """A model that serves with 3 GiB of 8."""

    def __init__(self, tmp_path: Path, folder: Path) -> None:
        self.folder = folder
        self.main = booking_of(folder, takes=3 * GIB)
        reporter: Any = FakeReporter()
        self.recorder = LeaseRecorder(self.main, reporter)
        self.second = SecondServer(self.main, reporter)
        self.host_bytes = -1

    def plan(self, *plans: Plan, free: int = 5 * GIB) -> Launch | None:
        self.maker = FakeMaker(list(plans), free)

        def make(_loaded: Any, socket_name: str, host_bytes: int) -> Any:
            self.maker.socket_path, self.host_bytes = f"/run/engine/{socket_name}", host_bytes
            return self.maker

        return self.second.plan(make, loaded_of(), RUNNING, os.getpid())


@pytest.fixture
def rig(tmp_path: Path, folder: Path) -> Iterator[Rig]:
    one = Rig(tmp_path, folder)
    yield one
    one.second.leave()
    one.main.ledger.close()


def test_a_plan_that_has_room_beside_is_promised(rig: Rig) -> None:
    launch = rig.plan(plan_of(4 * GIB), plan_of(4 * GIB, context_tokens=4000))
    assert launch and launch.socket_path == "/run/engine/llama-2.sock"
    assert launch.plan.context_tokens == 4000, "as llama-server itself confirmed it"
    assert rig.maker.returning == [[8 * GIB], [8 * GIB]], "planned as if the first one were gone"
    assert rig.host_bytes > MIB, "on the host as well"
    assert lease(rig.folder, "tiny+1")["promised"]["GPU-1"] == 4 * GIB
    assert rig.second.lease_fds


@pytest.mark.parametrize(
    "plans",
    [
        [plan_of(6 * GIB)],
        [plan_of(4 * GIB), plan_of(6 * GIB)],  # the confirmed one is larger
        [plan_of(GIB, host=Parts(1 << 49))],
        [plan_of(GIB, cache_ram_mib=1 << 29)],
    ],
)
def test_a_plan_that_lacks_room_on_the_device_or_on_the_host_is_none(rig: Rig, plans: list[Plan]) -> None:
    assert rig.plan(*plans) is None
    assert lease(rig.folder, "tiny+1") == {} and not rig.second.is_there
    assert lease(rig.folder, "tiny")["phase"] == Phase.SETTLED, "the first one's lease is as it was"


def test_a_remote_device_serves_one_alone(rig: Rig) -> None:
    plan = plan_of(GIB)
    remote = replace(RUNNING, plan=replace(plan, devices=(replace(plan.devices[0], name="RPC0"),)))
    maker: Any = FakeMaker([plan], 5 * GIB)
    assert rig.second.plan(lambda *_: maker, loaded_of(), remote, 0) is None
    assert maker.returning == [] and not rig.second.is_there, "nor is it asked what is free"


def test_a_server_that_owns_its_address_has_none_beside_it(rig: Rig) -> None:
    maker: Any = FakeMaker([plan_of(GIB)], 5 * GIB)
    direct = replace(loaded_of(), definition=replace(loaded_of().definition, front="direct"))
    assert rig.second.plan(lambda *_: maker, direct, replace(RUNNING, loaded=direct), 0) is None
    assert maker.returning == [] and not rig.second.is_there


def test_what_is_given_up_in_the_middle_does_not_have_the_last_word() -> None:
    """A write that is cancelled goes on in its thread."""
    begun, go_on, written = threading.Event(), threading.Event(), list[str]()

    def settled(*_: object) -> None:
        begun.set()
        go_on.wait(10)
        written.append("settled")

    booking: Any = SimpleNamespace(promise_id="1", settled=settled, returning=lambda _: written.append("returning"))

    async def go() -> None:
        recorder = LeaseRecorder(booking, FakeReporter())  # type: ignore[arg-type]
        recorder.settled(os.getpid())
        await asyncio.to_thread(begun.wait, 10)
        recorder.ended()
        await asyncio.sleep(0.05)
        go_on.set()
        async with asyncio.timeout(10):
            while len(written) < 2:  # noqa: ASYNC110 - written by threads
                await asyncio.sleep(0.01)

    asyncio.run(go())
    assert written == ["settled", "returning"]


def test_what_others_were_promised_is_no_room(rig: Rig) -> None:
    other = booking_of(rig.folder, "other")
    promise(other, 2 * GIB, {**CARD, "GPU-1": 5 * GIB})
    assert rig.plan(plan_of(4 * GIB)) is None
    assert rig.plan(plan_of(2 * GIB)) is not None
    other.ledger.close()


def test_the_turn_to_load_is_waited_for_by_nobody_who_serves(rig: Rig, tmp_path: Path) -> None:
    other = booking_of(rig.folder, "other")
    other.look()
    with other.step(CARD) as step:
        step.promise({"GPU-1": GIB}, source="disk")
    with rig.main.ledger.transaction() as transaction:
        assert transaction.others
    rig.second = SecondServer(rig.main, FakeReporter())  # type: ignore[arg-type]
    model = tmp_path / "m.gguf"
    model.touch()
    with other.step(CARD) as step:
        step.promise({"GPU-1": GIB}, source=str(os.stat(model).st_dev))
    loaded = replace(loaded_of(), definition=replace(loaded_of().definition, model=str(model)))
    maker: Any = FakeMaker([plan_of(2 * GIB)], 5 * GIB)
    assert rig.second.plan(lambda *_: maker, loaded, RUNNING, 0) is None
    assert lease(rig.folder, "tiny+1") == {}, "nor does it stand in the queue"
    other.ledger.close()


def test_the_life_of_a_second_lease(rig: Rig) -> None:
    """Planned, loading, settled, and the model's own when the first one is gone; the next one has the first socket."""

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110 - a file, written by a thread
                await asyncio.sleep(0.01)

    async def go() -> None:
        launch = await asyncio.to_thread(rig.plan, plan_of(4 * GIB))
        assert launch
        rig.second.spawned(os.getpid(), Observed)
        await until(lambda: lease(rig.folder, "tiny+1").get("phase") == Phase.LOADING)
        assert rig.second.adopted(os.getpid()) is launch
        await until(lambda: lease(rig.folder, "tiny+1").get("phase") == Phase.SETTLED)
        assert lease(rig.folder, "tiny")["promised"]["GPU-1"] == 3 * GIB
        rig.second.absorbed(rig.recorder, os.getpid())
        await until(lambda: lease(rig.folder, "tiny").get("promised", {}).get("GPU-1") == 4 * GIB)
        await until(lambda: not lease(rig.folder, "tiny+1"))
        assert not rig.second.is_there and rig.second.lease_fds == ()
        rig.recorder.ended()
        await until(lambda: lease(rig.folder, "tiny")["phase"] == Phase.RETURNING)

    asyncio.run(go())
