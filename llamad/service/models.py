"""The model files under the folders of `[host] models`, as `llamad list` shows them, with a cache of what was read.

The cache is for display alone: nothing is planned, refused or started by it. It is used only if the file that was
opened is ours and nobody else may write it, and it is written only into a folder of which the same is true. Texts of
it are as hostile as those of the files: they are escaped when they are printed, not when they are kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, field, fields
from pathlib import Path

from llamad.errors import BadModelError, LlamadError
from llamad.frozen import dataclass
from llamad.gguf.glance import Glance, glance
from llamad.gguf.identity import identity, shard_of, shard_path
from llamad.store import is_ours, load_cache, store_cache

CACHE_NAME = ".headers.json"
"""No name of a definition begins with a point."""
FILES_LIMIT = 10_000
DEPTH_LIMIT = 5
_FORMAT = 1


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
    if cache is not None and seen != kept and is_ours(cache):
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
    shard = shard_of(name)
    return shard is not None and shard[1] > 1 and shard_path(shard[0], 1, shard[2]) in names


def _looked_at(path: str, kept: Mapping[str, object], seen: dict[str, object]) -> ModelFile:
    key = identity(path)
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
