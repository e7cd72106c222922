"""Linters and the type checker are tests."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def tool(name: str) -> list[str]:
    import shutil

    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found:
        return [found]
    if importlib.util.find_spec(name):
        return [sys.executable, "-m", name]
    pytest.fail(f"{name} is not installed: pip install llamad[dev]")


def run(*argv: str) -> None:
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff() -> None:
    run(*tool("ruff"), "check", "--no-cache", "llamad", "tests", "bench")


@pytest.mark.timeout(300)
def test_mypy(tmp_path: Path) -> None:
    run(*tool("mypy"), "--cache-dir", str(tmp_path), "llamad")
