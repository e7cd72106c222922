"""Every fault that can be provoked on a unit, one by one; and the command that prints them as a table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import tests.support.provoke_engine
import tests.support.provoke_host  # noqa: F401
from tests.support.provoke import PROVOCATIONS
from tests.system.conftest import Bed, run

BENCH = Path(__file__).parents[2] / "bench" / "faults"

pytestmark = pytest.mark.timeout(400)

ONLY_IN_THE_BENCH = {"no-device", "late-device", "race-for-memory"}
"""A minute each for what test_service.py, test_devices.py and test_ledger.py hold too: `bench/faults` provokes them."""


@pytest.mark.parametrize("name", [name for name in PROVOCATIONS if name not in ONLY_IN_THE_BENCH])
def test_a_fault_is_survived(bed: Bed, name: str) -> None:
    PROVOCATIONS[name].run(bed)


@pytest.mark.alone
def test_the_bench_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "faults.json"
    done = run(sys.executable, str(BENCH), "--only", "child-killed", "daemon-killed", "--json", str(out), check=False, timeout=120)
    with capsys.disabled():
        print(f"\n{done.stdout}", end="")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 held" in done.stdout
    figures = json.loads(out.read_text())
    assert figures["child-killed"]["detected_s"] < 1.0 and figures["daemon-killed"]["served_s"] < 10.0
