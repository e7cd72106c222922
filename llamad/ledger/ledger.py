"""The ledger of a host: which model was promised which bytes. Blocking, for milliseconds; call it off the loop.

One lock for the whole, and for each model a lease whose life is a lock of its own: llama-server inherits it, so that
a lease ends when the last process is gone that can hold its bytes. Nobody is asked by process id: under the units'
sandbox other units' processes do not exist. No engine is ever run under the ledger's lock.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from llamad.errors import BusyError, os_error
from llamad.ledger import folder as files
from llamad.ledger.arithmetic import Departed, Seen, visible
from llamad.ledger.lease import Lease, Phase, from_json, to_json
from llamad.ledger.public import write_public

LOCK_S = 5.0
BYTES_BACK_S = 10.0
"""How long after the end of a lease its bytes may be awaited."""
DEPARTED_S = 150.0
"""How long an ended lease is remembered: longer than any plan is made on one reading of the drivers."""
_FIRST_WAIT_S, _WAIT_S = 0.001, 0.02

Held = Callable[[], Mapping[str, Mapping[int, int]]]
"""What a driver says that processes hold: by device, by process id."""


def nobody_says() -> Mapping[str, Mapping[int, int]]:
    """For drivers that do not tell what a process holds."""
    return {}


class Ledger:
    """The ledger as one model uses it. Safe to use from several threads."""

    def __init__(
        self, folder: Path, name: str, public: Path | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = name
        self.folder = folder
        self.now = now
        self._public = public
        self._threads = threading.Lock()
        self._kept: dict[str, tuple[bytes, Lease | None]] = {}
        """What each file said and what that meant: most are read many times before they change."""
        self._lock_fd = self._owner_fd = self._lease_fd = -1
        self._closed = False

    # -- the name -----------------------------------------------------------------------------------------

    def take(self, note: str = "") -> None:
        """Become the one process that serves the model. Raises BusyError where another does, AccessError.

        `note` is told to who finds the name taken, behind our process id.
        """
        self._closed = False
        with self.transaction() as transaction:
            fd = files.open_lock(self.folder / f"{self.name}.owner")
            if not files.try_lock(fd):
                holder = files.signature(fd)
                os.close(fd)
                what, why = f"{self.name} is served already", f"by process {holder}"
                raise BusyError(what, why=why, fix="stop that one first")
            files.sign(fd, f"{os.getpid()}{note}\n")
            self._owner_fd = fd
            transaction.begin()

    @property
    def held(self) -> bool:
        """Whether the name is ours."""
        return self._owner_fd >= 0

    @property
    def lease_fds(self) -> tuple[int, ...]:
        """What llama-server must inherit, so that the lease lives as long as it."""
        return (self._lease_fd,) if self._lease_fd >= 0 else ()

    def second(self) -> Ledger:
        """For the lease of a second llama-server of this model: under a name that no former one still has.

        Its process is ours, so it has no owner. Raises BusyError.
        """
        for suffix in files.SECONDS:
            ledger = Ledger(self.folder, f"{self.name}{suffix}", self._public, self.now)
            with ledger.transaction() as transaction:
                if transaction.begin():
                    return ledger
            ledger.close()
        raise BusyError(f"two llama-servers of {self.name} that were replaced have not ended yet")

    def leave(self) -> None:
        """Let go of a lease without a name: what its llama-server still holds stays promised until it is gone."""
        try:
            with self.transaction() as transaction:
                transaction.end()
        except BusyError:
            pass  # the next one who has the lock cleans up
        finally:
            self.close()

    def release(self) -> None:
        """Let go of lease and name. What llama-server still holds stays promised until it is gone."""
        if self.held:
            self.leave()

    def close(self) -> None:
        """Let go of everything at once, as the kernel does for a process that ends. Until the name is taken again
        there are no transactions: what another thread still wanted to write comes too late.
        """
        with self._threads:  # a descriptor must not be closed, and then be another file's, while it is used
            for fd in (self._lease_fd, self._owner_fd, self._lock_fd):
                if fd >= 0:
                    os.close(fd)
            self._lease_fd = self._owner_fd = self._lock_fd = -1
            self._closed = True

    # -- looking and promising ----------------------------------------------------------------------------

    def seen(self, held: Held = nobody_says) -> Seen:
        """What of the leases the drivers' figures lack for certain by now. Ask it before they are asked what is free.

        It needs no lock: whatever is read here can only have grown when the drivers are asked.
        """
        names = [name for name, suffix in map(files.name_of, self.file_names()) if suffix == ".json"]
        leases = [lease for name in names if (lease := self._lease(name)) is not None]
        loading = any(lease.phase is Phase.LOADING for lease in leases)
        processes = held() if loading else {}
        found: dict[str, Mapping[str, int]] = {}
        for lease in leases:
            mine = {
                place: sum(by_pid.get(pid, 0) for pid in lease.pids) for place, by_pid in processes.items()
            }
            found[lease.id] = visible(lease, mine)
        return found

    def pids(self) -> set[int]:
        """The processes that have leases, for figures that are about all others. No lock, no sign of life."""
        names = [name for name, suffix in map(files.name_of, self.file_names()) if suffix == ".json"]
        return {pid for name in names if (lease := self._lease(name)) is not None for pid in lease.pids}

    @contextmanager
    def transaction(self, deadline_s: float = LOCK_S) -> Iterator[Transaction]:
        """The ledger, held still: read, decide, write. Raises BusyError, naming the holder, past the deadline."""
        end_s = time.monotonic() + deadline_s
        if not self._threads.acquire(timeout=deadline_s):
            raise BusyError("the ledger is held by another thread of this process for too long")
        try:
            if self._closed:
                raise BusyError(f"{self.name} was given back to the ledger")
            fd = self._locked(end_s)
            try:
                transaction = Transaction(self)
                try:
                    yield transaction
                finally:
                    transaction.publish()
            finally:
                if self._lock_fd == fd:
                    files.unlock(fd)
        finally:
            self._threads.release()

    def _locked(self, end_s: float) -> int:
        wait_s = _FIRST_WAIT_S
        while True:
            if self._lock_fd < 0:
                self._lock_fd = files.open_lock(self.folder / files.LEDGER_LOCK)
            fd = self._lock_fd
            if files.try_lock(fd):
                if os.fstat(fd).st_nlink:
                    files.sign(fd, f"{self.name} (process {os.getpid()})\n")
                    return fd
                os.close(fd)  # somebody removed the file: there may be another one by now
                self._lock_fd = -1
                continue
            if time.monotonic() >= end_s:
                raise BusyError(
                    "cannot get hold of the ledger of device memory",
                    why=f"{files.signature(fd)} has it and does not let go",
                    fix="look whether that process is stopped (SIGSTOP, a debugger); ending it frees the ledger",
                )
            time.sleep(wait_s)  # flock has no deadline, and no event for who waits
            wait_s = min(_WAIT_S, wait_s * 2)

    def file_names(self) -> list[str]:
        """What is in the folder; nothing where there is none."""
        try:
            return os.listdir(self.folder)
        except OSError:
            return []

    def _lease(self, name: str) -> Lease | None:
        """What a model's file says; None for none, and for garbage: a lease of which nothing is known."""
        text = files.read(f"{self.folder}/{name}.json")
        kept = self._kept.get(name)
        if kept is not None and kept[0] == text:
            return kept[1]
        try:
            lease = from_json(text, name) if text else None
        except ValueError:
            lease = None
        self._kept[name] = text, lease
        return lease


