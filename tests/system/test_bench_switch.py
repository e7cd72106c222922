"""`bench/switch` measures what it says: not how fast, which a shared machine cannot tell, but that every figure is there."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.system.conftest import run

BENCH = Path(__file__).parents[2] / "bench" / "switch"


@pytest.mark.alone
@pytest.mark.timeout(200)
def test_a_switch_is_measured_beside_the_router_mode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures.json"
    done = run(sys.executable, str(BENCH), "--rounds", "1", "--json", str(out), check=False, timeout=180)
    with capsys.disabled():
        print(f"\n{done.stdout}", end="")
    assert out.exists(), done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert {name: len(values) for name, values in found.items()} == {"load": 2, "llamad": 2, "router mode": 2}
    assert all(value > 0 for values in found.values() for value in values)
    missed = "THE BAR WAS MISSED" in done.stdout
    assert done.returncode == missed and ("the bar held" in done.stdout) is not missed
