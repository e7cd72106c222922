"""A report for people: what is wrong first, aligned, with the reason and the command below it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from llamad.service.doctor.finding import Finding, Report, Severity
from llamad.text import printable

_ORDER = (Severity.ERROR, Severity.WARN, Severity.OK)
_COLOURS = {Severity.ERROR: "31;1", Severity.WARN: "33;1", Severity.OK: "32"}


def report_text(report: Report, *, colours: bool = False) -> str:
    """The whole report; it ends with a line that counts."""
    rows = sorted(_together(report.findings), key=lambda finding: _ORDER.index(finding.severity))
    words = [finding.check for finding in report.findings] + [one.check for one in report.unseen]
    width = max(map(len, words), default=0)
    lines = [line for finding in rows for line in _rows(finding, width, colours=colours)]
    for one in report.unseen:
        about = f"{one.about}: " if one.about else ""
        lines.append(f"{'-':<5}  {one.check:<{width}}  not seen: {printable(about + one.what)}")
    return "\n".join([*lines, "", _count(report)]) + "\n"


def _together(findings: Iterable[Finding]) -> Iterator[Finding]:
    """With one row for models of which the same is well."""
    same: dict[tuple[object, ...], list[Finding]] = {}
    for number, one in enumerate(findings):
        alike = (one.check, one.what, one.why) if one.severity is Severity.OK and one.about else (number,)
        same.setdefault(alike, []).append(one)
    for rows in same.values():
        yield rows[0].model_copy(update={"about": ", ".join(one.about for one in rows)})


def _rows(finding: Finding, width: int, *, colours: bool) -> Iterator[str]:
    severity = f"{finding.severity:<5}"
    if colours:
        severity = f"\x1b[{_COLOURS[finding.severity]}m{severity}\x1b[0m"
    about = f"{finding.about}: " if finding.about else ""
    yield f"{severity}  {finding.check:<{width}}  {printable(about + finding.what)}"
    indent = " " * (7 + width)
    if finding.why:
        yield f"{indent}  why   {printable(finding.why)}"
    if finding.cure:
        yield f"{indent}  cure  {printable(finding.cure)}"


def _count(report: Report) -> str:
    count = report.count()
    parts = [f"{number} {word}{'' if number == 1 else 's'}" for number, word in
             ((count[Severity.ERROR], "error"), (count[Severity.WARN], "warning")) if number]  # fmt: skip
    found = " and ".join(parts) or "Nothing wrong was found"
    left = "" if report.root or not report.unseen else "; root sees more: sudo llamad doctor"
    return f"{found}{left}."
