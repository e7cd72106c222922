"""The ledger: whether somebody sits on its lock, and llama-servers that outlived their llamad with memory promised."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from llamad.ledger import folder as files
from llamad.service.doctor.finding import Finding, Seen, error, ok, unseen
from llamad.service.doctor.host import Host
from llamad.service.doctor.sockets import owners

NAME = "ledger"
FOLDER = "/run/llamad/ledger"
_LOCK_S = 1.0
_POLL_S = 0.01
_HOLDER = re.compile(r"process (\d{1,9})")


def check(host: Host) -> Iterable[Seen]:
    """Takes the ledger's lock for a moment, as everybody does who reads it; writes nothing."""
    folder = host.tree.path(FOLDER)
    if not folder.exists():
        return  # the folders' check tells
    if not os.access(folder, os.R_OK | os.X_OK):
        yield unseen(NAME, "locks and leases: they can be read by root only")
        return
    try:
        fd = os.open(folder / files.LEDGER_LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        yield ok(NAME, "nothing was ever promised")
        return
    try:
        if not _locked(fd):
            yield _held(files.signature(fd))
            return
        found = list(_orphans(host, folder))
    finally:
        os.close(fd)
    yield from found or [ok(NAME, "every lease has its owner")]


def _locked(fd: int) -> bool:
    """Whether the lock could be had within a second; it goes with the descriptor."""
    end_s = time.monotonic() + _LOCK_S
    while not files.try_lock(fd):
        if time.monotonic() > end_s:
            return False
        time.sleep(_POLL_S)  # flock has no deadline
    return True


def _held(holder: str) -> Finding:
    pid = _HOLDER.search(holder)
    cure = f"kill -CONT {pid[1]}" if pid else f"fuser --verbose {FOLDER}/{files.LEDGER_LOCK}"
    why = "it is held for milliseconds, so that process is stopped; every start waits for it"
    return error(NAME, f"{holder} has the ledger's lock and does not let go", why=why, cure=cure)


def _orphans(host: Host, folder: Path) -> Iterator[Finding]:
    names: dict[str, set[str]] = {}
    for file in host.tree.names(FOLDER):
        name, suffix = files.name_of(file)
        names.setdefault(name, set()).add(suffix)
    for name, suffixes in names.items():
        model = name.partition("+")[0]
        if not name or ".lock" not in suffixes or (host.only and model != host.only):
            continue
        if files.is_held(str(folder / f"{model}.owner")) or not files.is_held(str(folder / f"{name}.lock")):
            continue
        holders = owners(host.tree, f"{FOLDER}/{name}.lock")
        pids = " ".join(str(process.pid) for process in holders)
        what = f"{', '.join(map(str, holders)) or 'a process'} holds the memory of {name}, and no llamad serves it"
        why = "it outlived its llamad; what it was promised is not free until it ends"
        cure = f"kill {pids}" if pids else f"fuser --verbose {FOLDER}/{name}.lock"
        yield error(NAME, what, about=name, why=why, cure=cure)
