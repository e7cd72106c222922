"""The strict schema of the tables of `definition`: what each key takes, in types, bounds and rules. No I/O.

Each table's fields are declared once, there; the readers here are made from them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, cast, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model, model_validator

from llamad.config import definition
from llamad.config.definition import Table
from llamad.config.listen import parse_listen
from llamad.config.table_rules import check_table
from llamad.frozen import dataclass
from llamad.units import parse_duration, parse_size

CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]


@dataclass(frozen=True)
class Words:
    """Marks a type with what it expects, in the words of an error message."""

    text: str


def _size(text: str) -> str:
    if text != "auto":
        parse_size(text)
    return text


def _memory(text: str) -> str:
    if re.fullmatch(r"\d+%", text):
        if not 1 <= int(text[:-1][:4]) <= 100:
            raise ValueError(f'not a share: "{text}" (write 1% to 100%)')
        return text
    return _size(text)


def _duration(text: str) -> str:
    parse_duration(text)
    return text


def _listen(text: str) -> str:
    parse_listen(text)
    return text


def _cpu_range(text: str) -> str:
    first, _, last = text.partition("-")
    numbers = [part for part in (first, last) if re.fullmatch(r"[0-9]{1,3}", part)]
    if len(numbers) < 2 or not int(first) <= int(last) <= _LAST_CPU:
        raise ValueError(f'not a range of CPUs: "{text}" (write for example "0-7", at most {_LAST_CPU})')
    return text


_LAST_CPU = 511
"""llama.cpp's masks end there."""

Tokens = Annotated[int, Field(ge=1, le=2**31 - 1)]
TokensOrNone = Annotated[int, Field(ge=0, le=2**31 - 1)]
Layers = Annotated[int, Field(ge=0, le=1024)]
LayerRange = Annotated[
    tuple[Annotated[int, Field(ge=0, le=1024)], ...],
    Field(min_length=2, max_length=2),
    Words("a first and a last layer such as [10, 31]"),
]
Threads = Annotated[int, Field(ge=1, le=4096)]
CpuMask = Annotated[
    str, Field(pattern=r"^(0x)?[0-9a-fA-F]{1,128}$"), Words('a hexadecimal mask such as "ff"')
]
CpuRange = Annotated[str, AfterValidator(_cpu_range), Words('a range of CPUs such as "0-7"')]
RpcServer = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?:[1-9][0-9]{0,4}$"),
    Words('a host and a port such as "10.0.0.2:50052"'),
]
FilePath = Annotated[str, Field(min_length=1)]
Tag = Annotated[str, Field(pattern=r"^[^,]+$", max_length=100), Words("a text without commas")]
Scalar = bool | int | float | str
Scale = Annotated[float, Field(ge=-1000, le=1000)]
Share = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(ge=0, le=1000)]
SomeFactor = Annotated[float, Field(gt=0, le=1_000_000_000_000)]
Penalty = Annotated[float, Field(ge=-100, le=100)]
Sampler = Literal[
    "penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature", "adaptive_p",
    "infill",
]  # fmt: skip
Speculation = Literal[
    "draft-simple", "draft-eagle3", "draft-mtp", "draft-dflash", "draft-dspark",
    "ngram-simple", "ngram-map-k", "ngram-map-k4v", "ngram-mod", "ngram-cache",
]  # fmt: skip
Auto = Literal["auto"]
Size = Annotated[str, AfterValidator(_size), Words('a size such as "512MiB", or "auto"')]
Memory = Annotated[
    str, AfterValidator(_memory), Words('a size such as "10GiB", a share such as "60%", or "auto"')
]
Duration = Annotated[str, AfterValidator(_duration), Words('a duration such as "30min"')]
ListenText = Annotated[str, AfterValidator(_listen), Words('an address such as "127.0.0.1:8081"')]
Seconds = Annotated[float, Field(ge=0, le=10_000_000)]
SomeSeconds = Annotated[float, Field(gt=0, le=10_000_000)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]
SomeBytes = Annotated[int, Field(ge=0, le=2**40)]


_Table = TypeVar("_Table", bound=Table)


def read_json(table: type[_Table], text: str) -> _Table:
    """The table that a JSON text describes. Raises pydantic.ValidationError; no value is coerced."""
    return cast("_Table", _reader(table).model_validate_json(text).table())


_annotations: dict[type[Table], Mapping[str, Any]] = {}


def annotations_of(table: type[Table]) -> Mapping[str, Any]:
    """What each key of a table takes, as types with their bounds."""
    if table not in _annotations:
        hints = get_type_hints(table, {**vars(definition), **globals()}, include_extras=True)
        _annotations[table] = {field.name: hints[field.name] for field in fields(table)}
    return _annotations[table]


def is_table(annotation: object) -> bool:
    """Whether a key's annotation is a table of its own."""
    return isinstance(annotation, type) and issubclass(annotation, Table)


class _Reader(BaseModel):
    """Reads a TOML table: unknown keys refused, no coercion.

    Validators are built when first used, and the defaults without any: a table that is only a part of another
    needs none of its own.
    """

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True
    )
    makes: ClassVar[type[Table]]

    def table(self) -> Table:
        """What was read, as the plain table."""
        values = {
            key: value.table() if isinstance(value, _Reader) else value
            for key, value in self.__dict__.items()
        }
        return self.makes(**values)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_table(self.table(), self.model_fields_set)
        return self


_readers: dict[type[Table], type[_Reader]] = {}


def _reader(table: type[Table]) -> type[_Reader]:
    if table not in _readers:
        _readers[table] = _make_reader(table)
    return _readers[table]


def _make_reader(table: type[Table]) -> type[_Reader]:
    declared: dict[str, Any] = {}
    for field in fields(table):
        annotation = annotations_of(table)[field.name]
        if is_table(annotation):
            inner = _reader(annotation)
            declared[field.name] = (inner, Field(default_factory=inner.model_construct))
        elif field.default_factory is not MISSING:
            declared[field.name] = (annotation, Field(default_factory=field.default_factory))
        else:
            default = Field() if field.default is MISSING else field.default
            declared[field.name] = (annotation, default)
    reader = create_model(table.__name__, __base__=_Reader, **declared)
    reader.makes = table
    return reader
