"""Definitions that were judged before: loaded again without parsing and judging while nothing changed.

A start must not wait for the TOML parser and the schema (0.2 s on a slow core), and most starts find the
definition as it was. What is kept is a cache: each entry has the hash of all that it depends on and of itself,
and whatever does not match is judged anew. Blocking file I/O: call it off the event loop.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from llamad import __version__
from llamad.config.definition import Definition, Host, Table
from llamad.config.files import digest_of, read_all, read_definition
from llamad.config.keys import Path as KeyPath
from llamad.config.loaded import Loaded, make_loaded
from llamad.config.names import DEFAULT_ROOT, HOST_FILE, check_name, definition_names
from llamad.errors import LlamadError, Where
from llamad.store import load_cache, store_cache

_SOURCES = Path(__file__).parent
_REFUSED = "null"
_Table = TypeVar("_Table", bound=Table)


Judge = Callable[[str, Path, Path, Mapping[Path, bytes]], Loaded]


def judge_definition(name: str, file: Path, root: Path, contents: Mapping[Path, bytes]) -> Loaded:
    """`load.judge`, with the parser and the schema loaded when they are needed."""
    from llamad.config.load import judge

    return judge(name, file, root, contents)


def load_kept(
    name: str,
    root: Path = DEFAULT_ROOT,
    cache_file: Path | None = None,
    *,
    judge: Judge = judge_definition,
    stamp: str | None = None,
) -> Loaded:
    """The definition NAME of a folder, exactly as `load_definition` gives it, and with the same errors.

    It is taken from `cache_file` where that has it as its files are now, else judged and kept there. A refused
    definition is judged each time. `stamp`: by whom (default: `own_stamp`).
    """
    check_name(name, root)
    file = root / f"{name}.toml"
    contents = read_definition(file, root)
    if file not in contents:
        from llamad.config.load import load_definition

        return load_definition(name, root)  # it says what is missing, and what may be meant
    shelf = _Shelf(cache_file, stamp)
    text = shelf.find(name, contents)
    kept = loaded_of(text, name, file, contents) if text is not None else None
    if kept is not None:
        return kept
    loaded = judge(name, file, root, contents)
    shelf.put(name, contents, text_of(loaded))
    shelf.save([name])
    return loaded


def load_host_kept(root: Path = DEFAULT_ROOT, cache_file: Path | None = None) -> Host:
    """The host settings of a folder, exactly as `load_host` gives them, and with the same errors."""
    file = root / HOST_FILE
    contents = read_all([file])
    if not contents:
        return Host()
    shelf = _Shelf(cache_file, None)
    text = shelf.find(HOST_FILE, contents)
    try:
        kept = _table(Host, json.loads(text)) if text is not None else None
    except (ValueError, TypeError, KeyError, AttributeError):
        kept = None
    if kept is not None:
        return kept
    from llamad.config.load import load_host

    host = load_host(root).settings.host
    shelf.put(HOST_FILE, contents, json.dumps(asdict(host)))
    shelf.save([HOST_FILE])
    return host


def load_all_kept(
    root: Path = DEFAULT_ROOT,
    cache_file: Path | None = None,
    *,
    judge: Judge = judge_definition,
    stamp: str | None = None,
) -> list[Loaded]:
    """Every definition of a folder that can be loaded, exactly as `load_all` gives them.

    What `cache_file` has of them is not judged again; for one that was refused it has just that. `stamp` as for
    `load_kept`.
    """
    names = definition_names(root)
    shelf = _Shelf(cache_file, stamp)
    found = [loaded for name in names if (loaded := _neighbour(name, root, shelf, judge)) is not None]
    shelf.save(names)
    return found


def _neighbour(name: str, root: Path, shelf: _Shelf, judge: Judge) -> Loaded | None:
    file = root / f"{name}.toml"
    try:
        contents = read_definition(file, root)
    except LlamadError:
        return None
    if file not in contents:
        return None
    text = shelf.find(name, contents)
    if text == _REFUSED:
        return None
    kept = loaded_of(text, name, file, contents) if text is not None else None
    if kept is not None:
        return kept
    try:
        loaded = judge(name, file, root, contents)
    except LlamadError:
        shelf.put(name, contents, _REFUSED)
        return None
    shelf.put(name, contents, text_of(loaded))
    return loaded


class _Shelf:
    """The entries of one cache file: for each name a text, and the mark of all that it holds for."""

    def __init__(self, file: Path | None, stamp: str | None) -> None:
        self._stamp = own_stamp() if stamp is None else stamp
        self._file = file if self._stamp else None
        content = load_cache(self._file) if self._file else None
        self._entries: dict[str, Any] = content if isinstance(content, dict) else {}
        self._changed = False

    def find(self, name: str, contents: Mapping[Path, bytes]) -> str | None:
        """The text that was put for a definition of these contents."""
        match self._entries.get(name):
            case [str(mark), str(text)] if mark == self._mark(name, contents, text):
                return text
        return None

    def put(self, name: str, contents: Mapping[Path, bytes], text: str) -> None:
        """Have a text from now on."""
        self._entries[name] = [self._mark(name, contents, text), text]
        self._changed = True

    def save(self, names: Iterable[str]) -> None:
        """Write the entries of these names, and no others, if there is anything new."""
        if self._file and self._changed:
            store_cache(self._file, {name: self._entries[name] for name in names if name in self._entries})

    def _mark(self, name: str, contents: Mapping[Path, bytes], text: str) -> str:
        """What an entry depends on: who judged, the names and contents of the files, and the entry itself."""
        parts = (self._stamp, name, digest_of(contents), text)
        return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


@cache
def own_stamp(sources: Path = _SOURCES) -> str:
    """What tells this llamad from others that may judge otherwise; empty where it cannot be told.

    The version, for packages; size and age of the judging sources, for who edits them.
    """
    files = [sources.with_name("units.py"), sources.with_name("errors.py")]
    try:
        files += [sources / name for name in sorted(os.listdir(sources)) if name.endswith(".py")]
        seen = [(file.name, os.stat(file)) for file in files]
    except OSError:
        return ""
    return " ".join([__version__, *(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in seen)])


# -- a definition as text ------------------------------------------------------------------------------------


def text_of(loaded: Loaded) -> str:
    places = [
        [path, place.path, place.line, place.column]
        for path, place in loaded.origins.items()
        if place is not None
    ]
    return json.dumps([asdict(loaded.definition), asdict(loaded.host), places], separators=(",", ":"))


def loaded_of(text: str, name: str, file: Path, contents: Mapping[Path, bytes]) -> Loaded | None:
    """What `text_of` wrote down; None for a text of another make."""
    try:
        definition, host, written = json.loads(text)
        places: dict[KeyPath, Where] = {
            tuple(path): Where(source, line, column) for path, source, line, column in written
        }
        return make_loaded(name, file, _table(Definition, definition), _table(Host, host), places, contents)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _table(kind: type[_Table], values: Mapping[str, Any]) -> _Table:
    """A table of plain JSON values: its sections are tables again, and lists tuples."""
    made = dict(values)
    for field in fields(kind):
        value = made[field.name]
        if isinstance(field.default, Table):
            made[field.name] = _table(type(field.default), value)
        elif isinstance(value, list):
            made[field.name] = tuple(value)
    return kind(**made)
