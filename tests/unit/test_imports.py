"""The import rule: rooms import only what lies below them, and the pure rooms touch no world."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "llamad"
LEVELS = [
    {"errors", "units", "clock", "store", "frozen", "threads", "data", "text"},
    {"gguf", "hardware", "config"},
    {"planning", "export"},
    {"engine", "ledger", "models"},
    {"front", "supervision"},
    {"service"},
    {"measure"},
    {"cli"},
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
PURE = [
    "planning", "export", "ledger/lease.py", "ledger/arithmetic.py", "front/head.py", "front/body.py", "supervision/machine.py",
    "supervision/cause.py", "supervision/causes.py", "supervision/signatures.py", "supervision/step_down.py",
    "supervision/backoff.py", "supervision/growth.py", "supervision/words.py", "units.py", "errors.py", "text.py", "engine/log.py", "engine/telling.py", "engine/proof.py",
    "engine/flags.py", "models/source.py", "models/choose.py", "models/recipes.py", "models/speed.py",
    "models/recommend.py", "gguf/facts.py", "gguf/ggml_types.py", "gguf/read.py", "config/definition.py",
    "measure/statistics.py", "measure/results.py", "measure/report.py", "measure/candidates.py",
]  # fmt: skip
WORLD = {"asyncio", "os", "socket", "pynvml", "subprocess", "threading", "time", "shutil", "psutil"}
FILES = sorted(ROOT.rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    own = room(path)
    if own in ("__init__", "__main__"):
        return
    for name in imported(path):
        parts = name.split(".")
        if parts[0] != "llamad" or len(parts) < 2 or parts[1] == own:
            continue
        if own == "errors":
            raise AssertionError(f"{path} imports {name}")
        lower = LEVEL[parts[1]] < LEVEL[own]
        base = LEVEL[parts[1]] == 0 and LEVEL[own] == 0
        assert lower or base, f"{path} imports {name}"


@pytest.mark.parametrize("name", PURE)
def test_pure_rooms_touch_no_world(name: str) -> None:
    place = ROOT / name
    files = [place] if place.is_file() else sorted(place.rglob("*.py"))
    assert files, f"{name} is gone: correct the list"
    for path in files:
        for module in imported(path):
            assert module.split(".")[0] not in WORLD, f"{path} imports {module}"


def test_every_room_has_a_level() -> None:
    rooms = {room(path) for path in FILES} - {"__init__", "__main__"}
    assert rooms <= set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_stay_readable(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 420, "split it"
