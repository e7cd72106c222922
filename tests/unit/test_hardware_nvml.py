"""The NVML probe: the real Python binding against a small library that stands in for the driver's."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from llamad.errors import DeviceError
from llamad.hardware.deadline import Bounded
from llamad.hardware.nvml import Nvml
from tests.support.nvml import (
    ERRORS_AT,
    GIB,
    HOST,
    PLAIN,
    ROOT,
    build_shim,
    error_codes,
    fail,
    gpu,
    look,
    mig_slice,
    needs_shim,
)


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shim(tmp_path_factory.mktemp("shim"))


def read(shim: Path, tmp_path: Path, *states: str) -> list[dict[str, Any]]:
    return look(shim, tmp_path, [states])[0]


@needs_shim
def test_gpus_in_cuda_order_with_fresh_figures_at_each_read(shim: Path, tmp_path: Path) -> None:
    """CUDA_DEVICE_ORDER=PCI_BUS_ID is domain, bus, device as numbers: 10000 comes after 0002."""
    first = (
        "driver 550.54\n" + gpu("GPU-c", "10000:01") + gpu("GPU-b", "2:b3", display=1) + gpu("GPU-a", "2:1a", free=9 * GIB)
    )
    second = "driver 550.54\n" + gpu("GPU-b", "0:b3", free=GIB) + gpu("GPU-a", "0:1a")
    before, after = read(shim, tmp_path, first, second)
    assert [(d["name"], d["uuid"], d["pci"], d["free_bytes"]) for d in before["devices"]] == [
        ("CUDA0", "GPU-a", "0002:1a:00.0", 9 * GIB),
        ("CUDA1", "GPU-b", "0002:b3:00.0", 15 * GIB),
        ("CUDA2", "GPU-c", "10000:01:00.0", 15 * GIB),
    ]
    two = before["devices"][1]
    assert (two["driver"], two["source"], two["description"]) == ("550.54", "nvml", "NVIDIA RTX 4080")
    assert two["display_active"] and not two["integrated"] and not two["context_included"] and not two["mig"]
    assert [d["free_bytes"] for d in after["devices"]] == [15 * GIB, GIB]


@needs_shim
def test_the_total_is_what_processes_can_have(shim: Path, tmp_path: Path) -> None:
    state = gpu(total=16 * GIB, reserved=GIB // 2, free=15 * GIB)
    odd = gpu(total=16 * GIB, reserved=GIB, free=16 * GIB)
    seen = read(shim, tmp_path, state, odd)
    assert [(s["devices"][0]["total_bytes"], s["devices"][0]["free_bytes"]) for s in seen] == [
        (16 * GIB - GIB // 2, 15 * GIB),
        (15 * GIB, 15 * GIB),
    ]


@needs_shim
def test_others_processes_count_and_ours_do_not(shim: Path, tmp_path: Path) -> None:
    state = (
        gpu()
        + f"process 0 4711 {3 * GIB}\nprocess 0 5 {2 * GIB}\nprocess 0 6 -1\nprocess 1 7 {GIB}\n"
        + f"graphics 0 5 {GIB}\ngraphics 0 8 {GIB // 2}\ngraphics 0 9 -1\n"
    )
    seen = read(shim, tmp_path, state, state + fail("nvmlDeviceGetComputeRunningProcesses_v3", 13))
    assert [s["devices"][0]["foreign_bytes"] for s in seen] == [2 * GIB + GIB // 2] * 2
    (denied,) = read(shim, tmp_path, state + fail("nvmlDeviceGetComputeRunningProcesses_v3", 4)
                     + fail("nvmlDeviceGetComputeRunningProcesses_v2", 4))  # fmt: skip
    assert denied["devices"][0]["foreign_bytes"] == GIB + GIB // 2
    (nonsense,) = read(shim, tmp_path, gpu() + f"process 0 5 {1 << 62}\nprocess 0 6 {GIB}\n")
    assert nonsense["devices"][0]["foreign_bytes"] == GIB


@needs_shim
def test_slices_stand_for_their_gpu(shim: Path, tmp_path: Path) -> None:
    state = (
        gpu("GPU-plain", "0:90")
        + gpu("GPU-sliced", "0:10", mig=1)
        + mig_slice(0, "MIG-x", 5 * GIB, 4 * GIB, gpu=1)
        + mig_slice(3, "MIG-y", 10 * GIB, 9 * GIB, gpu=1)
    )
    seen, one_lost = read(shim, tmp_path, state, state + fail("nvmlDeviceGetMigDeviceHandleByIndex", 15, 2))
    assert [(d["name"], d["uuid"], d["free_bytes"], d["mig"]) for d in seen["devices"]] == [
        ("CUDA0", "MIG-x", 4 * GIB, True),
        ("CUDA1", "MIG-y", 9 * GIB, True),
        ("CUDA2", "GPU-plain", 15 * GIB, False),
    ]
    assert [d["uuid"] for d in one_lost["devices"]] == ["MIG-y", "GPU-plain"]
    assert "slice 0 of GPU 1 is lost" in one_lost["problems"][0]


@needs_shim
def test_a_gpu_in_mig_mode_without_a_slice_is_no_device(shim: Path, tmp_path: Path) -> None:
    """Its memory would look free, and no process may use it."""
    alone, beside = read(shim, tmp_path, gpu(mig=1), gpu(mig=1) + gpu("GPU-b", "0:90"))
    assert alone["devices"] == [] and "no slice" in alone["error"] and "mig -cgi" in alone["error"]
    assert [d["uuid"] for d in beside["devices"]] == ["GPU-b"] and "no slice" in beside["problems"][0]


@needs_shim
def test_a_slice_without_memory_or_name_for_it_is_not_taken_for_the_hosts(shim: Path, tmp_path: Path) -> None:
    state = gpu(mig=1) + mig_slice(0, "MIG-x", 5 * GIB, 4 * GIB)
    no_memory, no_uuid = read(
        shim, tmp_path, state + fail("nvmlDeviceGetMemoryInfo_v2", 3), state + fail("nvmlDeviceGetUUID", 3)
    )
    assert no_memory["devices"] == [] and "Not Supported" in no_memory["error"]
    assert no_uuid["devices"] == [] and "no UUID" in no_uuid["error"]


@needs_shim
def test_unified_memory_is_the_hosts(shim: Path, tmp_path: Path) -> None:
    jetson = gpu(name="Orin (nvgpu)") + fail("nvmlDeviceGetMemoryInfo_v2", 3) + fail("nvmlDeviceGetPciInfo_v3", 3)
    (seen,) = read(shim, tmp_path, jetson)
    (device,) = seen["devices"]
    assert device["integrated"] and device["pci"] == ""
    assert (device["total_bytes"], device["free_bytes"]) == (HOST.total_bytes, HOST.available_bytes)


@needs_shim
def test_a_library_that_is_too_old_for_half_of_the_questions(tmp_path: Path) -> None:
    old = build_shim(tmp_path / "old", old=True)
    (seen,) = read(old, tmp_path, "driver 418.1\n" + gpu() + f"process 0 5 {GIB}\n")
    (device,) = seen["devices"]
    assert (device["free_bytes"], device["total_bytes"], device["driver"]) == (15 * GIB, 16 * GIB, "418.1")
    assert not device["integrated"] and not device["mig"] and device["foreign_bytes"] == GIB


@needs_shim
def test_texts_that_are_no_utf8(shim: Path, tmp_path: Path) -> None:
    (seen,) = read(shim, tmp_path, "garbled\n" + gpu())
    (device,) = seen["devices"]
    assert (device["uuid"], device["driver"], device["description"]) == ("", "", "NVIDIA GPU")


@pytest.fixture(scope="module")
def every_error(shim: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], list[Any]]:
    """Each code at each position: on GPU 0 of two, then on all GPUs, then a well machine, with one probe."""
    keys = list(itertools.product(ERRORS_AT, error_codes()))
    cases = []
    for function, code in keys:
        state = ERRORS_AT[function][0]
        per_unit = 0 if "Device" in function and "Count_v2" not in function else -1
        cases.append([state + fail(function, code, per_unit), state + fail(function, code), PLAIN])
    return dict(zip(keys, look(shim, tmp_path_factory.mktemp("errors"), cases), strict=True))


@needs_shim
@pytest.mark.parametrize("function", ERRORS_AT)
def test_every_error_at_every_call(every_error: dict[tuple[str, int], list[Any]], function: str) -> None:
    wanted = ERRORS_AT[function][1]
    codes = [code for position, code in every_error if position == function]
    assert len(codes) >= 31
    for code in codes:
        one, everywhere, well = every_error[function, code]
        what = f"{function} {code}: {one}"
        found = [device["uuid"] for device in one["devices"]]
        match wanted(code):
            case "both":
                assert len(found) == 2 and not one["problems"] and not one["error"], what
                assert one["devices"][0]["integrated"] == ("MemoryInfo" in function and code == 3), what
            case "one":
                assert found == ["GPU-b"] and len(one["problems"]) == 1 and "GPU 0" in one["problems"][0], what
                assert everywhere["devices"] == [] or function == "nvmlDeviceGetMaxMigDeviceCount", what
                assert everywhere["error"] or everywhere["devices"], what
            case "refused":
                assert found == [] and one["error"] and not one["absence"], what
            case "absent":
                assert found == [] and one["absence"] and not one["error"], what
        if function != "nvmlInitWithFlags" or code not in (9, 12):
            assert len(well["devices"]) == 2, f"{function} {code}: not well again: {well}"


@needs_shim
@pytest.mark.parametrize(
    ("state", "error"),
    [
        (fail("nvmlInitWithFlags", 18), "reload the nvidia modules"),
        (fail("nvmlInitWithFlags", 4), "allow /dev/nvidia* to the service"),
        (fail("nvmlInitWithFlags", 999), "NVML: Unknown Error"),
        (gpu() + fail("nvmlDeviceGetHandleByIndex_v2", 15), "GPU 0 is lost"),
        (gpu() + fail("nvmlDeviceGetHandleByIndex_v2", 16), "nvidia-smi --gpu-reset"),
        (gpu() + fail("nvmlDeviceGetMemoryInfo_v2", 4), "permission denied by the driver"),
        (gpu() + fail("nvmlDeviceGetMemoryInfo_v2", 77), "NVML: shim error 77"),
        (gpu(total=0, free=0, reserved=0), "does not tell its memory"),
    ],
)
def test_errors_say_what_to_do(shim: Path, tmp_path: Path, state: str, error: str) -> None:
    (broken,) = read(shim, tmp_path, state)
    assert error in broken["error"]


@needs_shim
def test_a_gpu_that_vanishes_between_two_reads_and_one_that_comes(shim: Path, tmp_path: Path) -> None:
    two, one = gpu("GPU-a", "0:10") + gpu("GPU-b", "0:20"), gpu("GPU-b", "0:20")
    # A lost GPU is seen again only by a library that was opened anew: opened once more, this one is refused.
    lost = two + fail("nvmlDeviceGetMemoryInfo_v2", 15, 0)
    (first, again) = read(shim, tmp_path, lost, two + fail("nvmlInitWithFlags", 4))
    assert len(first["devices"]) == 1 and "permission denied" in again["error"]
    (first, again) = read(shim, tmp_path, two + fail("nvmlDeviceGetHandleByIndex_v2", 4, 0), two + fail("nvmlInitWithFlags", 4))
    assert len(first["devices"]) == 1 and len(again["devices"]) == 2, "one that we may not use is no reason"
    seen = read(shim, tmp_path, two, one, two, lost, two, "driver 1\n")
    uuids = [[d["uuid"] for d in look["devices"]] for look in seen]
    assert uuids == [["GPU-a", "GPU-b"], ["GPU-b"], ["GPU-a", "GPU-b"], ["GPU-b"], ["GPU-a", "GPU-b"], []]
    assert "GPU 0 is lost" in seen[3]["problems"][0] and seen[4]["problems"] == []
    assert seen[5]["absence"] == "the NVIDIA driver shows no GPU"


@needs_shim
def test_a_driver_that_hangs_is_given_up_and_used_again_later(shim: Path, tmp_path: Path) -> None:
    hanging = gpu() + "hang nvmlDeviceGetMemoryInfo_v2\n"
    began_s = time.monotonic()
    first, second, last = look(shim, tmp_path, [[hanging, hanging, gpu()]], deadline_s=0.5)[0]
    assert "the NVIDIA driver does not answer" in first["error"] and "0.5 s" in first["error"]
    assert "does not answer" in second["error"]
    assert last["error"] or [d["uuid"] for d in last["devices"]] == ["GPU-a"]
    assert time.monotonic() - began_s < 30


@pytest.mark.alone
def test_what_hangs_is_waited_for_once_and_works_when_it_is_back() -> None:
    bounded, release = Bounded("the driver", 0.2), threading.Event()
    with pytest.raises(DeviceError, match="does not answer"):
        bounded.call(release.wait)
    threads = threading.active_count()
    began_s = time.monotonic()
    for _ in range(20):
        with pytest.raises(DeviceError):
            bounded.call(lambda: 5)
    assert time.monotonic() - began_s < 0.2 and threading.active_count() == threads
    release.set()
    while threading.active_count() == threads:
        threading.Event().wait(0.001)
    assert bounded.call(lambda: 5) == 5
    with pytest.raises(KeyError):
        bounded.call(lambda: {}[1])
    assert bounded.call(lambda: 6) == 6


@needs_shim
@pytest.mark.parametrize(("code", "text"), [(9, "Driver Not Loaded"), (12, "Shared Library Not Found")])
def test_a_driver_that_is_not_loaded_is_no_error_but_said(
    shim: Path, tmp_path: Path, code: int, text: str
) -> None:
    (seen,) = read(shim, tmp_path, fail("nvmlInitWithFlags", code))
    assert seen["devices"] == [] and seen["error"] == "" and text in seen["absence"]


def test_without_a_driver_nothing_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from llamad.hardware.nvml import Nvml; probe = Nvml(driver_files=['/nothing/here']);"
        "assert probe.devices() == [] and 'no NVIDIA driver' in probe.absence; probe.close();"
        "assert 'pynvml' not in sys.modules and 'ctypes' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_without_the_binding_the_module_is_named() -> None:
    code = (
        "import sys; sys.modules['pynvml'] = None; from llamad.hardware.nvml import Nvml;"
        "probe = Nvml(driver_files=['/']); assert probe.devices() == []; print(probe.absence)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60, capture_output=True, text=True
    )
    assert "nvidia-ml-py" in run.stdout


def test_close_before_any_read() -> None:
    Nvml().close()
