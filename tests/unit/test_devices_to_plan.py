"""From the driver's answers to a plan and the child's environment, or to a refusal: one table, nothing left out between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.nvml import (
    ERRORS_AT,
    GIB,
    ROOT,
    build_shim,
    error_codes,
    fail,
    gpu,
    mig_slice,
    needs_shim,
)

pytestmark = needs_shim

ONE_LISTED = "  CUDA0: NVIDIA RTX 4080 (16012 MiB, 14000 MiB free)\n"
TWO_LISTED = ONE_LISTED + "  CUDA1: NVIDIA RTX 4080 (16012 MiB, 14000 MiB free)\n"
SLICE_LISTED = "  CUDA0: NVIDIA A100 MIG (4864 MiB, 4800 MiB free)\n"
JETSON_LISTED = "  CUDA0: Orin (nvgpu) (62000 MiB, 30000 MiB free)\n"
NONE_LISTED = "  (none)\n"

TWO = gpu("GPU-busy", "0:10", free=9 * GIB) + gpu("GPU-free", "0:20")
MIG = gpu("GPU-m", "0:10", mig=1) + mig_slice(0, "MIG-small", 5 * GIB, 4 * GIB) + mig_slice(2, "MIG-big", 20 * GIB, 19 * GIB)
JETSON = gpu("GPU-orin", name="Orin (nvgpu)") + fail("nvmlDeviceGetMemoryInfo_v2", 3) + fail("nvmlDeviceGetPciInfo_v3", 3)


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("machine")
    made.chmod(0o777)
    server = made / "llama-server"
    server.write_text(f"#!/bin/sh\ncat {made}/listing\n")
    server.chmod(0o755)
    return made


def outcomes(shim: Path, folder: Path, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    env = os.environ | {"LD_LIBRARY_PATH": str(shim), "NVML_SHIM_STATE": str(folder / "state")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.devices_to_plan", folder],
        cwd=ROOT, env=env, input=json.dumps(cases), capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


# What the driver says, what llama-server lists, what the admin wrote -> the planned UUID, CUDA_VISIBLE_DEVICES.
MACHINES: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "the freest of two": ({"state": TWO, "listing": TWO_LISTED}, "GPU-free", "GPU-free"),
    "the admin's number": (
        {"state": TWO, "listing": ONE_LISTED, "environment": {"CUDA_VISIBLE_DEVICES": "0"}},
        "GPU-busy",
        "GPU-busy",
    ),
    "the admin's shortened UUID": (
        {"state": TWO, "listing": ONE_LISTED, "environment": {"CUDA_VISIBLE_DEVICES": "GPU-b"}},
        "GPU-busy",
        "GPU-busy",
    ),
    "which of two equal ones is not known": (
        {
            "state": TWO,
            "listing": ONE_LISTED,
            "environment": {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "FASTEST_FIRST"},
        },
        "",
        "1",
    ),
    "the larger slice, alone": ({"state": MIG, "listing": SLICE_LISTED}, "MIG-big", "MIG-big"),
    "the slice that was named": (
        {"state": MIG, "listing": SLICE_LISTED, "placement": {"gpus": ("MIG-big",)}},
        "MIG-big",
        "MIG-big",
    ),
    "the host's memory": ({"state": JETSON, "listing": JETSON_LISTED}, "GPU-orin", "GPU-orin"),
    "a lost GPU beside a well one": (
        {"state": TWO + fail("nvmlDeviceGetMemoryInfo_v2", 15, 0), "listing": ONE_LISTED},
        "GPU-free",
        "GPU-free",
    ),
    "an old driver": (
        {"state": TWO + fail("nvmlDeviceGetMemoryInfo_v2", 13), "listing": TWO_LISTED},
        "GPU-free",
        "GPU-free",
    ),
    "processes of unknown size": (
        {"state": gpu("GPU-free") + "process 0 5 -1\ngraphics 0 6 -1\n", "listing": ONE_LISTED},
        "GPU-free",
        "GPU-free",
    ),
}


@pytest.fixture(scope="module")
def made(shim: Path, folder: Path) -> dict[str, dict[str, Any]]:
    return dict(zip(MACHINES, outcomes(shim, folder, [case for case, *_ in MACHINES.values()]), strict=True))


@pytest.mark.parametrize("machine", MACHINES)
def test_the_right_card_by_its_uuid(made: dict[str, dict[str, Any]], machine: str) -> None:
    _, uuid, visible = MACHINES[machine]
    found = made[machine]
    assert "plan" in found, found
    (device,) = found["plan"]
    assert (device["uuid"], found["visible"]) == (uuid, visible)
    if visible == uuid:
        assert list(found["child"].values()) == ["CUDA0"]
        assert found["order"] == "PCI_BUS_ID"
    parts = device["parts"]
    total = sum(parts.values())
    assert 5 * GIB - GIB // 2 < total <= device["free_bytes"] <= device["total_device_bytes"] < 65 * GIB


def test_device_and_host_together_have_room_in_the_hosts_memory(made: dict[str, dict[str, Any]]) -> None:
    found = made["the host's memory"]
    (device,) = found["plan"]
    assert device["free_bytes"] == 50 * GIB and device["total_device_bytes"] == 64 * GIB
    assert sum(device["parts"].values()) + found["host_bytes"] <= 50 * GIB


def test_a_lost_gpu_is_said(made: dict[str, dict[str, Any]]) -> None:
    assert "GPU 0 is lost" in made["a lost GPU beside a well one"]["left_out"][0]


def test_a_gpu_in_mig_mode_without_slices_is_refused(shim: Path, folder: Path) -> None:
    (found,) = outcomes(shim, folder, [{"state": gpu(mig=1), "listing": NONE_LISTED}])
    assert (found["refused"], found["exit"]) == ("DeviceError", 69) and "mig -cgi" in found["text"]


@pytest.mark.parametrize("function", ["nvmlInitWithFlags", "nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetMemoryInfo_v2"])
def test_a_driver_that_hangs_is_a_refusal_that_is_tried_again(shim: Path, folder: Path, function: str) -> None:
    (found,) = outcomes(
        shim, folder, [{"state": gpu() + f"hang {function}\n", "listing": ONE_LISTED, "deadline_s": 0.5}]
    )
    assert (found["refused"], found["exit"]) == ("DeviceError", 69) and "does not answer" in found["text"]


def test_a_model_is_never_spread_over_slices(shim: Path, folder: Path) -> None:
    """Each of the two has half the room that it needs; two whole cards like that do."""
    slices = [mig_slice(place, f"MIG-{place}", 4 * GIB, 4 * GIB - (1 << 27)) for place in (0, 1)]
    cards = [gpu(f"GPU-{n}", f"0:{n}0", total=4 * GIB, reserved=0, free=4 * GIB - (1 << 27)) for n in (1, 2)]
    listing = SLICE_LISTED.replace("4864", "4096").replace("4800", "3900")
    two = "".join(f"  CUDA{n}: NVIDIA RTX 4080 (4096 MiB, 3900 MiB free)\n" for n in (0, 1))
    sliced, beside, whole = outcomes(
        shim,
        folder,
        [
            {"state": gpu(mig=1) + "".join(slices), "listing": listing},
            {"state": gpu(mig=1, bus="0:50") + slices[0] + cards[0], "listing": listing},
            {"state": "".join(cards), "listing": two},
        ],
    )
    assert sliced.get("exit") in (75, 78) and beside.get("exit") in (75, 78), (sliced, beside)
    assert len(whole["plan"]) == 2 and whole["visible"] == "GPU-1,GPU-2"


@pytest.fixture(scope="module")
def every_error(shim: Path, folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    keys = [(function, code) for function in ERRORS_AT for code in error_codes()]
    sliced = gpu(mig=1) + mig_slice(0, "MIG-a", 16 * GIB, 15 * GIB, name="NVIDIA RTX 4080")
    cases = []
    for function, code in keys:
        machine = sliced if function == "nvmlDeviceGetMaxMigDeviceCount" else gpu("GPU-a")
        old = fail("nvmlDeviceGetMemoryInfo_v2", 13) if function == "nvmlDeviceGetMemoryInfo" else ""
        # The engine lists the card as long as the driver is there, also where NVML has no answer.
        listing = NONE_LISTED if code in (9, 12) else ONE_LISTED
        cases.append({"state": machine + old + fail(function, code), "listing": listing})
    return dict(zip(keys, outcomes(shim, folder, cases), strict=True))


@pytest.mark.parametrize("function", ERRORS_AT)
def test_each_error_is_a_right_plan_or_a_typed_refusal(
    every_error: dict[tuple[str, int], dict[str, Any]], function: str
) -> None:
    for (position, code), found in every_error.items():
        if position != function:
            continue
        wanted = ERRORS_AT[function][1](code)
        if wanted == "both" and code not in (9, 12):
            assert "plan" in found, f"{function} {code}: {found}"
            (device,) = found["plan"]
            no_uuid = function == "nvmlDeviceGetUUID"
            assert device["uuid"] == ("" if no_uuid else "GPU-a") and device["name"] == "CUDA0"
            assert found["visible"] == (None if no_uuid else "GPU-a")
            untold = "MemoryInfo" in function and code == 3  # then the engine's figure counts, not the host's
            assert device["free_bytes"] == (14000 << 20 if untold else 15 * GIB)
        else:
            assert found.get("exit") == 69 and found["text"], f"{function} {code}: {found}"
            assert found["refused"] in ("DeviceError", "DriverUpgraded", "NoDevice")
