"""How a model passes from the router to its own unit: who serves what, and who asks for it. Blocking, for milliseconds.

Who wants a model that the router serves holds the lock of `NAME.wanted` while it waits for the name. Like all life in
the ledger that is a lock and no process id: a request ends with the process that made it.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from llamad.errors import BusyError
from llamad.ledger import folder as files
from llamad.ledger.lease import Lease
from llamad.ledger.ledger import Ledger
from llamad.ledger.wake import Watch

ROUTER_NOTE = ", the router of llamad.service"
"""What the router's lock files say behind its process id."""
_WANTED = ".wanted"
_OWNER = ".owner"
_GIVEN_UP = "for nobody"
_POLL_S = 0.25


class Served(NamedTuple):
    """What the lock files of the ledger say now."""

    owners: frozenset[str]
    """Models that somebody but the router serves, or is about to."""
    wanted: frozenset[str]
    """Models that the router is asked for."""
    leases: Mapping[str, Lease]
    """What models have or wait for, of all that are alive."""
    given_up: frozenset[str] = frozenset()
    """Of the wanted: those that nobody takes over (see `ask_back`)."""


def look(ledger: Ledger) -> Served:
    """Who serves what. Raises BusyError where the ledger cannot be had."""
    with ledger.transaction() as transaction:
        names = ledger.file_names()
        leases = {lease.name: lease for lease in transaction.others}
        owners = {
            name.removesuffix(_OWNER)
            for name in names
            if name.endswith(_OWNER) and not _is_signed(ledger, name) and _is_held(ledger, name)
        }
        wanted = {
            name.removesuffix(_WANTED) for name in names if name.endswith(_WANTED) and _is_held(ledger, name)
        }
        given_up = {name for name in wanted if _GIVEN_UP in _read(ledger, f"{name}{_WANTED}")}
    return Served(frozenset(owners), frozenset(wanted), leases, frozenset(given_up))


def is_routers(ledger: Ledger) -> bool:
    """Whether it is the router that serves this ledger's model."""
    return _is_signed(ledger, f"{ledger.name}{_OWNER}")


def take_over(ledger: Ledger, wait_s: float, told: Callable[[], None]) -> None:
    """Ask the router for the model, and become the one process that serves it.

    `told` is called when the router has been asked. Raises BusyError where it does not let go within `wait_s`, or
    somebody else has it meanwhile.
    """
    watch = Watch(ledger.folder)
    try:
        with _asking(ledger):
            told()
            _await_name(ledger, watch, ledger.now() + wait_s)
    finally:
        watch.close()


def _await_name(ledger: Ledger, watch: Watch, until_s: float) -> None:
    others = 0
    while True:
        try:
            ledger.take()
        except BusyError:
            others = 0 if is_routers(ledger) else others + 1  # once: it has let go in this very moment
            if ledger.now() >= until_s or others > 1:
                raise
        else:
            return
        ready = select.select([watch.fd] if watch.fd >= 0 else [], [], [], _POLL_S)[0]
        if ready:
            watch.read()


@contextmanager
def _asking(ledger: Ledger, note: str = "") -> Iterator[None]:
    """Hold the request's lock, and have it noticed: the end of a writer is what the ledger's watchers wake by."""
    path = ledger.folder / f"{ledger.name}{_WANTED}"
    with ledger.transaction():
        fd = files.open_lock(path)
        if not files.try_lock(fd):
            os.close(fd)
            raise BusyError(f"{ledger.name} is asked for already", fix="wait until that start has ended")
        files.sign(fd, f"{os.getpid()} {note}\n")
    try:
        os.close(files.open_lock(path))
        yield
    finally:
        files.remove(path)
        os.close(fd)


def _is_signed(ledger: Ledger, file_name: str) -> bool:
    """Whether the router held this lock file last."""
    return ROUTER_NOTE in _read(ledger, file_name)


def _read(ledger: Ledger, file_name: str) -> str:
    return files.read(ledger.folder / file_name).decode("ascii", "replace")


def _is_held(ledger: Ledger, file_name: str) -> bool:
    return files.is_held(f"{ledger.folder}/{file_name}")


def forget_requests(ledger: Ledger) -> None:
    """Remove requests that nobody holds any more: of processes that were killed while they waited."""
    with contextlib.suppress(BusyError), ledger.transaction():
        for name in ledger.file_names():
            if name.endswith(_WANTED) and not _is_held(ledger, name):
                files.remove(ledger.folder / name)


def ask_back(ledger: Ledger, wait_s: float) -> bool:
    """Have the router let go of the model, which nobody takes over then; False where the router does not have it.

    Raises BusyError where it takes longer than `wait_s`, or a unit asks for the model already.
    """
    owner = f"{ledger.name}{_OWNER}"
    if not (is_routers(ledger) and _is_held(ledger, owner)):
        return False
    watch = Watch(ledger.folder)
    until_s = ledger.now() + wait_s
    try:
        with _asking(ledger, _GIVEN_UP):
            while _is_held(ledger, owner):
                if ledger.now() >= until_s:
                    what = f"the router still has {ledger.name}"
                    raise BusyError(what, why=f"not within {wait_s:g} s", fix="its requests may run for drain_s")
                if watch.fd >= 0 and select.select([watch.fd], [], [], _POLL_S)[0]:
                    watch.read()
    finally:
        watch.close()
    return True
