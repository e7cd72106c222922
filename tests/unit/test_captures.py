"""The captures that the documentation shows are of this llamad: made by docs/make-captures, and not by hand."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from llamad.cli.grammar import make_parser, verbs_of
from llamad.service.picture import SIGNS
from llamad.service.table import HEADINGS

ROOT = Path(__file__).parents[2]
CAPTURES = sorted((ROOT / "docs" / "captures").glob("*.txt"))


@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.stem)
def test_a_capture_begins_with_what_was_typed(path: Path) -> None:
    first, *lines = path.read_text().splitlines()
    assert first.startswith("$ llamad ") and path.stem in verbs_of()
    assert make_parser().parse_args(shlex.split(first)[2:]).verb == path.stem
    assert lines and all(line.isascii() and line.isprintable() for line in lines)


def test_there_is_one_of_each_view() -> None:
    wanted = {"plan", "status", "top", "explain", "check"} | ({"doctor"} & set(verbs_of()))
    assert {path.stem for path in CAPTURES} >= wanted, "run docs/make-captures"
    for place in ("README.md", "docs/man/llamad.8.scd"):
        assert "captures" in (ROOT / place).read_text()


def test_they_have_the_columns_of_today() -> None:
    status = (ROOT / "docs/captures/status.txt").read_text().splitlines()
    assert tuple(status[1].split()) == HEADINGS, "run docs/make-captures"
    top = (ROOT / "docs/captures/top.txt").read_text()
    assert all(f"{sign} {part}" in top for part, sign in SIGNS.items()), "run docs/make-captures"
    assert "  ".join(HEADINGS[:2]).split() == top[top.index("NAME") :].split()[:2]
