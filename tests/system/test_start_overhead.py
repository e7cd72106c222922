"""The published figure of the start: printed with its spread, and held against its bar."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.system.conftest import Bed, run

ATTEMPTS = 5  # the figure is about llamad: a neighbour that was busy for a minute may spoil some, not all
BENCH = Path(__file__).parents[2] / "bench" / "start_overhead"


@pytest.mark.alone
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", ["CPU", "Vulkan0"])
def test_the_unit_is_ready_soon_after_a_bare_server_would_have_answered(
    bed: Bed, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(ATTEMPTS):
        done = run(sys.executable, str(BENCH), "--runs", "8", "--case", case, check=False, timeout=300)
        with capsys.disabled():
            print(f"\n{done.stdout}", end="")
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stdout + done.stderr
