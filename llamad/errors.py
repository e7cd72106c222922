"""Every error that llamad shows to an admin: what failed, where, why, and what to do about it.

Errors are raised with plain facts and turned into text and an exit code at one place, `llamad.cli.main`
(and by the daemon, for the journal). Nothing here formats for a particular output.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of `llamad`, from sysexits.h. The unit's RestartPreventExitStatus= names the final ones."""

    OK = 0
    USAGE = 64
    BAD_MODEL = 65
    NO_MODEL_FILE = 66
    NO_DEVICE = 69
    CRASH_LOOP = 70
    TEMPORARY = 75
    NO_PERMISSION = 77
    CONFIG = 78


@dataclass(frozen=True)
class Where:
    """A place in a file: 1-based line and column; 0 where the place is the file as a whole."""

    path: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        if not self.line:
            return self.path
        return f"{self.path}:{self.line}:{self.column}"


class LlamadError(Exception):
    """An expected failure. `str()` is one line: `where: what: why; fix` with the empty parts left out."""

    exit_code = ExitCode.CRASH_LOOP

    def __init__(self, what: str, *, where: Where | None = None, why: str = "", fix: str = "") -> None:
        self.what = what
        self.where = where
        self.why = why
        self.fix = fix
        super().__init__(what)

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        if self.why:
            text += f": {self.why}"
        if self.fix:
            text += f"; {self.fix}"
        return text


class UsageError(LlamadError):
    """The command line is wrong."""

    exit_code = ExitCode.USAGE


class BadModelError(LlamadError):
    """The model file is there but cannot be used: not a GGUF, truncated, hostile, or not supported."""

    exit_code = ExitCode.BAD_MODEL


class ModelMissingError(LlamadError):
    """The model file (or one of its shards) does not exist. May appear later: the unit is retried."""

    exit_code = ExitCode.NO_MODEL_FILE


class DeviceError(LlamadError):
    """No usable device, or a planned one is gone. May appear later: the unit is retried."""

    exit_code = ExitCode.NO_DEVICE


class ChildError(LlamadError):
    """llama-server died too often, or cannot be run at all."""

    exit_code = ExitCode.CRASH_LOOP


class BusyError(LlamadError):
    """Memory, an address or a name is held by another. May become free: the unit is retried."""

    exit_code = ExitCode.TEMPORARY


class AccessError(LlamadError):
    """Permission denied, by file modes or by the unit's sandbox."""

    exit_code = ExitCode.NO_PERMISSION


_SHORT = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


def os_error(what: str, error: OSError, fix: str) -> AccessError | BusyError:
    """What the kernel refused: BusyError where only room is short (a full disk is emptied some day, and the
    unit must then start by itself), AccessError with `fix` otherwise.
    """
    if error.errno in _SHORT:
        return BusyError(what, why=error.strerror or "", fix="make room: `df -h; df -i`, `ulimit -n`")
    return AccessError(what, why=error.strerror or str(error), fix=fix)


class ConfigError(LlamadError):
    """A definition or host setting is wrong. One problem; several are raised as `ConfigErrors`."""

    exit_code = ExitCode.CONFIG


class ConfigErrors(ConfigError):
    """All problems of a definition at once, in the order of their places; `str()` has a line for each."""

    def __init__(self, problems: list[LlamadError]) -> None:
        if not problems:
            raise ValueError("a list of problems must not be empty")
        super().__init__(f"{len(problems)} problems", where=problems[0].where)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class InternalError(LlamadError):
    """A rule of llamad's own was broken: a bug. Never expected, always reported with its trace."""
