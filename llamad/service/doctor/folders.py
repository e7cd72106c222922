"""llamad's own folders: there, with the owners and modes that the package gives them, and what lies in them is ours."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator

from llamad.config.access import SERVICE_USER
from llamad.service.doctor.finding import Finding, Seen, error, ok, unseen
from llamad.service.doctor.host import Host

NAME = "folders"
TMPFILES = "/usr/lib/tmpfiles.d/llamad.conf"
STATE, ROUTER_STATE, CACHE = "/var/lib/llamad/state", "/var/lib/llamad/router", "/var/cache/llamad"
_MAKE = "systemd-tmpfiles --create llamad.conf"
_MOST_FILES = 200


def check(host: Host) -> Iterable[Seen]:
    """Every folder of tmpfiles.d, then each model's state and cache."""
    findings = [*_shared(host), *_own(host)]
    if not host.tree.exists(TMPFILES):
        yield unseen(NAME, f"which folders the package has: there is no {TMPFILES}")
    elif not findings:
        yield ok(NAME, "owners and modes are right")
    yield from findings


def _shared(host: Host) -> Iterator[Finding]:
    for line in host.tree.text(TMPFILES).splitlines():
        words = line.split()
        if len(words) < 5 or words[0] != "d":
            continue
        path, wanted = words[1], (int(words[2], 8), words[3], words[4])
        mode = host.tree.mode(path)
        if mode is None or not host.tree.is_folder(path):
            yield error(NAME, "the folder is missing", about=path, why="no model starts without it", cure=_MAKE)
            continue
        owner, group = _number(host, wanted[1], user=True), _number(host, wanted[2], user=False)
        if owner is None or group is None:
            continue  # the account's check tells
        if (mode.permissions, mode.uid, mode.gid) != (wanted[0], owner, group):
            has = f"owner {mode.uid}, group {mode.gid}, mode {mode.permissions:04o}"
            why = f"it must be {wanted[1]}:{wanted[2]} {wanted[0]:04o}, and has {has}"
            yield error(NAME, "the folder has another owner or mode", about=path, why=why, cure=_MAKE)


def _number(host: Host, name: str, *, user: bool) -> int | None:
    if not user:
        return host.accounts.group(name)
    found = host.accounts.identity(name)
    return found.uid if found else None


def _own(host: Host) -> Iterator[Finding]:
    if host.user is None:
        return
    for root in (STATE, ROUTER_STATE, CACHE):
        for name in host.tree.names(root):
            path = f"{root}/{name}"
            if (not host.only or name == host.only) and not name.startswith(".") and host.tree.is_folder(path):
                yield from _foreign(host, path)


def _foreign(host: Host, folder: str) -> Iterator[Finding]:
    """The first thing of a model's folder that belongs to another user."""
    assert host.user is not None
    paths = [folder, *(f"{folder}/{name}" for name in host.tree.names(folder)[:_MOST_FILES])]
    for path in paths:
        mode = host.tree.mode(path)
        if mode is not None and mode.uid != host.user.uid:
            why = f"the model runs as {SERVICE_USER} and cannot write there: nothing is learned or cached"
            cure = f"chown -R --no-dereference {SERVICE_USER}:{SERVICE_USER} {shlex.quote(folder)}"
            yield error(NAME, f"it belongs to user {mode.uid}", about=path, why=why, cure=cure)
            return
