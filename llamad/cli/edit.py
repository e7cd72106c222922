"""`llamad edit NAME`: edit a definition as visudo edits sudoers."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from llamad.cli.main import for_terminal
from llamad.cli.rehearsal import refusal_of
from llamad.cli.terminal import ask
from llamad.config.names import HOST_FILE, is_definition_file
from llamad.errors import ExitCode, UsageError
from llamad.service.editing import HOST_NAME, Answer, Desk, Outcome, edit
from llamad.service.editor import find_editor, run_editor
from llamad.service.systemctl import ROUTER_UNIT, Systemctl, unit_of
from llamad.service.upkeep import require_definition

_QUESTION = "What now? (e)dit again, e(x)it without saving, (Q)uit and install it anyway:"


def run(args: argparse.Namespace) -> int:
    """Edit, check, install; 78 where it was not installed for a mistake."""
    if args.name != HOST_NAME:
        require_definition(args.name, args.config)
    file = _file(args.name, args.drop_in, args.config)
    command = find_editor(os.environ)
    plan = (lambda _name, _folder: "") if args.no_plan else refusal_of
    desk = Desk(lambda copy, line: run_editor(command, copy, line), _ask, _say, plan)
    outcome = edit(args.name, file, args.config, desk)
    if outcome is Outcome.UNCHANGED:
        print(f"{file} is unchanged")
    elif outcome is Outcome.LEFT:
        print(f"{file} was not saved", file=sys.stderr)
        return int(ExitCode.CONFIG)
    else:
        print(f"wrote {file}")
        _say_what_follows(args.name)
    return 0


def _file(name: str, drop_in: str | None, root: Path) -> Path:
    if drop_in is None:
        return root / (HOST_FILE if name == HOST_NAME else f"{name}.toml")
    file_name = f"{drop_in.removesuffix('.toml')}.toml"
    if name == HOST_NAME or "/" in drop_in or not is_definition_file(file_name):
        fix = "a file's name, such as 10-lan; llamad.toml has no drop-ins"
        raise UsageError(f'"{drop_in}" is no drop-in of {name}', fix=fix)
    return root / f"{name}.toml.d" / file_name


def _ask() -> Answer:
    """Who cannot be asked leaves the file as it was."""
    while True:
        typed = ask(_QUESTION)
        if typed is None:
            return Answer.LEAVE
        if typed in list(Answer):
            return Answer(typed)


def _say(text: str) -> None:
    print(for_terminal(text), file=sys.stderr)


def _say_what_follows(name: str) -> None:
    units = Systemctl()
    if not units.are_there():
        return
    if name == HOST_NAME:
        print("models that run notice it by themselves, unless `watch = false`; the router: `systemctl reload llamad`")
        return
    if units.is_active(unit_of(name)):
        print(f"llamad@{name} notices it by itself, unless `watch = false`; see `llamad status {name}`")
    if units.is_active(ROUTER_UNIT):
        print("the router reads it with `systemctl reload llamad`")
