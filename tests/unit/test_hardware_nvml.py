"""The NVML probe: the real Python binding against a small library that stands in for the driver's.

The library's search path is fixed when a process starts, so each case runs in a process of its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llamad.hardware.nvml import Nvml

ROOT = Path(__file__).parents[2]
GIB = 1 << 30

needs_shim = pytest.mark.skipif(
    shutil.which("gcc") is None or importlib.util.find_spec("pynvml") is None,
    reason="needs gcc and nvidia-ml-py",
)

# Reads the state files it is given one after another with one probe, and prints what it saw.
READ = """
import dataclasses, json, os, shutil, sys
from llamad.errors import DeviceError
from llamad.hardware.device import HostMemory
from llamad.hardware.nvml import Nvml
probe = Nvml(own_pids=lambda: {4711}, host=lambda: HostMemory(64 << 30, 50 << 30), driver_files=["/"])
seen = []
for state in sys.argv[1:]:
    shutil.copy(state, os.environ["NVML_SHIM_STATE"])
    try:
        devices, error = [dataclasses.asdict(device) for device in probe.devices()], ""
    except DeviceError as caught:
        devices, error = [], str(caught)
    seen.append({"devices": devices, "error": error, "absence": probe.absence, "problems": probe.problems})
probe.close()
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shim")
    source = ROOT / "tests" / "support" / "nvml_shim.c"
    library = folder / "libnvidia-ml.so.1"
    subprocess.run(
        ["gcc", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source], check=True, timeout=60
    )
    return folder


def read(shim: Path, tmp_path: Path, *states: str) -> list[dict[str, Any]]:
    files = []
    for number, state in enumerate(states):
        files.append(tmp_path / f"state{number}")
        files[-1].write_text(state)
    env = os.environ | {"LD_LIBRARY_PATH": str(shim), "NVML_SHIM_STATE": str(tmp_path / "state")}
    run = subprocess.run(
        [sys.executable, "-c", READ, *files], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    seen: list[dict[str, Any]] = json.loads(run.stdout)
    return seen


def gpu(uuid: str, bus: str = "65", *, free: int = 15 * GIB, **codes: int) -> str:
    numbers = {"display": 0, "mig": 0, "handle": 0, "memory": 0} | codes
    return f"gpu {uuid} {bus} {16 * GIB} {GIB // 2} {free} {' '.join(map(str, numbers.values()))} NVIDIA RTX 4080\n"


@needs_shim
def test_two_gpus_in_pci_order_with_fresh_figures_at_each_read(shim: Path, tmp_path: Path) -> None:
    first = "driver 550.54\n" + gpu("GPU-b", "b3", display=1) + gpu("GPU-a", "1a", free=9 * GIB)
    second = "driver 550.54\n" + gpu("GPU-b", "b3", free=GIB) + gpu("GPU-a", "1a")
    before, after = read(shim, tmp_path, first, second)
    assert [(d["name"], d["uuid"], d["pci"], d["free_bytes"]) for d in before["devices"]] == [
        ("CUDA0", "GPU-a", "0000:1a:00.0", 9 * GIB),
        ("CUDA1", "GPU-b", "0000:b3:00.0", 15 * GIB),
    ]
    two = before["devices"][1]
    assert (two["total_bytes"], two["driver"], two["source"]) == (16 * GIB, "550.54", "nvml")
    assert two["display_active"] and not two["integrated"] and not two["context_included"]
    assert [d["free_bytes"] for d in after["devices"]] == [15 * GIB, GIB]


@needs_shim
def test_others_processes_count_and_ours_do_not(shim: Path, tmp_path: Path) -> None:
    state = (
        gpu("GPU-a")
        + f"process 0 4711 {3 * GIB}\nprocess 0 5 {2 * GIB}\nprocess 0 6 -1\nprocess 1 7 {GIB}\n"
    )
    (seen,) = read(shim, tmp_path, state)
    assert seen["devices"][0]["foreign_bytes"] == 2 * GIB


@needs_shim
def test_slices_stand_for_their_gpu(shim: Path, tmp_path: Path) -> None:
    state = (
        gpu("GPU-plain", "90")
        + gpu("GPU-sliced", "10", mig=1)
        + f"slice 1 0 MIG-x {5 * GIB} {4 * GIB} NVIDIA A100 MIG 1g.5gb\n"
        + f"slice 1 3 MIG-y {10 * GIB} {9 * GIB} NVIDIA A100 MIG 2g.10gb\n"
    )
    (seen,) = read(shim, tmp_path, state)
    assert [(d["name"], d["uuid"], d["free_bytes"]) for d in seen["devices"]] == [
        ("CUDA0", "MIG-x", 4 * GIB),
        ("CUDA1", "MIG-y", 9 * GIB),
        ("CUDA2", "GPU-plain", 15 * GIB),
    ]


@needs_shim
def test_unified_memory_is_the_hosts(shim: Path, tmp_path: Path) -> None:
    (seen,) = read(shim, tmp_path, gpu("GPU-gb10", memory=3))
    (device,) = seen["devices"]
    assert device["integrated"] and (device["total_bytes"], device["free_bytes"]) == (64 * GIB, 50 * GIB)


@needs_shim
def test_a_driver_too_old_for_the_second_memory_call(shim: Path, tmp_path: Path) -> None:
    (seen,) = read(shim, tmp_path, gpu("GPU-a", memory=13))
    assert seen["devices"][0]["free_bytes"] == 15 * GIB and not seen["devices"][0]["integrated"]


@needs_shim
@pytest.mark.parametrize(
    ("state", "error"),
    [
        ("init 18\n", "reload the nvidia modules"),
        ("init 4\n", "allow /dev/nvidia* to the service"),
        ("init 999\n", "NVML: Unknown Error"),
        (gpu("GPU-a", handle=15), "GPU 0 is lost"),
        (gpu("GPU-a", handle=16), "nvidia-smi --gpu-reset"),
        (gpu("GPU-a", memory=4), "permission denied by the driver"),
    ],
)
def test_errors_say_what_to_do_and_a_later_read_works_again(
    shim: Path, tmp_path: Path, state: str, error: str
) -> None:
    broken, well = read(shim, tmp_path, state, gpu("GPU-a"))
    assert error in broken["error"] and "GPU 0 is lost" not in well["error"]
    assert [d["uuid"] for d in well["devices"]] == ["GPU-a"]


@needs_shim
def test_one_lost_gpu_does_not_hide_the_others(shim: Path, tmp_path: Path) -> None:
    (seen,) = read(shim, tmp_path, gpu("GPU-a", "10", handle=15) + gpu("GPU-b", "20"))
    assert [(d["name"], d["uuid"]) for d in seen["devices"]] == [("CUDA0", "GPU-b")]
    assert len(seen["problems"]) == 1 and "GPU 0 is lost" in seen["problems"][0]


@needs_shim
@pytest.mark.parametrize(("code", "text"), [(9, "Driver Not Loaded"), (12, "Shared Library Not Found")])
def test_a_driver_that_is_not_loaded_is_no_error_but_said(
    shim: Path, tmp_path: Path, code: int, text: str
) -> None:
    (seen,) = read(shim, tmp_path, f"init {code}\n")
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
