"""The strict schema of the tables of `definition`: what each key takes, in types, bounds and rules. No I/O.

Each table's fields are declared once, there; the readers here are made from them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Set
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, cast, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model, model_validator

from llamad.config import definition
from llamad.config.definition import Placement, Server, Table
from llamad.config.listen import parse_listen
from llamad.units import parse_duration, parse_size

CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]


@dataclass(frozen=True)
class Words:
    """Marks a type with what it expects, in the words of an error message."""

    text: str


class KeyProblem(ValueError):
    """A rule between keys of one table is broken; `key` is the one to point at."""

    def __init__(self, key: str, text: str, fix: str = "change one of the two") -> None:
        super().__init__(text)
        self.key = key
        self.fix = fix


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


Tokens = Annotated[int, Field(ge=1, le=2**31 - 1)]
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
        _annotations[table] = get_type_hints(table, {**vars(definition), **globals()}, include_extras=True)
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
        rule = _RULES.get(self.makes)
        if rule is not None:
            rule(self.table(), self.model_fields_set)
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


# -- rules between the keys of one table ------------------------------------------------------------------


def _check_placement(placement: Placement, written: Set[str]) -> None:
    context, batch, ubatch = placement.context, placement.batch, placement.ubatch
    if context != "auto" and "context_min" in written and placement.context_min > context:
        raise KeyProblem("context_min", f"{placement.context_min} is above context ({context})")
    if batch != "auto" and ubatch != "auto" and ubatch > batch:
        raise KeyProblem("ubatch", f"{ubatch} is above batch ({batch})")
    quantised = placement.kv_cache not in ("auto", "f32", "f16", "bf16")
    if quantised and placement.flash_attention is False:
        what = f'"{placement.kv_cache}" needs flash attention, which is switched off'
        raise KeyProblem("kv_cache", what)
    if placement.cpu_moe and placement.n_cpu_moe != "auto":
        raise KeyProblem("n_cpu_moe", "cpu_moe is written too, which moves the experts of all layers")
    if placement.tensor_split and not any(placement.tensor_split):
        raise KeyProblem("tensor_split", "all shares are 0", "give one device a share above 0")


def _check_server(server: Server, _written: Set[str]) -> None:
    if server.chat_template is not None and server.chat_template_file is not None:
        raise KeyProblem("chat_template_file", "chat_template is written too; a server takes one of them")
    if server.embeddings and server.reranking:
        raise KeyProblem("reranking", "embeddings is true too; a server does one of them")


_RULES: dict[type[Table], Callable[[Any, Set[str]], None]] = {
    Placement: _check_placement,
    Server: _check_server,
}
