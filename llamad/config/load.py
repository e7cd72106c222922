"""From files to a Definition: read, merge, validate, and know where each value was written.

Blocking file I/O: call it off the event loop. What is merged, later over earlier: the tables of `llamad.toml`,
`NAME.toml`, then `NAME.toml.d/*.toml` by file name. Tables merge key by key; anything else replaces.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from llamad.config.definition import Definition, Host, HostSettings, Table
from llamad.config.files import dropin_files, read_file
from llamad.config.merge import Merged, value_paths
from llamad.config.names import (
    DEFAULT_ROOT,
    HOST_FILE,
    check_name,
    definition_names,
    misnamed_files,
    name_of_file,
    offer,
)
from llamad.config.places import Path as KeyPath
from llamad.config.problems import Problem, problems_of
from llamad.config.rules import broken_rules
from llamad.config.text import TomlText, dotted, parse_toml, shown
from llamad.errors import ConfigError, ConfigErrors, LlamadError, Where

__all__ = [
    "DEFAULT_ROOT",
    "Loaded",
    "LoadedHost",
    "check_name",
    "definition_names",
    "in_order",
    "load_all",
    "load_definition",
    "load_host",
    "load_path",
    "misnamed_files",
    "validate",
]

DEFAULT_TABLES = ("placement", "limits", "server", "environment", "idle")
"""The tables of `llamad.toml` that are defaults for every definition."""

Origins = Mapping[KeyPath, Where | None]
_Table = TypeVar("_Table", bound=Table)


@dataclass(frozen=True)
class LoadedHost:
    """`llamad.toml`, or the built-in defaults where there is none; `origins` as in Loaded."""

    settings: HostSettings
    origins: Origins
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Loaded:
    """A definition with the host's defaults merged in.

    `origins` has every value of the result by its path (`("placement", "context")`, `("host", "server")`), with
    None for a built-in default. `written` has the dotted paths that an admin wrote: promises. `digest` is the
    sha256 of the names and contents of `files`; it changes when any of them does.
    """

    name: str
    file: Path
    definition: Definition
    host: Host
    origins: Origins
    written: frozenset[str]
    files: tuple[Path, ...]
    digest: str

    def where(self, *path: str | int) -> Where:
        """Where a value was written; of a default the definition's first line."""
        for length in range(len(path), 0, -1):
            place = self.origins.get(path[:length])
            if place is not None:
                return place
        return Where(str(self.file), 1, 1)


def load_definition(name: str, root: Path = DEFAULT_ROOT) -> Loaded:
    """The definition NAME of a folder.

    Raises ConfigError, or ConfigErrors with all problems in the order of their places, and AccessError for files
    that must not be read.
    """
    check_name(name, root)
    file = root / f"{name}.toml"
    loaded = _load(name, file, root)
    if loaded is None:
        fix = offer(name, root) or f"write it, or let `llamad add {name} FILE.gguf` do it"
        raise ConfigError(f'there is no definition "{name}"', why=f"{file} does not exist", fix=fix)
    return loaded


def load_path(file: Path, root: Path = DEFAULT_ROOT) -> Loaded:
    """A definition file that lies anywhere, with the host settings of `root`. Raises as load_definition."""
    loaded = _load(name_of_file(file.name) or "definition", file, root)
    if loaded is None:
        why = f"{shown(str(file), 300)} does not exist"
        raise ConfigError("there is no such definition", why=why, fix="correct the path")
    return loaded


def load_host(root: Path = DEFAULT_ROOT) -> LoadedHost:
    """The host settings. Raises as load_definition; a missing file is no error."""
    file = root / HOST_FILE
    contents = _read_all([file])
    merged = Merged()
    for text in _parse_all(contents):
        merged.add(text, text.tables)
    problems, settings = _validate(HostSettings, merged, file)
    if settings is None:
        raise _all(problems, contents)
    origins = {path: merged.origins.get(path) for path in value_paths(settings)}
    return LoadedHost(settings, origins, tuple(contents))


def validate(content: bytes, file: Path) -> Definition:
    """The definition that one file alone would make. Raises as load_definition; reads nothing."""
    merged = Merged()
    text = parse_toml(content, str(file))
    merged.add(text, text.tables)
    problems, definition = _validate_definition(merged, file)
    if definition is None or problems:
        raise _all(problems, [file])
    return definition


