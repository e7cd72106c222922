"""The merged definition as rows: key, value as TOML writes it, and where it comes from. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator

from llamad.config.definition import Table
from llamad.config.keys import Path, dotted
from llamad.config.loaded import Loaded, values_of
from llamad.errors import Where

DEFAULT = "default"


def show_rows(loaded: Loaded) -> list[tuple[str, str, str]]:
    """Key, value and origin of everything in force; the origin is `file:line:column` or `default`."""
    return [
        (dotted(path), "(not set)" if value is None else _toml(value), str(place or DEFAULT))
        for path, value, place in _values(loaded)
    ]


def show_json(loaded: Loaded) -> dict[str, object]:
    """`{name, file, values: {key: {value, file, line, column}}}`; `file` is null for a default."""
    values = {
        dotted(path): {
            "value": list(value) if isinstance(value, tuple) else value,
            "file": place.path if place else None,
            "line": place.line if place else None,
            "column": place.column if place else None,
        }
        for path, value, place in _values(loaded)
    }
    return {"name": loaded.name, "file": str(loaded.file), "values": values}


def _values(loaded: Loaded) -> Iterator[tuple[Path, object, Where | None]]:
    for path, value in (*_leaves(loaded.definition, ()), *_leaves(loaded.host, ("host",))):
        yield path, value, loaded.origins.get(path)


def _leaves(table: Table, path: Path) -> Iterator[tuple[Path, object]]:
    """Keys first and sections after them, as in a file."""
    sections: list[tuple[Path, object]] = []
    for key, value in values_of(table):
        if isinstance(value, Table):
            sections += _leaves(value, (*path, key))
        elif isinstance(value, dict):
            sections += [((*path, key, inner), text) for inner, text in value.items()]
        else:
            yield (*path, key), value
    yield from sections


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)
