"""Runs an engine for a look, never as root: in the unit's sandbox where systemd can make one, else as who we are.

As root without systemd it is run as the service's user (see `engine/query.py`).
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence

from llamad.engine.query import run_query
from llamad.errors import LlamadError
from llamad.service.doctor.host import Answer, Commands

Wrap = Callable[[str, Sequence[str], float], list[str]]
"""From a model's name, a command and seconds to the command that runs it in the sandbox, for so long at most."""
_WITH_ENVIRONMENT = ("/bin/sh", "-c", 'eval "$(cat)"; exec "$@"', "sh")
"""What a definition puts into the environment must appear in no command line, and never be root's."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_START_S = 3.0
"""What systemd may take to make the sandbox."""


class UnitSandbox:
    """The sandbox of llamad@NAME, as `wrap` writes the command for it."""

    is_the_units = True

    def __init__(self, wrap: Wrap, commands: Commands) -> None:
        self._wrap = wrap
        self._commands = commands

    def run(self, name: str, argv: Sequence[str], env: Mapping[str, str], deadline_s: float) -> Answer | None:
        command = self._wrap(name, [*_WITH_ENVIRONMENT, *argv], deadline_s)
        pairs = (f"export {key}={shlex.quote(value)}\n" for key, value in env.items() if _NAME.fullmatch(key))
        return self._commands.ask(*command, deadline_s=deadline_s + _START_S, told="".join(pairs))


class OwnSandbox:
    """None: what is run sees what we see."""

    is_the_units = False

    def run(self, _name: str, argv: Sequence[str], env: Mapping[str, str], deadline_s: float) -> Answer | None:
        path = env.get("PATH", os.defpath)
        try:
            result = run_query(argv, {**env, "PATH": path, "HOME": "/nonexistent"}, deadline_s)
        except LlamadError:
            return None
        return None if result.timed_out else Answer(result.returncode, result.stdout, result.stderr)
