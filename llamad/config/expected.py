"""What a key of the schema expects, in words, from the type annotations. Pure."""

from __future__ import annotations

import types
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

from llamad.config.definition import Table
from llamad.config.keys import Path
from llamad.config.schema import Words, annotations_of, is_table
from llamad.frozen import dataclass


@dataclass(frozen=True)
class Kind:
    """One thing that a key takes: a type with its bounds or the words for it."""

    type: Any
    words: str = ""
    lowest: float | None = None
    highest: float | None = None
    open_lowest: bool = False
    """The lowest value itself is not allowed."""

    def text(self, *, with_bounds: bool) -> str:
        """`an integer from 1 to 256`; without bounds `an integer`."""
        if self.words:
            return self.words
        text = _TYPE_WORDS.get(self.type, "a table")
        return text + self._bounds() if with_bounds else text

    def _bounds(self) -> str:
        low = "" if self.lowest is None else number(self.lowest)
        high = "" if self.highest is None else number(self.highest)
        if self.open_lowest:
            return f" above {low} and up to {high}" if high else f" above {low}"
        if low and high:
            return f" from {low} to {high}"
        return f" of at least {low}" if low else f" of at most {high}" if high else ""


def number(bound: float) -> str:
    """A bound as it is written: `0.99`, `2147483647`."""
    return f"{bound:g}" if abs(bound) < 1e6 else f"{bound:.0f}"


_TYPE_WORDS: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a text in quotes",
    tuple: "a list in square brackets",
    dict: "a table",
}


def kinds_at(model: type[Table], path: Path) -> list[Kind]:
    """What the value at a path may be; empty for a path that the schema does not know."""
    annotations: list[Any] = [model]
    for part in path:
        annotations = [inner for outer in annotations for inner in _inside(outer, part)]
    return [kind for annotation in annotations for kind in _kinds(annotation)]


def choices(kinds: Iterable[Kind]) -> list[str]:
    """The words that a key takes as they are."""
    return [word for kind in kinds if kind.type is Literal for word in kind.words.split("\0")]


def expectation(kinds: list[Kind], *, with_bounds: bool) -> str:
    """`an integer or "auto"`, `one of "f32", "f16" or "auto"`: everything that a key takes."""
    texts = [kind.text(with_bounds=with_bounds) for kind in kinds if kind.type is not Literal]
    words = [f'"{word}"' for word in choices(kinds)]
    if len(words) > 2:
        texts.append(f"one of {', '.join(words[:-1])} or {words[-1]}")
    else:
        texts += words
    return " or ".join(dict.fromkeys(texts)) or "something else"


def _inside(annotation: Any, part: str | int) -> list[Any]:
    """The annotations of a key of a table, or of an element of a list."""
    found: list[Any] = []
    for kind in _flat(annotation):
        base = get_args(kind)[0] if get_origin(kind) is Annotated else kind
        if is_table(base) and isinstance(part, str):
            keys = annotations_of(base)
            found += [keys[part]] if part in keys else []
        elif get_origin(base) is tuple and isinstance(part, int):
            found.append(get_args(base)[0])
        elif get_origin(base) is dict and isinstance(part, str):
            found.append(get_args(base)[1])
    return found


def _flat(annotation: Any) -> list[Any]:
    """The members of a union, or the annotation itself."""
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for inner in get_args(annotation) for member in _flat(inner)]
    if get_origin(annotation) is Annotated and get_origin(get_args(annotation)[0]) in (
        Union,
        types.UnionType,
    ):
        return _flat(get_args(annotation)[0])
    return [annotation]


def _kinds(annotation: Any) -> list[Kind]:
    return [kind for member in _flat(annotation) for kind in _kind(member)]


def _kind(annotation: Any) -> list[Kind]:
    if annotation is type(None):
        return []
    if get_origin(annotation) is not Annotated:
        if get_origin(annotation) is Literal:
            return [Kind(Literal, "\0".join(get_args(annotation)))]
        return [Kind(get_origin(annotation) or annotation)]
    base, *metadata = get_args(annotation)
    plain = _kind(base)[0]
    words, lowest, highest, is_open = "", None, None, False
    for item in _flat_metadata(metadata):
        if isinstance(item, Words):
            words = item.text
        elif isinstance(item, annotated_types.Ge):
            lowest = float(item.ge)  # type: ignore[arg-type]
        elif isinstance(item, annotated_types.Gt):
            lowest, is_open = float(item.gt), True  # type: ignore[arg-type]
        elif isinstance(item, annotated_types.Le):
            highest = float(item.le)  # type: ignore[arg-type]
    return [Kind(plain.type, words or plain.words, lowest, highest, is_open)]


def _flat_metadata(metadata: Iterable[Any]) -> list[Any]:
    return [
        inner for item in metadata for inner in (item.metadata if isinstance(item, FieldInfo) else [item])
    ]