def load_all(root: Path = DEFAULT_ROOT) -> list[Loaded]:
    """Every definition of a folder that can be loaded; the others are left out, their own check reports them."""
    found: list[Loaded] = []
    for name in definition_names(root):
        try:
            found.append(load_definition(name, root))
        except LlamadError:
            continue
    return found


def _load(name: str, file: Path, root: Path) -> Loaded | None:
    """None where the definition's own file does not exist."""
    host_file = root / HOST_FILE
    contents = _read_all([host_file, file, *dropin_files(file)])
    if file not in contents:
        return None
    host_merged, merged = Merged(), Merged()
    for text in _parse_all(contents):
        is_host = text.path == str(host_file)
        if is_host:
            host_merged.add(text, text.tables)
        merged.add(text, _defaults(text) if is_host else text.tables)
    problems, settings = _validate(HostSettings, host_merged, host_file)
    found, definition = _validate_definition(merged, file)
    if definition is None or settings is None or found:
        raise _all([*problems, *found], contents)
    origins = {path: merged.origins.get(path) for path in value_paths(definition)}
    origins |= {path: host_merged.origins.get(path) for path in value_paths(settings.host, ("host",))}
    return Loaded(
        name=name,
        file=file,
        definition=definition,
        host=settings.host,
        origins=origins,
        written=frozenset(dotted(path) for path, place in origins.items() if place is not None),
        files=tuple(contents),
        digest=_digest(contents),
    )


def _read_all(files: list[Path]) -> dict[Path, bytes]:
    """The contents of those that exist."""
    contents = {file: read_file(file) for file in files}
    return {file: content for file, content in contents.items() if content is not None}


def _parse_all(contents: Mapping[Path, bytes]) -> list[TomlText]:
    """The texts of all files. Where one is no TOML its values are unknown, so nothing else is judged."""
    texts: list[TomlText] = []
    problems: list[LlamadError] = []
    for file, content in contents.items():
        try:
            texts.append(parse_toml(content, str(file)))
        except ConfigError as error:
            problems.append(error)
    if problems:
        raise _all(problems, contents)
    return texts


def _defaults(text: TomlText) -> dict[str, Any]:
    """The tables of `llamad.toml` that are for definitions; what is no table its own validation reports."""
    return {key: text.tables[key] for key in DEFAULT_TABLES if isinstance(text.tables.get(key), dict)}


def _validate(model: type[_Table], merged: Merged, file: Path) -> tuple[list[LlamadError], _Table | None]:
    try:
        # Strict validation takes lists for tuples, and texts for literals, only from JSON.
        return [], model.model_validate_json(json.dumps(merged.tables))
    except ValidationError as error:
        problems = problems_of(error, merged.tables, model)
        return [_located(problem, merged, file) for problem in problems], None


def _validate_definition(merged: Merged, file: Path) -> tuple[list[LlamadError], Definition | None]:
    problems, definition = _validate(Definition, merged, file)
    if definition is not None:
        problems += [_located(problem, merged, file) for problem in broken_rules(definition)]
    return problems, definition


def _located(problem: Problem, merged: Merged, file: Path) -> ConfigError:
    where = merged.where(problem.path) or Where(str(file), 1, 1)
    return ConfigError(f"{dotted(problem.path)}: {problem.what}", where=where, fix=problem.fix)


def _all(problems: list[LlamadError], files: Iterable[Path]) -> LlamadError:
    """All problems as one error, each once."""
    ordered = in_order({str(problem): problem for problem in problems}.values(), files)
    return ordered[0] if len(ordered) == 1 else ConfigErrors(ordered)


def in_order(problems: Iterable[LlamadError], files: Iterable[Path]) -> list[LlamadError]:
    """Problems in the order of the files that they are in, and of their lines."""
    order = {str(file): number for number, file in enumerate(files)}

    def place(problem: LlamadError) -> tuple[int, int, int]:
        where = problem.where or Where("")
        return order.get(where.path, len(order)), where.line, where.column

    return sorted(problems, key=place)


def _digest(contents: Mapping[Path, bytes]) -> str:
    digest = hashlib.sha256()
    for file, content in contents.items():
        digest.update(f"{file}\0{len(content)}\0".encode("utf-8", "surrogateescape") + content)
    return digest.hexdigest()
