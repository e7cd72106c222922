"""What a check says. These models are also the format of `llamad doctor --json`: see docs/schema/doctor.json."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Severity(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    """Models run, or will as long as nothing else happens."""
    ERROR = "error"
    """A model does not run, or cannot be started."""


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Finding(_Row):
    """One thing that was looked at."""

    check: Annotated[str, Field(min_length=1, description="The check that found it.")]
    about: Annotated[str, Field(description="A definition, a file, a unit, a device; empty for the host.")]
    severity: Severity
    what: Annotated[str, Field(min_length=1, description="What was found, in one line.")]
    why: Annotated[str, Field(description="What it does, or where it comes from; may be empty.")] = ""
    cure: Annotated[str, Field(description="A command of sh, for root, that cures it; empty where severity is ok.")] = (
        ""
    )

    @model_validator(mode="after")
    def _is_cured_where_it_is_wrong(self) -> Self:
        if bool(self.cure) == (self.severity is Severity.OK):
            raise ValueError(f"{self.check}: a command belongs to what is wrong, and only to that")
        return self


class Unseen(_Row):
    """Something that could not be looked at."""

    check: str
    about: str
    what: Annotated[str, Field(min_length=1, description="What was not seen, and what it would take.")]


class Report(_Row):
    """What `llamad doctor --json` prints."""

    version: Literal[1] = 1
    root: Annotated[bool, Field(description="Whether it was run as root, who sees all.")]
    findings: tuple[Finding, ...]
    unseen: tuple[Unseen, ...]

    @property
    def is_well(self) -> bool:
        """Whether there is neither a warning nor an error."""
        return all(finding.severity is Severity.OK for finding in self.findings)

    def count(self) -> Counter[Severity]:
        """Findings by severity."""
        return Counter(finding.severity for finding in self.findings)


Seen = Finding | Unseen


def ok(check: str, what: str, *, about: str = "", why: str = "") -> Finding:
    """Nothing to do."""
    return Finding(check=check, about=about, severity=Severity.OK, what=what, why=why)


def warn(check: str, what: str, *, cure: str, about: str = "", why: str = "") -> Finding:
    """Something that will be a trouble, or is a small one."""
    return Finding(check=check, about=about, severity=Severity.WARN, what=what, why=why, cure=cure)


def error(check: str, what: str, *, cure: str, about: str = "", why: str = "") -> Finding:
    """Something that keeps a model from running."""
    return Finding(check=check, about=about, severity=Severity.ERROR, what=what, why=why, cure=cure)


def unseen(check: str, what: str, *, about: str = "") -> Unseen:
    """Something that could not be looked at."""
    return Unseen(check=check, about=about, what=what)
