"""What a watch looks at: one definition or all of a folder, each with the files of keys that it names. Blocking."""

from __future__ import annotations

import errno
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple, Protocol

from llamad.config.files import digest_of, read_definition, read_file
from llamad.config.names import HOST_FILE, definition_names
from llamad.errors import LlamadError

MOST_LINKS = 40
"""As many as the kernel follows."""
MOST_FOLDERS = 32
"""That are watched for one definition,"""
MOST_FOLDERS_OF_ALL = 512
"""and for all."""


class Seen(NamedTuple):
    """What a look found."""

    digest: str
    """Of names and contents, as `Loaded.digest` where no keys are named; of the reason where they cannot be read."""
    present: bool
    """Whether all is there that should be, and anything in it."""


class Subject(Protocol):
    """What is watched. Blocking."""

    def look(self) -> Seen:
        """Read it. Never raises for what it finds."""
        ...

    def folders(self) -> list[str]:
        """The folders in which a change can change it."""
        ...


@dataclass(frozen=True)
class OneDefinition:
    """A definition, with the host's settings and its drop-ins."""

    file: Path
    root: Path
    keys: Callable[[], Iterable[str]] = tuple
    """The files of keys that the definition names."""

    def look(self) -> Seen:
        """See `Subject`."""
        return with_keys(look(self.file, self.root), self.keys())

    def folders(self) -> list[str]:
        """See `Subject`."""
        return _folders(chain(_paths_of(self.file, self.root), self.keys()), MOST_FOLDERS)


@dataclass(frozen=True)
class AllDefinitions:
    """The definitions of a folder, with the host's settings and all drop-ins."""

    root: Path
    names: Callable[[], Iterable[str]] = tuple
    """Those that there were."""
    keys: Callable[[], Iterable[str]] = tuple
    """The files of keys that they name."""

    def look(self) -> Seen:
        """See `Subject`."""
        found = {name: look(self.root / f"{name}.toml", self.root) for name in definition_names(self.root)}
        host = look(self.root / HOST_FILE, self.root)  # also where there is no definition
        present = all(name in found and found[name].present for name in self.names())
        digests = (part for name, seen in found.items() for part in (name, seen.digest))
        return with_keys(Seen(_hash("\0".join([host.digest, *digests])), present), self.keys())

    def folders(self) -> list[str]:
        """See `Subject`."""
        names = definition_names(self.root)
        files = chain([self.root / HOST_FILE], *(_paths_of(self.root / f"{name}.toml", self.root) for name in names))
        return _folders(chain(files, self.keys()), MOST_FOLDERS_OF_ALL)


def look(file: Path, root: Path) -> Seen:
    """Read what makes a definition. Never raises for what it finds."""
    try:
        contents = read_definition(file, root)
    except (LlamadError, OSError) as error:
        return Seen(_hash(f"unreadable: {error}"), True)
    return Seen(digest_of(contents), bool(contents.get(file, b"").strip()))


def with_keys(seen: Seen, files: Iterable[str]) -> Seen:
    """The same with files of keys: one that is gone or empty may be about to be replaced."""
    for file in files:
        try:
            content = read_file(Path(file))
        except (LlamadError, OSError) as error:
            seen = Seen(_hash(f"{seen.digest}\0{file}\0unreadable: {error}"), seen.present)
            continue
        digest = hashlib.sha256(content or b"").hexdigest()
        present = seen.present and bool(content and content.strip())
        seen = Seen(_hash(f"{seen.digest}\0{file}\0{content is None}\0{digest}"), present)
    return seen


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _paths_of(file: Path, root: Path) -> list[Path]:
    dropins = Path(f"{file}.d")
    try:
        inside = sorted(os.listdir(dropins))
    except OSError:
        inside = []
    return [file, root / HOST_FILE, dropins / "*", *(dropins / name for name in inside)]


def _folders(paths: Iterable[Path | str], most: int) -> list[str]:
    found: dict[str, None] = {}
    for path in paths:
        found |= dict.fromkeys(_folders_on_the_way(os.path.abspath(path)))
        if len(found) >= most:
            break
    return list(found)[:most]


def _folders_on_the_way(path: str) -> list[str]:
    """Each folder with a link on the way to a file, and the last one; of what does not exist the last that does."""
    found: list[str] = []
    at, rest, links = "/", deque(path.split("/")), 0
    while rest and links <= MOST_LINKS:
        part = rest.popleft()
        if part in ("", "."):
            continue
        if part == "..":
            at = os.path.dirname(at)
            continue
        here = os.path.join(at, part)
        try:
            target = os.readlink(here)
        except OSError as error:
            if error.errno != errno.EINVAL or not rest:  # EINVAL: it is no link
                return [*found, at]
            at = here
            continue
        found.append(at)
        links += 1
        at = "/" if target.startswith("/") else at
        rest.extendleft(reversed(target.split("/")))
    return found
