"""From files to a Definition: read, merge, validate, and know where each value was written.

Blocking file I/O: call it off the event loop. What is merged, later over earlier: the tables of `llamad.toml`,
`NAME.toml`, then `NAME.toml.d/*.toml` by file name. Tables merge key by key; anything else replaces.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from llamad.config.definition import Definition, HostSettings, Table
from llamad.config.files import read_all, read_definition
from llamad.config.keys import dotted, shown
from llamad.config.loaded import Loaded, Origins, in_order, make_loaded, value_paths
from llamad.config.merge import Merged
from llamad.config.names import (
    DEFAULT_ROOT,
    HOST_FILE,
    check_name,
    definition_names,
    misnamed_files,
    name_of_file,
    offer,
)
from llamad.config.text import TomlText, parse_toml
from llamad.errors import ConfigError, ConfigErrors, LlamadError, Where
from llamad.frozen import dataclass

if TYPE_CHECKING:
    from llamad.config.problems import Problem

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

DEFAULT_TABLES = ("placement", "limits", "cache", "log", "server", "sampling", "environment", "idle")
"""The tables of `llamad.toml` that are defaults for every definition."""

_Table = TypeVar("_Table", bound=Table)


@dataclass(frozen=True)
class LoadedHost:
    """`llamad.toml`, or the built-in defaults where there is none; `origins` as in Loaded."""

    settings: HostSettings
    origins: Origins
    files: tuple[Path, ...]


def load_definition(name: str, root: Path = DEFAULT_ROOT) -> Loaded:
    """The definition NAME of a folder.

    Raises ConfigError, or ConfigErrors with all problems in the order of their places, and AccessError for files
    that must not be read.
    """
    check_name(name, root)
    file = root / f"{name}.toml"
    contents = read_definition(file, root)
    if file not in contents:
        fix = offer(name, root) or f"write it, or let `llamad add {name} FILE.gguf` do it"
        raise ConfigError(f'there is no definition "{name}"', why=f"{file} does not exist", fix=fix)
    return judge(name, file, root, contents)


def load_path(file: Path, root: Path = DEFAULT_ROOT) -> Loaded:
    """A definition file that lies anywhere, with the host settings of `root`. Raises as load_definition."""
    contents = read_definition(file, root)
    if file not in contents:
        why = f"{shown(str(file), 300)} does not exist"
        raise ConfigError("there is no such definition", why=why, fix="correct the path")
    return judge(name_of_file(file.name) or "definition", file, root, contents)


def load_host(root: Path = DEFAULT_ROOT) -> LoadedHost:
    """The host settings. Raises as load_definition; a missing file is no error."""
    return judge_host(root, read_all([root / HOST_FILE]))


def judge_host(root: Path, contents: Mapping[Path, bytes]) -> LoadedHost:
    """The host settings that the contents of their file make. Raises as load_definition."""
    file = root / HOST_FILE
    merged = Merged()
    for text in _parse_all(contents):
        merged.add(text, text.tables)
    problems, settings = _validate_host(merged, file)
    if settings is None or problems:
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


def judge(name: str, file: Path, root: Path, contents: Mapping[Path, bytes]) -> Loaded:
    """The definition that the contents of its files make (see `read_definition`). Raises as load_definition."""
    host_file = root / HOST_FILE
    host_merged, merged = Merged(), Merged()
    for text in _parse_all(contents):
        is_host = text.path == str(host_file)
        if is_host:
            host_merged.add(text, text.tables)
        merged.add(text, _defaults(text) if is_host else text.tables)
    problems, settings = _validate_host(host_merged, host_file)
    found, definition = _validate_definition(merged, file)
    if definition is None or settings is None or problems or found:
        raise _all([*problems, *found], contents)
    host_places = {path: place for path, place in host_merged.origins.items() if path[0] == "host"}
    return make_loaded(name, file, definition, settings.host, merged.origins | host_places, contents)


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
    if not merged.tables and model is HostSettings:
        return [], model()  # nothing is written: the judge, who costs a tenth of a second, stays out
    from pydantic import ValidationError

    from llamad.config.problems import problems_of
    from llamad.config.schema import read_json

    try:
        # Strict validation takes lists for tuples, and texts for literals, only from JSON.
        return [], read_json(model, json.dumps(merged.tables))
    except ValidationError as error:
        problems = problems_of(error, merged.tables, model)
        return [_located(problem, merged, file) for problem in problems], None


def _validate_host(merged: Merged, file: Path) -> tuple[list[LlamadError], HostSettings | None]:
    problems, settings = _validate(HostSettings, merged, file)
    if settings is not None and "host" in merged.tables:
        from llamad.config.rules import broken_rules_of_host

        problems += [_located(problem, merged, file) for problem in broken_rules_of_host(settings.host)]
    return problems, settings


def _validate_definition(merged: Merged, file: Path) -> tuple[list[LlamadError], Definition | None]:
    problems, definition = _validate(Definition, merged, file)
    if definition is not None:
        from llamad.config.rules import broken_rules

        problems += [_located(problem, merged, file) for problem in broken_rules(definition)]
    return problems, definition


def _located(problem: Problem, merged: Merged, file: Path) -> ConfigError:
    where = merged.where(problem.path) or Where(str(file), 1, 1)
    return ConfigError(f"{dotted(problem.path)}: {problem.what}", where=where, fix=problem.fix)


def _all(problems: list[LlamadError], files: Iterable[Path]) -> LlamadError:
    """All problems as one error, each once."""
    ordered = in_order({str(problem): problem for problem in problems}.values(), files)
    return ordered[0] if len(ordered) == 1 else ConfigErrors(ordered)
