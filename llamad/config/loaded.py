"""A definition as it was loaded: values, where each was written, and what is a promise. No I/O.

It is apart from `load`, which parses and judges: who only uses a definition, or has a kept one, needs neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path

from llamad.config.definition import Definition, Host, Table
from llamad.config.files import digest_of
from llamad.config.keys import Path as KeyPath
from llamad.config.keys import dotted
from llamad.errors import LlamadError, Where
from llamad.frozen import dataclass

Origins = Mapping[KeyPath, Where | None]


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


def make_loaded(
    name: str,
    file: Path,
    definition: Definition,
    host: Host,
    places: Mapping[KeyPath, Where],
    contents: Mapping[Path, bytes],
) -> Loaded:
    """A definition that was judged, with its host settings; `places` has what was written in `contents`."""
    origins = {path: places.get(path) for path in value_paths(definition)}
    origins |= {path: places.get(path) for path in value_paths(host, ("host",))}
    return Loaded(
        name=name,
        file=file,
        definition=definition,
        host=host,
        origins=origins,
        written=frozenset(dotted(path) for path, place in origins.items() if place is not None),
        files=tuple(contents),
        digest=digest_of(contents),
    )


def in_order(problems: Iterable[LlamadError], files: Iterable[Path]) -> list[LlamadError]:
    """Problems in the order of the files that they are in, and of their lines."""
    order = {str(file): number for number, file in enumerate(files)}

    def place(problem: LlamadError) -> tuple[int, int, int]:
        where = problem.where or Where("")
        return order.get(where.path, len(order)), where.line, where.column

    return sorted(problems, key=place)


def values_of(table: Table) -> Iterator[tuple[str, object]]:
    """Each key of a table with its value."""
    for field in fields(table):
        yield field.name, getattr(table, field.name)


def value_paths(table: Table, path: KeyPath = ()) -> Iterator[KeyPath]:
    """The path of every value of a validated table, and of every element of a list."""
    for key, value in values_of(table):
        if isinstance(value, Table):
            yield from value_paths(value, (*path, key))
        elif isinstance(value, dict):
            yield from ((*path, key, inner) for inner in value)
        else:
            yield from paths_in(value, (*path, key))


def paths_in(value: object, path: KeyPath) -> Iterator[KeyPath]:
    """The path of a value, and of all that is in it."""
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from paths_in(inner, (*path, key))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from paths_in(inner, (*path, index))
