"""One case of `tests/unit/test_devices_to_plan.py` after another, each from a driver's answers to a plan or a refusal.

Runs in a process of its own, `python -m tests.support.devices_to_plan FOLDER`: the driver's library is found by
LD_LIBRARY_PATH. Reads a list of cases and prints what came of each.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llamad.config.definition import Placement
from llamad.engine.build import Capabilities
from llamad.engine.devices import DeviceFinder, Surroundings
from llamad.engine.environment import child_environment
from llamad.engine.names import child_names, visible_uuids
from llamad.errors import LlamadError
from llamad.hardware.amdgpu import AmdGpus
from llamad.hardware.device import HostMemory
from llamad.hardware.nvml import Nvml
from llamad.planning.plan import BuildGates
from llamad.planning.solve import plan
from llamad.units import GIB
from tests.support.planning import facts_of
from tests.support.shapes import LLAMA31_8B

HOST = HostMemory(64 * GIB, 50 * GIB)


def outcome(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The plan with the child's environment, or the class and the text of the refusal."""
    Path(os.environ["NVML_SHIM_STATE"]).write_text(case["state"])
    (folder / "listing").write_text(f"Available devices:\n{case['listing']}")
    placement = Placement(**case.get("placement", {}))
    written: dict[str, str] = case.get("environment", {})
    nvml = Nvml(host=lambda: HOST, driver_files=["/"], deadline_s=case.get("deadline_s", 20.0))
    server = Capabilities(str(folder / "llama-server"), "x", 1, frozenset(), key=case["listing"])
    finder = DeviceFinder(
        server,
        child_environment(written, folder, inherited={}),
        nvml=nvml,
        amdgpu=AmdGpus(folder / "sys"),
        cache_file=folder / "devices.json",
        host=lambda: HOST,
        surroundings=Surroundings((), folder, folder / "boot"),
    )
    try:
        devices = finder.find()
        made = plan(facts_of(LLAMA31_8B), devices, HOST, placement, frozenset(), BuildGates())
    except LlamadError as error:
        return {"refused": type(error).__name__, "exit": int(error.exit_code), "text": str(error)}
    finally:
        nvml.close()
    env = child_environment(written, folder, visible_uuids(made.devices), inherited={})
    return {
        "plan": [asdict(device) for device in made.devices],
        "host_bytes": made.host.total_bytes,
        "child": child_names(made.devices),
        "visible": env.get("CUDA_VISIBLE_DEVICES"),
        "order": env["CUDA_DEVICE_ORDER"],
        "left_out": finder.left_out,
    }


def main() -> None:
    folder = Path(sys.argv[1])
    print(json.dumps([outcome(case, folder) for case in json.load(sys.stdin)]))


if __name__ == "__main__":
    main()
