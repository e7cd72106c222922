"""The real NVML binding over `nvml_shim.c`: machines written down as text, looked at in a process of their own.

The library's search path is fixed when a process starts, so the looking happens in `python -m tests.support.nvml`,
many cases a process.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from llamad.errors import DeviceError
from llamad.hardware.device import HostMemory
from llamad.hardware.nvml import Nvml

ROOT = Path(__file__).parents[2]
GIB = 1 << 30
HOST = HostMemory(64 * GIB, 50 * GIB)
OWN_PID = 4711

needs_shim = pytest.mark.skipif(
    shutil.which("gcc") is None or importlib.util.find_spec("pynvml") is None,
    reason="needs gcc and nvidia-ml-py",
)


def build_shim(folder: Path, *, old: bool = False) -> Path:
    """Compile the library into `folder`; `old` is a driver without MIG and without the second memory call."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["gcc", "-Wall", "-Werror", "-shared", "-fPIC", *(["-DOLD"] if old else [])]
    source = ROOT / "tests" / "support" / "nvml_shim.c"
    subprocess.run([*words, "-o", folder / "libnvidia-ml.so.1", source], check=True, timeout=60)
    return folder


def gpu(
    uuid: str = "GPU-a",
    bus: str = "0:65",
    *,
    free: int = 15 * GIB,
    total: int = 16 * GIB,
    reserved: int = GIB // 2,
    display: int = 0,
    mig: int = 0,
    name: str = "NVIDIA RTX 4080",
) -> str:
    return f"gpu {uuid} {bus} {total} {reserved} {free} {display} {mig} {name}\n"


def mig_slice(place: int, uuid: str, total: int, free: int, *, gpu: int = 0, name: str = "NVIDIA A100 MIG") -> str:
    return f"slice {gpu} {place} {uuid} {total} {free} {name}\n"


def fail(function: str, code: int, unit: int = -1) -> str:
    """`unit` is the number of a `gpu` or `slice` line of the state."""
    return f"fail {function} {code} {unit}\n"


BOTH, ONE, REFUSED, ABSENT = "both", "one", "refused", "absent"
GONE = {1, 9, 12, 18}
UNASKED = {3, 13}
MEMORY_V1 = fail("nvmlDeviceGetMemoryInfo_v2", 13)
SLICED = gpu("GPU-a", "0:10", mig=1) + gpu("GPU-b", "0:20") + mig_slice(0, "MIG-a", 5 * GIB, 4 * GIB)
PLAIN = gpu("GPU-a", "0:10") + gpu("GPU-b", "0:20")


def per_gpu(code: int, *, unasked: set[int]) -> str:
    return REFUSED if code in GONE - unasked else BOTH if code in unasked else ONE


# Where an error comes up, on which machine, and what must come of it.
ERRORS_AT: dict[str, tuple[str, Callable[[int], str]]] = {
    "nvmlInitWithFlags": (PLAIN, lambda code: ABSENT if code in (9, 12) else REFUSED),
    "nvmlShutdown": (PLAIN, lambda code: BOTH),
    "nvmlSystemGetDriverVersion": (PLAIN, lambda code: BOTH if code in UNASKED else REFUSED),
    "nvmlDeviceGetCount_v2": (PLAIN, lambda code: REFUSED),
    "nvmlDeviceGetHandleByIndex_v2": (PLAIN, lambda code: per_gpu(code, unasked=set())),
    "nvmlDeviceGetPciInfo_v3": (PLAIN, lambda code: per_gpu(code, unasked=UNASKED)),
    "nvmlDeviceGetMemoryInfo_v2": (PLAIN, lambda code: per_gpu(code, unasked=UNASKED | {25})),
    "nvmlDeviceGetMemoryInfo": (PLAIN + MEMORY_V1, lambda code: per_gpu(code, unasked={3})),
    "nvmlDeviceGetUUID": (PLAIN, lambda code: per_gpu(code, unasked=UNASKED)),
    "nvmlDeviceGetName": (PLAIN, lambda code: per_gpu(code, unasked=UNASKED)),
    "nvmlDeviceGetMigMode": (PLAIN, lambda code: per_gpu(code, unasked=UNASKED)),
    "nvmlDeviceGetMaxMigDeviceCount": (SLICED, lambda code: per_gpu(code, unasked=set())),
    "nvmlDeviceGetDisplayActive": (PLAIN, lambda code: BOTH),
    "nvmlDeviceGetComputeRunningProcesses_v3": (PLAIN, lambda code: BOTH),
    "nvmlDeviceGetGraphicsRunningProcesses_v3": (PLAIN, lambda code: BOTH),
}


