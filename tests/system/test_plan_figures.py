"""The published figures of the planner, on a sample of the cases: printed, and held to their bars.

llama-server is asked on cards that are not there, with the memory rules of CUDA: see tests/support/ggml_card.c.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.system.conftest import run

BENCH = Path(__file__).parents[2] / "bench"


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("tool", "words"),
    [("plan_accuracy", ("--sample", "150")), ("plan_optimality", ("--cases", "8"))],
    ids=["accuracy", "optimality"],
)
def test_figures(tool: str, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    done = run(sys.executable, str(BENCH / tool), *words, check=False, timeout=280)
    with capsys.disabled():
        print(f"\n{done.stdout}", end="")
    assert done.returncode == 0, done.stdout + done.stderr
