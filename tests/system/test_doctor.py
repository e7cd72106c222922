"""`llamad doctor` on a real system: each fault is planted, named, and cured by the very command that is printed."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import jsonschema
import pytest

from llamad.service.doctor.finding import Finding, Report
from tests.support import doctor_faults
from tests.support.doctor_faults import SCRATCH, Expected
from tests.system.conftest import Bed, run

MEND = "#!/bin/sh\nsed -i 's/contxt/context/; s/tny.gguf/tiny.gguf/' \"$2\"\n"
SCHEMA = Path("/usr/share/llamad/schema/doctor.json")
AS_NOBODY = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--")


@pytest.fixture
def scratch() -> Iterator[None]:
    """With an editor that corrects two slips of the pen."""
    SCRATCH.mkdir(mode=0o755)
    (SCRATCH / "mend").write_text(MEND)
    (SCRATCH / "mend").chmod(0o755)
    yield
    shutil.rmtree(SCRATCH)


def doctor(*words: str) -> Report:
    """What the doctor says now, as the installed schema has it; its exit status says the same."""
    done = run("llamad", "doctor", "--json", *words, check=False)
    assert done.returncode in (0, 1), done.stderr
    jsonschema.validate(json.loads(done.stdout), json.loads(SCHEMA.read_text()))
    report = Report.model_validate_json(done.stdout)
    assert done.returncode == (0 if report.is_well else 1)
    return report


def finding_of(report: Report, expected: Expected) -> Finding:
    of_it = [one for one in report.findings if (one.check, one.about) == (expected.check, expected.about)]
    for finding in of_it:
        if re.search(expected.says, f"{finding.what} {finding.why}", re.S) and finding.severity == expected.severity:
            return finding
    raise AssertionError("\n".join([f"not found: {expected}", *wrong(report)]))


def wrong(report: Report) -> list[str]:
    return [f"{one.check} {one.about}: {one.what} {one.why}" for one in report.findings if one.severity != "ok"]


def cure(finding: Finding) -> None:
    """Run the printed command as it stands, as an admin's shell would."""
    assert finding.cure, finding
    environment = {
        **os.environ, "EDITOR": str(SCRATCH / "mend"), "APT_CONFIG": str(SCRATCH / "apt.conf"), "DEBIAN_FRONTEND": "noninteractive",
    }  # fmt: skip
    if not (SCRATCH / "apt.conf").exists():
        del environment["APT_CONFIG"]
    run("sh", "-c", finding.cure, env=environment)


@pytest.mark.parametrize("name", doctor_faults.ROUNDS)
def test_faults_are_named_and_the_printed_command_cures_them(bed: Bed, scratch: None, name: str) -> None:
    ports = doctor_faults.free_ports()
    with ExitStack() as stack:
        planted = [stack.enter_context(plant(ports)) for plant in doctor_faults.ROUNDS[name]]
        expected = [one for some in planted for one in some]
        report = doctor()
        findings = [finding_of(report, one) for one in expected]
        for finding in findings:
            cure(finding)
        left = wrong(doctor())
        assert left == [], left


def test_without_root_it_says_what_it_could_not_see(bed: Bed) -> None:
    bed.define("tiny")
    done = run(*AS_NOBODY, "llamad", "doctor", check=False)
    assert done.returncode == 0, done.stdout
    for words in ("not seen: the kernel's log", "not seen: tiny: what the engine sees in the unit's sandbox"):
        assert words in done.stdout
    assert re.search(r"^ok +engine +tiny: llama-server b\d+ \(cpu, rpc, vulkan\) sees Vulkan0$", done.stdout, re.M)
    assert done.stdout.endswith("Nothing wrong was found; root sees more: sudo llamad doctor.\n")
    assert "\x1b" not in done.stdout


def test_what_it_leaves_behind_is_nothing(bed: Bed) -> None:
    bed.define("tiny")
    watched = ("/run/llamad", "/var/lib/llamad", "/var/cache/llamad", "/etc/llamad", "/etc/systemd/system")
    before = run("find", *watched, "-newermt", "@0", "-printf", "%p %T@ %m %U\n").stdout
    assert wrong(doctor("tiny")) == []
    assert run("find", *watched, "-newermt", "@0", "-printf", "%p %T@ %m %U\n").stdout == before
    assert run("systemctl", "list-units", "--all", "--no-legend", "run-*.service").stdout.strip() == ""
