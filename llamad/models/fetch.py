"""Fetching one file: in pieces, with retries, and never a byte of one content beside a byte of another.

What a server may do wrong and what follows: a connection that ends, stalls or crawls is tried again from where it
stopped, without end as long as bytes come; a content that changed is begun anew; a server without ranges is read from
the start; a size or hash that is not the published one is refused, and nothing of it is kept.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from llamad.errors import BadModelError, BusyError, LlamadError, UsageError, Where
from llamad.frozen import dataclass
from llamad.gguf.foreign import foreign
from llamad.gguf.header import read_header
from llamad.models.part import Content, Part
from llamad.models.reading import Patience, Reading
from llamad.models.remote import Changed, Remote, probe
from llamad.models.web import Interrupted, Web, host_of
from llamad.units import MIB

_HASH_BYTES = 4 * MIB
_WORTH_TELLING_S = 2.0


@dataclass(frozen=True)
class Wanted:
    """One file: where it is, and what is known of it. `key` names the source without secrets."""

    url: str
    key: str
    size_bytes: int | None = None
    sha256: str = ""


class Watcher(Protocol):
    """Who is told how it goes; called from the thread that fetches."""

    def progress(self, name: str, what: str, done_bytes: int, size_bytes: int) -> None:
        """Some more of it. `what`: `fetching` or `checking`."""
        ...

    def note(self, text: str) -> None:
        """Something that went another way than expected."""
        ...


class Stopped(Exception):
    """Ended by the user. `kept_bytes` of `size_bytes` are there for the next time."""

    def __init__(self, name: str, kept_bytes: int, size_bytes: int) -> None:
        self.name = name
        self.kept_bytes = kept_bytes
        self.size_bytes = size_bytes
        super().__init__(name)


def fetch(
    web: Web, wanted: Wanted, target: Path, watcher: Watcher, *, connections: int = 1, patience: Patience | None = None,
    with_token: bool = False,
) -> str:  # fmt: skip
    """Have the file at `target`, whole and proved; its SHA-256. Blocking.

    Raises BadModelError for a file that is not the published one or no GGUF, UsageError where another file has the
    name, BusyError for what another time may bring (the network, the disk, another process that fetches it),
    AccessError, ModelMissingError; and Stopped at KeyboardInterrupt, with what has come kept.
    """
    part = Part(target)
    fetching = _Fetching(web, wanted, part, watcher, connections, patience or Patience(), with_token)
    try:
        return fetching.run()
    except KeyboardInterrupt:
        part.checkpoint()
        raise Stopped(target.name, part.done_bytes, fetching.size_bytes) from None
    finally:
        part.close()


def sha256_of(path: Path, show: Callable[[int], None]) -> str:
    """The hash of a file; `show` is called with the bytes that are read. Raises OSError."""
    digest = hashlib.sha256()
    buffer = bytearray(_HASH_BYTES)
    done = 0
    with open(path, "rb", buffering=0) as file, memoryview(buffer) as view:
        while count := file.readinto(view):
            digest.update(view[:count])
            done += count
            show(done)
    return digest.hexdigest()


class _Fetching:
    """The fetching of one file, in the thread that calls `run`."""

    def __init__(
        self, web: Web, wanted: Wanted, part: Part, watcher: Watcher, connections: int, patience: Patience,
        with_token: bool,
    ) -> None:  # fmt: skip
        self._web = web
        self._wanted = wanted
        self._part = part
        self._watcher = watcher
        self._connections = connections
        self._patience = patience
        self._with_token = with_token
        self.size_bytes = wanted.size_bytes or 0

    def run(self) -> str:
        """The hash of the published file."""
        restarts = 0
        while True:
            try:
                kept_bytes = self._whole()
                digest = self._proved(kept_bytes)
            except Changed as error:
                restarts += 1
                self._part.forget()
                if restarts > self._patience.restarts:
                    what = f"cannot fetch {self._part.target.name}: begun {restarts} times"
                    raise BusyError(what, why=error.why, fix="try again later") from error
                self._watcher.note(f"{error.why}: begun anew")
                continue
            if digest:
                self._part.publish()
                return digest

    def _whole(self) -> int:
        """Have every byte in the part; how many were there before."""
        remote = self._probed()
        self._refuse(remote)
        mark = f"sha256:{self._wanted.sha256}" if self._wanted.sha256 else remote.validator
        self.size_bytes = remote.size_bytes
        kept_bytes = self._part.begin(Content(self._wanted.key, mark, remote.size_bytes))
        if kept_bytes:
            self._watcher.note(f"goes on after {kept_bytes * 100 // max(1, remote.size_bytes)} %")
        if self._part.missing():
            reading = Reading(self._web, self._wanted.url, remote, self._part, self._patience,
                              sure=bool(self._wanted.sha256), with_token=self._with_token)  # fmt: skip
            reading.run(self._connections if mark else 1, self._show)
        self._part.checkpoint()
        return kept_bytes

    def _show(self) -> None:
        self._watcher.progress(self._part.target.name, "fetching", self._part.done_bytes, self.size_bytes)

    def _refuse(self, remote: Remote) -> None:
        wanted, name, host = self._wanted, self._part.target.name, host_of(self._wanted.url)
        verdict = foreign(remote.first, name)
        if verdict is not None:
            raise BadModelError(f"what {host} offers as {name} is no model", why=verdict[0], fix=verdict[1])
        if wanted.size_bytes is not None and wanted.size_bytes != remote.size_bytes:
            why = f"{host} offers {remote.size_bytes} bytes, published are {wanted.size_bytes}"
            fix = "try again later, or without the mirror"
            raise BadModelError(f"{name} is not the published file", why=why, fix=fix)

    def _probed(self) -> Remote:
        for failures in range(1, self._patience.first_tries + 1):
            try:
                return probe(self._web, self._wanted.url, with_token=self._with_token)
            except Interrupted as error:
                if failures == self._patience.first_tries:
                    raise error.final(f"cannot fetch {self._part.target.name}") from error
                delay_s = self._patience.delay_s(failures, error.after_s)
                if delay_s >= _WORTH_TELLING_S:
                    self._watcher.note(f"{error.why}: tried again in {delay_s:.0f} s")
                time.sleep(delay_s)
        raise AssertionError

    def _proved(self, kept_bytes: int) -> str:
        """The hash of the part; empty where it is wrong and may be so because of what was there before."""
        name, part, wanted = self._part.target.name, self._part, self._wanted
        digest = sha256_of(
            part.path, lambda done: self._watcher.progress(name, "checking", done, self.size_bytes)
        )
        if wanted.sha256 and digest != wanted.sha256:
            if kept_bytes:
                part.forget()
                self._watcher.note("what was there before is not of this file: begun anew")
                return ""
            part.discard()
            why = f"its SHA-256 is {digest}, published is {wanted.sha256}"
            fix = "fetch it again; if that does not help, the server or a cache on the way is at fault"
            raise BadModelError(f"{name} is not the published file, and was thrown away", why=why, fix=fix)
        try:
            read_header(str(part.path))
        except LlamadError as error:
            part.discard()
            why = error.why or error.what
            fix = "ask who publishes it"
            raise BadModelError(f"{name} was fetched, and cannot be used", why=why, fix=fix) from error
        return digest


def refuse_other(target: Path, why: str) -> UsageError:
    """The error for a name that another file has."""
    fix = "remove it, or name another folder: --to FOLDER"
    return UsageError("is there already", where=Where(str(target)), why=why, fix=fix)
