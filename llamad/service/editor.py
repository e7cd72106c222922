"""The admin's editor."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from llamad.errors import ChildError

_FALLBACKS = ("sensible-editor", "editor", "nano", "vi")
_KNOWS_LINES = frozenset({"vi", "vim", "nvim", "vim.tiny", "vim.basic", "nano", "emacs", "joe", "mcedit"})


def find_editor(environ: Mapping[str, str], which: Callable[[str], str | None] = shutil.which) -> list[str]:
    """The command of $VISUAL, $EDITOR, or what Debian offers. Raises ChildError where there is none."""
    for key in ("VISUAL", "EDITOR"):
        if environ.get(key, "").strip():
            try:
                return shlex.split(environ[key])
            except ValueError as error:
                raise ChildError(f"{key} is no command", why=str(error), fix=f"correct {key}") from None
    for name in _FALLBACKS:
        if which(name):
            return [name]
    raise ChildError("there is no editor", fix="set VISUAL or EDITOR, or `apt install nano`")


def run_editor(command: list[str], file: Path, line: int) -> int:
    """Wait for the editor; its exit status. Keys that interrupt are for it alone. Raises ChildError."""
    at = [f"+{line}"] if line and os.path.basename(command[0]) in _KNOWS_LINES else []
    numbers = (signal.SIGINT, signal.SIGQUIT)
    # A handler of ours, not SIG_IGN, which the editor would inherit.
    before = {number: signal.signal(number, lambda _number, _frame: None) for number in numbers}
    try:
        return subprocess.run([*command, *at, str(file)], check=False).returncode
    except OSError as error:
        raise ChildError(f"cannot run {command[0]}", why=error.strerror or "", fix="set VISUAL or EDITOR") from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
