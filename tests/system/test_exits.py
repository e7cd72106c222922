"""Every way to end that tests/support/exits.py knows, with the real llama-server: its cause is found each time."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamad.supervision.cause import Death, classify
from llamad.supervision.intake import Intake
from tests.support.exits import EXITS, Exit, provoke
from tests.support.fakes import FakeReporter


@pytest.mark.parametrize("case", EXITS, ids=lambda case: case.name)
def test_the_cause_of_a_real_end(case: Exit, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.name.startswith("pytest"):
            parent.chmod(0o755)
    folder = tmp_path / "case"
    folder.mkdir()
    code, stdout, stderr = provoke(case, folder)
    intake = Intake(FakeReporter(), 1000)
    for stream, data in ((1, stdout), (2, stderr)):
        intake.feed(stream, data)
        intake.feed(stream, b"")
    limited = case.prefix[:1] == ("prlimit",)
    found = classify(Death(code, intake.evidence(), address_space_limited=limited)).name
    # How far a driver comes within a limit on address space is chance: it may get to say a word.
    allowed = {case.cause, "address-space"} if limited else {case.cause}
    assert found in allowed, intake.evidence()
    assert code != 0
