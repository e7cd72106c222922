"""Faults that NVIDIA's driver reports: the real binding against the library that stands in for the driver's."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamad.hardware.faults import Fault
from tests.support.nvml import PLAIN, build_shim, fail, gpu, hear, needs_shim


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shim(tmp_path_factory.mktemp("shim"))


@needs_shim
def test_faults_are_told_once_with_their_gpu_in_order(shim: Path, tmp_path: Path) -> None:
    faults = "xid 1 1 79\nxid 2 0 31\nxid 3 0 48\n"
    assert hear(shim, tmp_path, [PLAIN, PLAIN + faults], 3) == [["GPU-b", 79], ["GPU-a", 31], ["GPU-a", 48]]


@needs_shim
def test_a_gpu_that_does_not_even_tell_its_name_is_a_fault_all_the_same(shim: Path, tmp_path: Path) -> None:
    assert hear(shim, tmp_path, [PLAIN, PLAIN + "xid 1 0 79\n" + fail("nvmlDeviceGetUUID", 15)], 1) == [["", 79]]
    assert hear(shim, tmp_path, [PLAIN, PLAIN + fail("nvmlEventSetWait_v2", 15)], 1) == [["", 79]]


@needs_shim
@pytest.mark.parametrize(
    "state",
    [
        PLAIN + fail("nvmlEventSetCreate", 3),
        PLAIN + fail("nvmlInitWithFlags", 9),
        gpu() + fail("nvmlDeviceRegisterEvents", 3),
        PLAIN + fail("nvmlEventSetWait_v2", 3),
    ],
)
def test_a_driver_that_tells_no_events_is_no_fault(shim: Path, tmp_path: Path, state: str) -> None:
    assert hear(shim, tmp_path, [state, state + "xid 1 0 79\n"], 0) == []


def test_a_programs_own_mistakes_are_no_faults_of_the_device() -> None:
    assert [xid for xid in (13, 31, 43, 45) if Fault("GPU-a", xid).of_the_device] == []
    assert [xid for xid in (48, 62, 74, 79, 94, 95, 119, 120, 154) if not Fault("GPU-a", xid).of_the_device] == []
    assert str(Fault("GPU-a", 79)) == "Xid 79 (it has fallen off the bus)"
    assert "Xid 999" in str(Fault("GPU-a", 999))
