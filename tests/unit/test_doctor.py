"""`llamad doctor`: how checks are run, told and published. What each of them finds is in the files beside this one."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import pytest
from pydantic import ValidationError

from llamad.cli.main import main
from llamad.service.doctor import schema
from llamad.service.doctor.finding import Finding, Report, Seen, Severity, error, ok, unseen, warn
from llamad.service.doctor.registry import examine
from llamad.service.doctor.runner import Job, run_jobs
from llamad.service.doctor.text import report_text
from tests.support.doctor_host import make_host, wrong

ROOT = Path(__file__).parents[2]


# -- running -----------------------------------------------------------------------------------------------------


def test_a_check_that_hangs_is_told_and_holds_up_nobody() -> None:
    never = threading.Event()

    def hangs() -> Iterator[Seen]:
        yield ok("disk", "the first part")
        never.wait()

    def well(name: str) -> Iterator[Seen]:
        yield ok(name, "well")

    jobs = [Job("disk", hangs, "phi4", deadline_s=0.2), *(Job(f"c{n}", partial(well, f"c{n}")) for n in range(20))]
    began_s = time.monotonic()
    seen = run_jobs(jobs, at_once=2)
    assert time.monotonic() - began_s < 5
    never.set()
    first, late, *others = (one for one in seen if isinstance(one, Finding))
    assert (first.what, late.about, late.severity) == ("the first part", "phi4", Severity.ERROR)
    assert "no answer within 0.2 s" in late.what
    assert [one.check for one in others] == [f"c{n}" for n in range(20)]


def test_one_that_ends_after_it_was_given_up_counts_as_late() -> None:
    given_up, ended = threading.Event(), threading.Event()

    def slow() -> Iterator[Seen]:
        given_up.wait()
        yield ok("slow", "too late")

    def told() -> Finding:
        given_up.set()
        ended.set()
        return error("slow", "late", cure="look")

    def other() -> Iterator[Seen]:
        ended.wait()  # so the slow one ends while others still run
        time.sleep(0.1)
        yield ok("other", "well")

    seen = run_jobs([Job("slow", slow, deadline_s=0.1, late=told), Job("other", other)], at_once=2)
    assert [one.what for one in seen] == ["late", "well"]


def test_as_many_hang_as_like_to() -> None:
    never = threading.Event()

    def hangs() -> Iterable[Seen]:
        never.wait()
        return ()

    began_s = time.monotonic()
    seen = run_jobs([Job("nfs", hangs, str(n), deadline_s=0.1) for n in range(8)], at_once=2)
    assert len(wrong(seen)) == 8
    assert 0.4 <= time.monotonic() - began_s < 5
    never.set()


def test_a_bug_of_a_check_costs_that_check_alone() -> None:
    def broken() -> Iterator[Seen]:
        yield ok("a", "before")
        raise RuntimeError("oops")

    seen = run_jobs([Job("a", broken), Job("b", lambda: [ok("b", "well")])])
    assert [one.what for one in seen] == ["before", "the check itself failed: RuntimeError: oops (a bug of llamad)", "well"]


def test_a_host_where_nothing_is_wrong(tmp_path: Path) -> None:
    report = examine(make_host(tmp_path).host)
    assert wrong(report.findings) == []
    assert report.unseen == () and report.is_well and report.root
    checks = [finding.check for finding in report.findings]
    assert {"systemd", "account", "modules", "folders", "disks", "units", "engine", "settings"} <= set(checks)
    assert checks[-1] == "units"  # starting again what failed comes after the cures of the reasons


def test_the_engine_is_looked_at_where_every_definition_is_broken(tmp_path: Path) -> None:
    fakes = make_host(tmp_path)
    fakes.define("phi4", "modle = 1\n")
    findings = examine(fakes.host).findings
    assert {one.check for one in wrong(findings)} == {"definition"}
    assert [one.what for one in findings if one.check == "engine"] == [
        "llama-server b11669 (cpu, vulkan) sees Vulkan0 in the sandbox"
    ]


def test_a_model_on_a_dead_file_system_names_the_mount(tmp_path: Path) -> None:
    from llamad.service.doctor.definitions import hangs
    from tests.support.doctor_host import Fakes

    fakes: Fakes = make_host(tmp_path)
    fakes.define("far", 'model = "/srv/n f s/m.gguf"\n')
    fakes.tree.write("/proc/self/mountinfo", "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
                     "2 1 0:40 / /srv/n\\040f\\040s rw,relatime - nfs4 server:/export rw\n")  # fmt: skip
    late = hangs(fakes.host, fakes.host.usable()[0], 6)
    assert late.what == "the file system of /srv/n f s/m.gguf gives no answer within 6 s"
    assert "/srv/n f s is nfs4 of server:/export" in late.why
    assert late.cure == "umount --lazy --force '/srv/n f s'"


# -- telling -----------------------------------------------------------------------------------------------------

REPORT = Report(
    root=False,
    findings=(
        ok("account", "_llamad is in render and video"),
        ok("definition", "valid", about="a"),
        warn("others", "it changes llama-server", about="/etc/x", cure="mv a b"),
        ok("definition", "valid", about="b"),
        error("nodes", "the node\x1b[31m is missing", about="/dev/nvidia0", why="because", cure="make it"),
    ),
    unseen=(unseen("ledger", "locks: root only", about="a"),),
)


def test_text_is_aligned_and_begins_with_what_is_wrong() -> None:
    assert report_text(REPORT) == """\
error  nodes       /dev/nvidia0: the node?[31m is missing
                   why   because
                   cure  make it
warn   others      /etc/x: it changes llama-server
                   cure  mv a b
ok     account     _llamad is in render and video
ok     definition  a, b: valid
-      ledger      not seen: a: locks: root only

1 error and 1 warning; root sees more: sudo llamad doctor.
"""


def test_colours_change_no_column() -> None:
    coloured = report_text(REPORT, colours=True)
    assert coloured.startswith("\x1b[31;1merror\x1b[0m  nodes")
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == report_text(REPORT)


def test_nothing_wrong_in_words() -> None:
    report = Report(root=True, findings=(ok("a", "well"),), unseen=())
    assert report_text(report).endswith("\n\nNothing wrong was found.\n")
    assert report.is_well and not REPORT.is_well


def test_what_is_wrong_has_a_command_and_nothing_else_has() -> None:
    with pytest.raises(ValidationError):
        error("a", "bad", cure="")
    with pytest.raises(ValidationError):
        Finding(check="a", about="", severity=Severity.OK, what="well", cure="rm -r /")


def test_the_published_schema_is_that_of_the_models() -> None:
    """docs/make-schemas writes it."""
    assert (ROOT / "docs/schema/doctor.json").read_text() == schema.schema_text()
    assert "docs/schema/doctor.json" in (ROOT / "debian/llamad.install").read_text()


def test_a_report_survives_json_and_a_wrong_one_is_refused() -> None:
    text = REPORT.model_dump_json()
    assert Report.model_validate_json(text) == REPORT
    for key in ("findings", "unseen", "root"):
        less = {name: value for name, value in json.loads(text).items() if name != key}
        with pytest.raises(ValidationError):
            Report.model_validate(less)


def test_the_verb_on_the_real_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--config", str(tmp_path), "doctor", "--json"])
    report = Report.model_validate_json(capsys.readouterr().out)
    assert code == (0 if report.is_well else 1)
    assert main(["--config", str(tmp_path), "doctor", "nosuch"]) == 64
    assert "no definition named nosuch" in capsys.readouterr().err