class Transaction:
    """What can be done under the ledger's lock. Made by `Ledger.transaction`."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._changed = False
        self.now_s = ledger.now()
        self.problems: list[str] = []
        """Files that say nothing sensible: what their models were promised is not known."""
        self.departed = self._read_departed()
        self.own: Lease | None = None
        self.others: list[Lease] = []
        """Leases that are alive, without ours; with ours as long as a former llama-server of ours has it."""
        self._look()

    def coming_back(self, read_s: float) -> list[Departed]:
        """The leases whose bytes the drivers may not have shown as free yet when they were read."""
        return [gone for gone in self.departed if read_s - gone.at_s < BYTES_BACK_S]

    # -- reading ------------------------------------------------------------------------------------------

    def _look(self) -> None:
        ledger = self._ledger
        names: dict[str, set[str]] = {}
        for file_name in ledger.file_names():
            name, suffix = files.name_of(file_name)
            if name:
                names.setdefault(name, set()).add(suffix)
            elif file_name.endswith(".new"):
                files.remove(ledger.folder / file_name)  # of a writer who did not get to its end
        for name, suffixes in sorted(names.items()):
            self._look_at(name, suffixes)

    def _look_at(self, name: str, suffixes: set[str]) -> None:
        ledger = self._ledger
        mine = name == ledger.name and bool(ledger.lease_fds)
        if not mine and not self._alive(name, suffixes):
            return
        if ".json" not in suffixes:
            return
        lease = ledger._lease(name)
        if lease is None:
            self.problems.append(str(ledger.folder / f"{name}.json"))
        elif mine:
            self.own = lease
        else:
            self.others.append(lease)

    def _alive(self, name: str, suffixes: set[str]) -> bool:
        """Whether anybody holds the model's lease; what nobody holds is removed."""
        folder = self._ledger.folder
        if ".lock" in suffixes and files.is_held(f"{folder}/{name}.lock"):
            return True
        if ".owner" in suffixes and name != self._ledger.name and not files.is_held(f"{folder}/{name}.owner"):
            files.remove(folder / f"{name}.owner")
        lease = self._ledger._lease(name)
        if lease is not None:
            self._depart(lease)
        files.remove(folder / f"{name}.json")
        files.remove(folder / f"{name}.lock")
        self._changed = True
        return False

    def _read_departed(self) -> list[Departed]:
        text = files.read(self._ledger.folder / files.DEPARTED)
        found = []
        for line in text.splitlines():
            try:
                at_s, content = json.loads(line)
                gone = Departed(from_json(json.dumps(content), content["name"]), float(at_s))
            except (ValueError, TypeError, LookupError, RecursionError):
                continue  # it only shortens a wait
            if 0 <= self.now_s - gone.at_s < DEPARTED_S:
                found.append(gone)
        return found

    def _depart(self, lease: Lease) -> None:
        """Keep for a moment what a lease had, if any of it can have been taken."""
        if lease.phase in (Phase.WAITING, Phase.PROMISED):
            return
        self.departed.append(Departed(lease, self.now_s))
        rows = [f"[{gone.at_s},{to_json(gone.lease)}]\n" for gone in self.departed[-64:]]
        try:
            files.write(self._ledger.folder / files.DEPARTED, "".join(rows))
        except OSError as error:
            self.problems.append(f"{files.DEPARTED}: {error}")

    # -- writing ------------------------------------------------------------------------------------------

    def begin(self) -> bool:
        """Make sure that the lease is ours: False while a llama-server of a former llamad has it."""
        ledger = self._ledger
        if ledger._lease_fd >= 0:
            return True
        path = ledger.folder / f"{ledger.name}.lock"
        fd = files.open_lock(path)
        if not files.try_lock(fd):
            os.close(fd)
            return False
        ledger._lease_fd = fd
        self.others = [lease for lease in self.others if lease.name != ledger.name]
        return True

    def put(self, lease: Lease) -> None:
        """Write our lease, or another's that we hold the lock for. Raises BusyError where the disk is full."""
        path = self._ledger.folder / f"{lease.name}.json"
        try:
            files.write(path, to_json(lease))
        except OSError as error:
            raise os_error(f"cannot write {path}", error, "check /run/llamad/ledger") from error
        self._changed = True
        if lease.name == self._ledger.name:
            self.own = lease
        else:
            self.others = [lease if other.name == lease.name else other for other in self.others]

    def count_passes(self, names: tuple[str, ...]) -> None:
        """Note in the leases of those that wait that somebody went before them."""
        for lease in self.others:
            if lease.name in names:
                self.put(lease._replace(passed=lease.passed + 1))

    def next_ticket(self) -> int:
        """A place at the end of the queue."""
        return 1 + max((lease.ticket for lease in self.others), default=0)

    def new_id(self) -> str:
        """What tells a promise from all others of this host."""
        return f"{self._ledger.name}.{os.getpid()}.{time.monotonic_ns()}"

    def drop(self) -> None:
        """Nothing is promised to us any more; the lease itself stays ours."""
        if self.own is not None:
            self._depart(self.own)
            files.remove(self._ledger.folder / f"{self._ledger.name}.json")
            self.own = None
            self._changed = True

    def absorb(self, name: str, lease_id: str, visible: Callable[[Lease], Mapping[str, int]]) -> Lease | None:
        """Have what another lease of ours has in place of what we had, and none there: its llama-server, which has
        our lock as well, is our only one now. None where there is no such lease.
        """
        other = next((lease for lease in self.others if lease.name == name), None)
        if other is None:
            return None
        if self.own is not None:
            self._depart(self.own)
        taken = other._replace(
            name=self._ledger.name, id=lease_id, phase=Phase.SETTLED, visible=visible(other)
        )
        self.put(taken)
        files.remove(self._ledger.folder / f"{name}.json")
        self.others = [lease for lease in self.others if lease.name != name]
        return taken

    def end(self) -> None:
        """Give the lease and the name back. A llama-server that still lives keeps the lease."""
        ledger = self._ledger
        if ledger._lease_fd >= 0:
            os.close(ledger._lease_fd)
            ledger._lease_fd = -1
        own, self.own = self.own, None
        suffixes = {".lock", ".json"} if own else {".lock"}
        if self._alive(ledger.name, suffixes) and own is not None:
            self.others.append(own)
        if ledger._owner_fd >= 0:
            files.remove(ledger.folder / f"{ledger.name}.owner")
            os.close(ledger._owner_fd)
            ledger._owner_fd = -1
        self._changed = True

    def publish(self) -> None:
        """Renew the copy that everybody may read."""
        if self._changed and self._ledger._public is not None:
            leases = [*self.others, *([self.own] if self.own else [])]
            write_public(self._ledger._public, leases)

