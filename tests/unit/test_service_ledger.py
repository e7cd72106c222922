"""How the daemon waits, what it writes into its lease, and what is shown of it."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamad.cli.status import lease_json, print_memory
from llamad.engine.log import Observed
from llamad.hardware.host import process_bytes
from llamad.ledger.booking import Booking, MustWait
from llamad.ledger.lease import HOST, Lease, Phase
from llamad.ledger.ledger import Ledger
from llamad.ledger.public import read_public, write_public
from llamad.planning.plan import DevicePlan, Parts
from llamad.service.neighbours import enabled_names
from llamad.service.overview import leases, memory_table
from llamad.service.records import LeaseRecorder, taken_of
from llamad.service.turn import POLL_S, RETRY_S, wait_for_change
from llamad.units import GIB, MIB
from tests.support.fakes import FakeReporter, a_plan


def booking_of(folder: Path, name: str, need: int = 0) -> Booking:
    booking = Booking(Ledger(folder, name))
    booking.start_wait_s = 60.0
    booking.ledger.take()
    if need:
        attempt(booking, need)
    return booking


def attempt(booking: Booking, need: int) -> None:
    booking.look()
    with booking.step({"GPU-1": 100, HOST: 100}) as step:
        if step.available["GPU-1"] < need:
            step.lacks("GPU-1", need - step.available["GPU-1"], ())
        step.promise({"GPU-1": need})


def waiting_s(booking: Booking, act: Callable[[], None], after_s: float = 0.2) -> float:
    """Seconds from an act to the end of a wait that began before it."""

    async def go() -> float:
        acted = time.monotonic()

        def act_now() -> None:
            nonlocal acted
            acted = time.monotonic()
            act()

        asyncio.get_running_loop().call_later(after_s, act_now)
        await wait_for_change(booking)
        return time.monotonic() - acted

    return asyncio.run(go())


@pytest.mark.parametrize("how", ["release", "close"])
def test_the_end_of_a_lease_wakes_at_once(tmp_path: Path, how: str) -> None:
    """By the kernel's word, well before the next poll."""
    first, second = booking_of(tmp_path, "first", 80), booking_of(tmp_path, "second")
    with pytest.raises(MustWait):
        attempt(second, 50)
    assert waiting_s(second, getattr(first.ledger, how)) < POLL_S / 2
    attempt(second, 50)
    second.ledger.close()


def test_what_changed_before_the_wait_ends_it_too(tmp_path: Path) -> None:
    first, second = booking_of(tmp_path, "first", 80), booking_of(tmp_path, "second")
    with pytest.raises(MustWait):
        attempt(second, 50)
    first.ledger.release()
    assert waiting_s(second, lambda: None, 0.0) < POLL_S


def test_without_a_sign_it_is_tried_again_after_a_while_and_others_waits_are_no_sign(tmp_path: Path) -> None:
    first, second = booking_of(tmp_path, "first", 80), booking_of(tmp_path, "second")
    with pytest.raises(MustWait):
        attempt(second, 50)
    third = booking_of(tmp_path, "third")

    def stand_behind() -> None:
        with pytest.raises(MustWait):
            attempt(third, 60)

    stand_behind()
    with pytest.raises(MustWait):
        attempt(second, 50)
    assert waiting_s(second, stand_behind) > RETRY_S - 1.0
    for booking in (first, second, third):
        booking.ledger.close()


class Events(FakeReporter):
    """Has what the daemon's own reporter has."""

    def ledger_problems(self, files: tuple[str, ...]) -> None:
        self.event("ledger-problem", str(files))


def phase_of(folder: Path, name: str) -> Phase:
    return Phase(json.loads((folder / f"{name}.json").read_text())["phase"])


