"""`llamad bench` and `llamad tune` on the real llama-server, against llama-bench, and as they are used."""

from __future__ import annotations

import json
from pathlib import Path

from tests.system.conftest import Bed, run


def test_a_stopped_model_is_measured_in_an_instance_of_its_own(bed: Bed, tmp_path: Path) -> None:
    bed.define("phi4", vulkan=False, extra="[placement]\nallow_cpu = true\n")
    out = tmp_path / "result.json"
    done = run("llamad", "bench", "phi4", "--prompt", "256", "--generate", "32", "--repeats", "3", "-o", str(out), timeout=180)
    print(done.stdout, done.stderr)
    result = json.loads(out.read_text())
    assert result["served_by"] == "temporary"
    assert bed.show("llamad@phi4", "ActiveState") == "inactive"


def test_a_running_model_is_measured_as_it_runs(bed: Bed, tmp_path: Path) -> None:
    bed.define("phi4", vulkan=False, extra="[placement]\nallow_cpu = true\n")
    bed.ctl("start", "llamad@phi4")
    done = run("llamad", "bench", "phi4", "--prompt", "256", "--generate", "32", "--repeats", "3", timeout=180)
    print(done.stdout, done.stderr)
    assert 0
