"""The model files under the folders of `[host] models`, as `llamad list` shows them, with a cache of what was read.

The cache is for display alone: nothing is planned, refused or started by it. It is safe by who may write it. Each
user has one of his own; root's is in /var/cache/llamad, a folder of root's that the service's user cannot write to.
A cache is used only if the file that was opened is ours and nobody else may write it, and it is written only into a
folder of which the same is true, so whatever the service's user leaves anywhere is never read by root. Texts of it are
as hostile as those of the files: they are escaped when they are printed, not when they are kept.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from llamad.errors import BadModelError, LlamadError
from llamad.gguf.glance import Glance, glance
from llamad.store import load_cache, store_cache

CACHE_NAME = ".headers.json"
"""No name of a definition begins with a point."""
FILES_LIMIT = 10_000
DEPTH_LIMIT = 5
_FORMAT = 1
_SHARD = re.compile(r"(?s)(?P<prefix>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True)
class ModelFile:
    """A file with what it is, or with why it is of no use. `used_by` names the definitions that serve it."""

    path: str
    glance: Glance | None = None
    problem: str = ""
    used_by: tuple[str, ...] = field(default=())

    def content(self) -> dict[str, object]:
        """For `--json`."""
        about = asdict(self.glance) if self.glance else {"problem": self.problem}
        return {"path": self.path, **about, "used_by": list(self.used_by)}


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Where this user's cache is: root's in the system's folder, everybody else's at home; or as the caller says."""
    if environ.get("CACHE_DIRECTORY"):
        return Path(environ["CACHE_DIRECTORY"])
    if os.geteuid() == 0:
        return Path("/var/cache/llamad")
    base = environ.get("XDG_CACHE_HOME") or os.path.join(environ.get("HOME") or "/nonexistent", ".cache")
    return Path(base) / "llamad"


def model_files(
    folders: Sequence[str], cache: Path | None, used_by: Mapping[str, Sequence[str]] | None = None
) -> list[ModelFile]:
    """Every GGUF file below the folders, a model of several shards once, in the order of their paths.

    What cannot be read has its reason and bothers nobody else. A folder that does not exist holds nothing. At most
    10,000 files, five folders deep. Blocking: about 40 ms for a header of the largest kind, 20 us where it is cached.
    """
    kept = _kept(cache)
    seen: dict[str, object] = {}
    users = used_by or {}
    found = []
    for path, problem in _places(folders):
        made = ModelFile(path, None, problem) if problem else _looked_at(path, kept, seen)
        names = tuple(users.get(path, ()))
        found.append(ModelFile(made.path, made.glance, made.problem, names) if names else made)
    if cache is not None and seen != kept and _is_ours(cache):
        store_cache(cache / CACHE_NAME, {"format": _FORMAT, "files": seen})
    return found


def _places(folders: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Paths to open in order, each once, with the reason where one cannot be."""
    seen: set[str] = set()
    for folder in folders:
        for path, problem in _below(folder, DEPTH_LIMIT):
            if path in seen:
                continue
            if len(seen) == FILES_LIMIT:
                yield folder, f"more than {FILES_LIMIT} files: the rest is left out"
                return
            seen.add(path)
            yield path, problem


def _below(folder: str, depth: int) -> Iterator[tuple[str, str]]:
    try:
        with os.scandir(folder) as entries:
            inside = sorted(entries, key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    except OSError as error:
        yield folder, f"cannot look into this folder: {error.strerror}"
        return
    names = {entry.name for entry in inside}
    for entry in inside:
        if entry.name.endswith(".gguf") and not _is_a_folder(entry):
            if not _is_later_shard(entry.name, names):
                yield entry.path, ""
        elif depth > 1 and _is_a_folder(entry):  # a link to a folder may lead round in a circle
            yield from _below(entry.path, depth - 1)


def _is_a_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def _is_later_shard(name: str, names: set[str]) -> bool:
    """Whether the file is shown with its first shard, which is beside it."""
    shard = _SHARD.fullmatch(name)
    return shard is not None and int(shard["number"]) > 1 and _nth(shard, 1) in names


def _nth(shard: re.Match[str], number: int) -> str:
    return f"{shard['prefix']}-{number:05d}-of-{shard['count']}.gguf"


def _looked_at(path: str, kept: Mapping[str, object], seen: dict[str, object]) -> ModelFile:
    key = _identity(path)
    row = kept.get(key) if key else None
    made = _from_row(path, row)
    if made is None:
        try:
            made = ModelFile(path, glance(path))
        except BadModelError as error:
            made = ModelFile(path, None, error.why or error.what)
        except LlamadError as error:  # may be well again without any change to the file
            return ModelFile(path, None, ": ".join(filter(None, (error.what, error.why))))
        row = asdict(made.glance) if made.glance else made.problem
    if key:
        seen[key] = row
    return made


def _identity(path: str) -> str:
    """Device, inode, size and time of change of the file, or of all the shards that stand beside it."""
    shard = _SHARD.fullmatch(path)
    count = min(int(shard["count"]), 1000) if shard else 1
    parts = []
    for number in range(1, count + 1):
        try:
            status = os.stat(_nth(shard, number) if shard else path)
        except (OSError, ValueError):
            return ""
        parts.append(f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}")
    return " ".join(parts)


def _from_row(path: str, row: object) -> ModelFile | None:
    if isinstance(row, str):
        return ModelFile(path, None, row)
    if not isinstance(row, dict) or row.keys() != _GLANCE.keys():
        return None
    if any(type(row[name]).__name__ != kind for name, kind in _GLANCE.items()):
        return None
    return ModelFile(path, Glance(**row))


_GLANCE = {part.name: str(part.type) for part in fields(Glance)}


def _kept(folder: Path | None) -> dict[str, object]:
    raw = load_cache(folder / CACHE_NAME, owner=os.geteuid()) if folder else None
    if not isinstance(raw, dict) or raw.get("format") != _FORMAT or not isinstance(raw.get("files"), dict):
        return {}
    files: dict[str, object] = raw["files"]
    return files


def _is_ours(folder: Path) -> bool:
    """Whether only we can put files there; a home without a cache folder yet gets one."""
    if not folder.is_dir() and os.geteuid() != 0:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            return False
    try:
        status = folder.lstat()
    except OSError:
        return False
    return (
        stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022
    )
