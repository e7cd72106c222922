"""`bench/supervision` runs, and what it finds does not grow and costs nothing while idle. Times are for quiet machines."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "supervision"


def bench() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("bench_supervision", str(BENCH))
    spec = importlib.util.spec_from_loader("bench_supervision", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    loader.exec_module(module)
    return module


@pytest.mark.alone
@pytest.mark.timeout(300)
def test_a_short_run(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    words = ["--deaths", "5", "--restarts", "300", "--idle", "3", "--daemon-deaths", "1", "--json", str(out)]
    done = subprocess.run([sys.executable, BENCH, *words], capture_output=True, text=True, timeout=280)
    assert out.exists(), done.stdout + done.stderr
    figures = json.loads(out.read_text())
    bars = bench().missed(figures)
    assert done.returncode == bool(bars)
    assert {bar for bar in bars if "detected" not in bar and "next exec" not in bar} == set()
    assert figures["restarts"] >= 300
    assert 5 < figures["idle_pss_mib"] < 35 and figures["idle_threads"] >= 1


GOOD: dict[str, Any] = {
    "detected_p99_ms": 5.0, "next_exec_p50_ms": 10.0, "children_left": 0, "idle_cpu_percent": 0.0,
    "idle_wake_ups_per_s": 0.3, "idle_pss_mib": 25.0,
    "before": {"fds": 9, "threads": 1, "resident_kib": 27000}, "after": {"fds": 9, "threads": 1, "resident_kib": 27100},
}  # fmt: skip


@pytest.mark.parametrize(
    ("worse", "bar"),
    [
        ({"detected_p99_ms": 20.1}, "a death is detected"),
        ({"next_exec_p50_ms": 50.1}, "the next exec"),
        ({"daemon_next_exec_p50_ms": 50.1}, "the daemon's next exec"),
        ({"children_left": 1}, "no child left"),
        ({"idle_cpu_percent": 0.11}, "idle: processor"),
        ({"idle_wake_ups_per_s": 2.1}, "idle: wake-ups"),
        ({"idle_pss_mib": 35.1}, "idle: memory"),
        ({"after": {"fds": 10, "threads": 1, "resident_kib": 27000}}, "no file descriptor more"),
        ({"after": {"fds": 9, "threads": 2, "resident_kib": 27000}}, "no thread more"),
        ({"after": {"fds": 9, "threads": 1, "resident_kib": 27600}}, "no memory more"),
    ],
)
def test_each_bar_can_be_missed(worse: dict[str, Any], bar: str) -> None:
    assert bench().missed(GOOD) == []
    assert bench().missed({**GOOD, **worse}) == [bar]