def test_the_lease_follows_the_load(tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    folder.mkdir()
    booking = booking_of(folder, "tiny", 50)
    reporter: Any = Events()

    async def go() -> None:
        recorder = LeaseRecorder(booking, reporter)
        recorder.spawned(os.getpid(), a_plan(), Observed)
        await until(lambda: phase_of(folder, "tiny") is Phase.LOADING)
        recorder.settled(os.getpid())
        await until(lambda: phase_of(folder, "tiny") is Phase.SETTLED)
        recorder.ended()
        await until(lambda: phase_of(folder, "tiny") is Phase.RETURNING)
        recorder.settled(os.getpid())  # a late word about the one that has ended
        recorder.ended()
        await asyncio.sleep(0.2)
        assert phase_of(folder, "tiny") is Phase.RETURNING

    asyncio.run(go())
    booking.ledger.release()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - a file, written by a thread
            await asyncio.sleep(0.01)


def test_only_buffers_that_a_driver_counts_at_once_are_taken() -> None:
    parts = Parts(100 * MIB, 20 * MIB, 5 * MIB)
    devices = (DevicePlan("CUDA3", "GPU-3", GIB, GIB, 5, parts), DevicePlan("Vulkan0", "", GIB, GIB, 5, parts))
    observed = Observed({("CUDA0", "model"): 70, ("CUDA0", "kv"): 7, ("Vulkan0", "model"): 9, ("CPU", "model"): 5})
    assert taken_of(a_plan(devices=devices), observed) == {"GPU-3": 77}


def test_what_a_process_has_for_itself_is_known() -> None:
    before = process_bytes(os.getpid())
    block = bytearray(os.urandom(1)) * (64 * MIB)
    assert before > MIB and process_bytes(os.getpid()) - before > 60 * MIB
    del block
    assert process_bytes(1 << 30) == 0


def test_enabled_models_are_those_that_systemd_wants(tmp_path: Path) -> None:
    for name in ("llamad@runs.service", "llamad@own.service", "llamad@Bad Name.service", "other.service"):
        (tmp_path / name).touch()
    assert enabled_names(tmp_path) == ["own", "runs"]
    assert enabled_names(tmp_path / "missing") == []


def test_who_holds_what_is_a_line_a_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {"GPU-1": "CUDA0", HOST: "the host"}
    me = (os.getpid(),)
    held = [
        Lease("phi4", Phase.SETTLED, "1", {"GPU-1": 8 * GIB, HOST: GIB}, names=names, pids=me),
        Lease("qwen", Phase.LOADING, "2", {"GPU-1": 2 * GIB}, names={"GPU-1": "CUDA1\x1b[31m"}, pids=me),
        Lease("late", Phase.WAITING, "3", wants={"GPU-1": 1}, why="1 B on CUDA0", ticket=1, pids=me),
        Lease("dead", Phase.SETTLED, "4", {"GPU-1": 1}, pids=(1 << 30,)),
    ]
    (tmp_path / "public").mkdir()
    write_public(tmp_path / "public" / "ledger.json", held)
    assert memory_table(leases(tmp_path)) == [
        ("CUDA0/CUDA1?[31m", "phi4 8.0 GiB, qwen 2.0 GiB (loading)"), ("the host", "phi4 1.0 GiB"),
    ]  # fmt: skip
    print_memory(leases(tmp_path))
    assert "\x1b" not in capsys.readouterr().out
    assert lease_json(held[2])["waits_for"] == "1 B on CUDA0"
    (tmp_path / "public" / "ledger.json").write_text("{")
    assert read_public(tmp_path / "public" / "ledger.json") == []


@pytest.mark.parametrize("name", ["\x1b[31mred", "two\nlines", 7, ["phi4"], ""])
def test_a_public_ledger_with_names_that_no_model_has_says_nothing(tmp_path: Path, name: object) -> None:
    """It is written by the service's user, and root prints it."""
    rows = [{"name": name, "phase": "settled", "promised": {"GPU-1": 1}, "pids": [os.getpid()]}]
    (tmp_path / "public").mkdir()
    (tmp_path / "public" / "ledger.json").write_text(json.dumps(rows))
    assert leases(tmp_path) == []