def error_codes() -> list[int]:
    import pynvml

    codes = {value for name, value in vars(pynvml).items() if name.startswith("NVML_ERROR_")}
    return sorted(codes | {31, 77})  # and two that no binding knows yet


def look(shim: Path, folder: Path, cases: Sequence[Sequence[str]], *, deadline_s: float = 20.0) -> list[list[Any]]:
    """What a new probe sees of each case's states, read one after another."""
    env = os.environ | {"LD_LIBRARY_PATH": str(shim), "NVML_SHIM_STATE": str(folder / "state")}
    words = [sys.executable, "-m", "tests.support.nvml", str(deadline_s)]
    done = subprocess.run(
        words, cwd=ROOT, env=env, input=json.dumps(cases), capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr
    seen: list[list[Any]] = json.loads(done.stdout)
    return seen


def _look(probe: Nvml) -> dict[str, Any]:
    try:
        devices, error = [dataclasses.asdict(device) for device in probe.devices()], ""
    except DeviceError as caught:
        devices, error = [], str(caught)
    return {"devices": devices, "error": error, "absence": probe.absence, "problems": probe.problems}


def hear(shim: Path, folder: Path, states: Sequence[str], wanted: int) -> list[list[Any]]:
    """The faults (UUID, Xid) that a `FaultWatch` tells while the states follow each other; it is given `wanted` of
    them, and half a second for one too many.
    """
    env = os.environ | {"LD_LIBRARY_PATH": str(shim), "NVML_SHIM_STATE": str(folder / "state")}
    words = [sys.executable, "-m", "tests.support.nvml", "faults", str(wanted)]
    done = subprocess.run(
        words, cwd=ROOT, env=env, input=json.dumps(states), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    heard: list[list[Any]] = json.loads(done.stdout)
    return heard


def _hear(wanted: int) -> None:
    import queue

    from llamad.hardware.faults import Fault, FaultWatch

    state = Path(os.environ["NVML_SHIM_STATE"])
    faults: queue.Queue[Fault] = queue.Queue()
    first, *others = json.load(sys.stdin)
    state.write_text(first)
    watch = FaultWatch(faults.put, wait_s=0.05)
    watch.start()
    heard = []
    for text in others:
        scratch = state.with_name("scratch")
        scratch.write_text(text)
        scratch.replace(state)
        while len(heard) < wanted:
            heard.append(faults.get(timeout=20))
    watch.stop()
    try:
        heard.append(faults.get(timeout=0.5))
    except queue.Empty:
        print(json.dumps([[fault.uuid, fault.xid] for fault in heard]))


def main() -> None:
    if sys.argv[1] == "faults":
        _hear(int(sys.argv[2]))
    else:
        _look_at_all()


def _look_at_all() -> None:
    state = Path(os.environ["NVML_SHIM_STATE"])
    seen = []
    for states in json.load(sys.stdin):
        probe = Nvml(
            own_pids=lambda: {OWN_PID}, host=lambda: HOST, driver_files=["/"], deadline_s=float(sys.argv[1])
        )
        seen.append([])
        for text in states:
            scratch = state.with_name("scratch")
            scratch.write_text(text)
            scratch.replace(state)  # at once: a call that hangs reads it all the time
            seen[-1].append(_look(probe))
        probe.close()
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
