"""The definitions: all that `llamad check` finds, with the command that mends it, and where their models lie."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator

from llamad.config.access import SERVICE_USER, access_problem
from llamad.config.load import load_host
from llamad.config.loaded import Loaded
from llamad.config.names import HOST_FILE, misnamed_files
from llamad.errors import ConfigErrors, LlamadError
from llamad.service.checks import check_loaded
from llamad.service.doctor.finding import Finding, Seen, error, ok, unseen
from llamad.service.doctor.host import Commands, Host

NAME = "definition"
HOST_SETTINGS = "settings"
_COMMAND = re.compile(r"`([^`]+)`")


def check_host_settings(host: Host) -> Iterable[Seen]:
    """llamad.toml, and files that no name reaches."""
    file = str(host.config / HOST_FILE)
    try:
        load_host(host.config)
    except LlamadError as problem:
        yield from _located(host, HOST_SETTINGS, file, problem)
    else:
        yield ok(HOST_SETTINGS, f"{file} is valid")
    for misnamed in misnamed_files(host.config):
        path = misnamed.where.path if misnamed.where else ""
        lower = os.path.join(os.path.dirname(path), os.path.basename(path).lower())
        cure = f"mv -n {shlex.quote(path)} {shlex.quote(lower)}"
        yield error(NAME, misnamed.what, about=path, why=misnamed.why, cure=cure)
    if not host.names:
        yield ok(NAME, f"no definitions in {host.config}: `llamad add NAME FILE.gguf` writes one")


def check(host: Host, name: str) -> Iterable[Seen]:
    """One definition, its model and the files beside it."""
    loaded = host.loaded(name)
    if isinstance(loaded, LlamadError):
        yield from _located(host, NAME, name, loaded)
        return
    model, bad = loaded.definition.model, False
    header_is_ours = host.is_root or os.access(model, os.R_OK) or access_problem(model) is not None
    if not header_is_ours and host.tree.exists(model):
        yield unseen(NAME, f"what {model} contains: it can be read by {SERVICE_USER} and not by you", about=name)
    for problem in check_loaded(loaded, host.config):
        at_model = problem.where == loaded.where("model")
        if header_is_ours or not at_model or not host.tree.exists(model):
            bad = True
            yield from _located(host, NAME, name, problem)
    if not bad:
        yield ok(NAME, f"valid; {_lies(host, model)}", about=name)


def _lies(host: Host, model: str) -> str:
    mount = host.tree.mount_of(model)
    if mount is not None and mount.is_network:
        return f"the model is on {mount.kind} ({mount.source}): a start is as fast as the network"
    return f"{SERVICE_USER} can read the model"


def hangs(host: Host, loaded: Loaded, deadline_s: float) -> Finding:
    """What it means if a definition's model cannot be looked at in time."""
    model = loaded.definition.model
    mount = host.tree.mount_of(model)
    point = mount.point if mount else "/"
    what = f"the file system of {model} gives no answer within {deadline_s:g} s"
    if mount is None or point == "/":
        return error(NAME, what, about=loaded.name, cure="dmesg --ctime | tail -n 50")
    why = f"{point} is {mount.kind} of {mount.source}; what waits for it hangs"
    return error(NAME, what, about=loaded.name, why=why, cure=f"umount --lazy --force {shlex.quote(point)}")


def _located(host: Host, check: str, about: str, problem: LlamadError) -> Iterator[Finding]:
    for one in problem.problems if isinstance(problem, ConfigErrors) else [problem]:
        if check == NAME and one.where and one.where.path == str(host.config / HOST_FILE):
            continue  # told once, with the host's settings
        what = f"{one.where}: {one.what}" if one.where else one.what
        why = "; ".join(filter(None, (one.why, one.fix)))
        yield error(check, what, about=about, why=why, cure=_cure(host, one, about))


def _cure(host: Host, problem: LlamadError, about: str) -> str:
    command = command_in(problem.fix, host.commands)
    if command:
        return command
    where = problem.where
    file = where.path if where and where.path.endswith(".toml") else str(host.config / f"{about}.toml")
    line = f"+{where.line} " if where and where.line else ""
    return f"${{EDITOR:-editor}} {line}{shlex.quote(file)}"


def command_in(fix: str, commands: Commands) -> str:
    """The first command in back quotes of an advice whose program is installed; "" where there is none.

    None of git: it means a folder that is not named, and root must not run what that folder's configuration says.
    """
    for command in _COMMAND.findall(fix):
        program = command.split()[0]
        if program not in ("llamad", "context", "git") and program.islower() and commands.has(program):
            return str(command)
    return ""
