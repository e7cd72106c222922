"""The header of one GGUF file: keys, values and the table of tensors, read with limits on everything.

Files come from the internet. Whatever is in them, `read_header` returns a Header or raises a typed error, in
bounded time and memory. Scalars, short texts and short arrays are kept; the rest is counted.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from itertools import pairwise
from typing import TypeAlias

from llamad.frozen import dataclass
from llamad.gguf.facts import Tensor
from llamad.gguf.foreign import FIRST_BYTES, foreign
from llamad.gguf.ggml_types import FOREIGN_TYPES_FROM, GGML_TYPES, REMOVED_TYPES, nbytes, type_name
from llamad.gguf.window import INCOMPLETE_FIX, STRING_LIMIT_BYTES, Window, bad_model, opened, read_at
from llamad.text import shown
from llamad.units import format_bytes, pad

KEYS_LIMIT = 65_536
TENSORS_LIMIT = 1_000_000
KEY_LIMIT_BYTES = 65_535
KEPT_TEXT_BYTES = 4096
KEPT_ARRAY_ENTRIES = 4096
STRING_ARRAY_LIMIT = 1 << 24
SCALAR_ARRAY_LIMIT = 1 << 26
TENSOR_NAME_LIMIT_BYTES = 63
DIMS_LIMIT = 4
DIM_LIMIT = 1 << 40
ALIGNMENT_LIMIT = 1 << 20
_INT63_LIMIT = 1 << 63
_SAMPLE_BYTES = 4096
_AGAIN = "the file is damaged: fetch it again"

_BOOL, _STRING, _ARRAY = 7, 8, 9
_SCALARS: Mapping[int, struct.Struct] = {
    kind: struct.Struct("<" + letter)
    for kind, letter in zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIifBQqd", strict=True)
}
_MIN_KEY_BYTES = 8 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 4 + 4 + 8


@dataclass(frozen=True, slots=True)
class Counted:
    """A value that was not kept: `count` bytes of a text, or entries of an array."""

    kind: str
    """`text` | `strings` | `numbers`"""
    count: int


Value: TypeAlias = int | float | str | tuple[int | float, ...] | Counted


@dataclass(frozen=True)
class Header:
    """One file's header. Tensor data begin at `data_start`; a whole file has at least `needs_bytes`."""

    path: str
    version: int
    file_bytes: int
    data_start: int
    needs_bytes: int
    alignment: int
    values: Mapping[str, Value]
    tensors: tuple[Tensor, ...]
    digest: str
    """sha256 of the file's size, its tensor table, and the first and last 4 KiB of its tensor data."""
    warnings: tuple[str, ...] = ()

    def number(self, key: str) -> int | None:
        """An integer value; None where the key is missing or something else."""
        value = self.values.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def text(self, key: str) -> str:
        """A text value with control characters escaped; empty where the key is missing or no text."""
        value = self.values.get(key)
        return shown(value, KEPT_TEXT_BYTES) if isinstance(value, str) else ""


def read_header(path: str) -> Header:
    """Read the header of one file (one shard of a split model).

    Raises ModelMissingError where there is no file or it cannot be read now, AccessError without permission,
    and BadModelError, with the reason in words, for all that is not a whole, sane GGUF of version 2 or 3.
    """
    with opened(path) as (fd, size_bytes):
        verdict = foreign(read_at(fd, path, FIRST_BYTES, 0), path)
        if verdict:
            raise bad_model(path, *verdict)
        window = Window(fd, path, size_bytes)
        version, n_tensors, n_keys = _preamble(window)
        values = _values(window, n_keys)
        alignment = _alignment(window, values)
        table = _tensor_table(window, n_tensors)
        data_start = pad(window.position, alignment)
        needs_bytes = _needs_bytes(window, table, data_start, alignment)
        digest = _table_digest(size_bytes, data_start, table)
        digest.update(read_at(fd, path, _SAMPLE_BYTES, data_start))
        digest.update(read_at(fd, path, _SAMPLE_BYTES, max(data_start, needs_bytes - _SAMPLE_BYTES)))
    return Header(
        path=path,
        version=version,
        file_bytes=size_bytes,
        data_start=data_start,
        needs_bytes=needs_bytes,
        alignment=alignment,
        values=values,
        tensors=tuple(tensor for tensor, _ in table),
        digest=digest.hexdigest(),
        warnings=_warnings(path, table, alignment),
    )


def _preamble(window: Window) -> tuple[int, int, int]:
    window.skip(4)
    version = window.u32()
    if version and version & 0xFFFF == 0:
        raise window.bad("it is a big-endian GGUF", "convert it with gguf-py's gguf_convert_endian.py")
    if version not in (2, 3):
        fix = "fetch a newer conversion of the model" if version < 2 else "update llamad and llama.cpp"
        raise window.bad(f"it is GGUF version {version}, only 2 and 3 can be loaded", fix)
    n_tensors, n_keys = window.u64(), window.u64()
    if n_keys > KEYS_LIMIT:
        raise window.bad(f"its header claims {n_keys} keys (at most {KEYS_LIMIT})", _AGAIN)
    if n_tensors > TENSORS_LIMIT:
        raise window.bad(f"its header claims {n_tensors} tensors (at most {TENSORS_LIMIT})", _AGAIN)
    if n_keys * _MIN_KEY_BYTES + n_tensors * _MIN_TENSOR_BYTES > window.left_bytes:
        raise window.cut_off()
    return version, n_tensors, n_keys


def _string(window: Window, limit_bytes: int, what: str) -> str:
    length = window.u64()
    if length > limit_bytes:
        raise window.bad(f"{what} of {length} bytes in its header (at most {limit_bytes})")
    return window.take(length).decode("utf-8", "backslashreplace")


def _values(window: Window, n_keys: int) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for _ in range(n_keys):
        key = _string(window, KEY_LIMIT_BYTES, "a key")
        if key in values:
            raise window.bad(f"the key {shown(key)} is there twice")
        values[key] = _value(window, key, window.u32())
    return values


def _value(window: Window, key: str, kind: int) -> Value:
    if kind in _SCALARS:
        return _scalars(window, key, kind, 1)[0]
    if kind == _STRING:
        return _text(window, key)
    if kind == _ARRAY:
        return _array(window, key)
    raise window.bad(f"the key {shown(key)} has the unknown value type {kind}")


def _text(window: Window, key: str) -> str | Counted:
    length = window.u64()
    if length > STRING_LIMIT_BYTES:
        raise window.bad(f"the value of {shown(key)} is a text of {length} bytes")
    if length <= KEPT_TEXT_BYTES:
        return window.take(length).decode("utf-8", "backslashreplace")
    window.skip(length)
    return Counted("text", length)


def _scalars(window: Window, key: str, kind: int, count: int) -> tuple[int | float, ...]:
    layout = _SCALARS[kind]
    numbers = window.unpack(struct.Struct(f"<{count}{layout.format[-1]}"))
    if kind != _BOOL:
        return numbers
    if any(number > 1 for number in numbers):
        raise window.bad(f"the key {shown(key)} holds a truth value that is neither 0 nor 1")
    return tuple(bool(number) for number in numbers)


def _array(window: Window, key: str) -> tuple[int | float, ...] | Counted:
    kind, count = window.u32(), window.u64()
    if kind == _ARRAY:
        raise window.bad(f"the key {shown(key)} is an array of arrays")
    if kind != _STRING and kind not in _SCALARS:
        raise window.bad(f"the key {shown(key)} has entries of the unknown type {kind}")
    limit = STRING_ARRAY_LIMIT if kind == _STRING else SCALAR_ARRAY_LIMIT
    entry_bytes = 8 if kind == _STRING else _SCALARS[kind].size
    if count > limit:
        raise window.bad(f"the key {shown(key)} claims {count} entries (at most {limit})", _AGAIN)
    if count * entry_bytes > window.left_bytes:
        raise window.cut_off()
    if kind == _STRING:
        window.skip_strings(count)
        return Counted("strings", count)
    if count <= KEPT_ARRAY_ENTRIES:
        return _scalars(window, key, kind, count)
    window.skip(count * entry_bytes)
    return Counted("numbers", count)


def _alignment(window: Window, values: Mapping[str, object]) -> int:
    alignment = values.get("general.alignment", 32)
    if not isinstance(alignment, int) or isinstance(alignment, bool):
        raise window.bad("general.alignment in its header is no number", _AGAIN)
    if not 0 < alignment <= ALIGNMENT_LIMIT or alignment & (alignment - 1):
        raise window.bad(f"general.alignment in its header is {alignment}, no power of two", _AGAIN)
    return alignment


def _tensor_table(window: Window, n_tensors: int) -> list[tuple[Tensor, int]]:
    """Tensors with their offsets from the start of the data."""
    table: list[tuple[Tensor, int]] = []
    names: set[str] = set()
    for _ in range(n_tensors):
        name = _string(window, TENSOR_NAME_LIMIT_BYTES, "a tensor name")
        if name in names:
            raise window.bad(f"the tensor {shown(name)} is there twice")
        names.add(name)
        table.append(_tensor(window, name))
    return table


_TENSOR_TAILS = tuple(struct.Struct(f"<{n_dims}QIQ") for n_dims in range(DIMS_LIMIT + 1))


def _tensor(window: Window, name: str) -> tuple[Tensor, int]:
    n_dims = window.u32()
    if n_dims > DIMS_LIMIT:
        raise window.bad(f"the tensor {shown(name)} has {n_dims} dimensions")
    *sizes, kind, offset = (int(field) for field in window.unpack(_TENSOR_TAILS[n_dims]))
    dims = tuple(sizes) or (1,)
    if any(not 1 <= dim <= DIM_LIMIT for dim in dims):
        raise window.bad(f"the tensor {shown(name)} has the impossible shape {list(dims)}")
    if kind not in GGML_TYPES:
        raise window.bad(f"the tensor {shown(name)} is of {_unknown_type(kind)}", _type_fix(kind))
    if dims[0] % GGML_TYPES[kind].block:
        raise window.bad(
            f"the tensor {shown(name)} has rows that are no whole {type_name(kind)} blocks", _AGAIN
        )
    size_bytes = nbytes(kind, dims)
    if size_bytes >= _INT63_LIMIT:
        raise window.bad(f"the tensor {shown(name)} has the impossible shape {list(dims)}", _AGAIN)
    return Tensor(name, dims, kind, size_bytes), offset


def _unknown_type(kind: int) -> str:
    if kind in REMOVED_TYPES:
        return f"type {kind}, which llama.cpp no longer supports"
    if kind >= FOREIGN_TYPES_FROM:
        return f"type {kind}, which only ik_llama.cpp supports"
    return f"type {kind}, which llamad does not know: its size cannot be told"


def _type_fix(kind: int) -> str:
    known_elsewhere = kind in REMOVED_TYPES or kind >= FOREIGN_TYPES_FROM
    return "use another quantisation of the model" if known_elsewhere else "update llamad"


def _table_digest(size_bytes: int, data_start: int, table: list[tuple[Tensor, int]]) -> hashlib._Hash:
    digest = hashlib.sha256(f"{size_bytes} {data_start}\n".encode())
    for tensor, offset in table:
        digest.update(f"{tensor.name} {tensor.dims} {tensor.type_id} {offset}\n".encode())
    return digest


def _warnings(path: str, table: list[tuple[Tensor, int]], alignment: int) -> tuple[str, ...]:
    astray = _first_astray(table, alignment)
    if not astray:
        return ()
    overlapping = _first_overlap(table)
    why = f"the tensor {shown(astray)} does not follow the one before it"
    if overlapping:
        why = f"the tensors {shown(overlapping[0])} and {shown(overlapping[1])} overlap"
    return (f"{path}: llama-server may refuse this file: {why}",)


def _first_overlap(table: list[tuple[Tensor, int]]) -> tuple[str, str] | None:
    """Two tensors that have bytes of the file in common; None where there are none."""
    placed = sorted(table, key=lambda row: row[1])
    for (before, start), (after, offset) in pairwise(placed):
        if start + before.size_bytes > offset:
            return before.name, after.name
    return None


def _first_astray(table: list[tuple[Tensor, int]], alignment: int) -> str:
    """The first tensor that does not lie right behind the one before it; empty if none."""
    expected = 0
    for tensor, offset in table:
        if offset != expected:
            return tensor.name
        expected += pad(tensor.size_bytes, alignment)
    return ""


def _needs_bytes(window: Window, table: list[tuple[Tensor, int]], data_start: int, alignment: int) -> int:
    """Bytes of a whole file. Raises BadModelError where tensors are misaligned or beyond the file's end."""
    end, last = data_start, ""
    for tensor, offset in table:
        if offset % alignment:
            raise window.bad(f"the tensor {shown(tensor.name)} is not aligned in the file")
        if data_start + offset + tensor.size_bytes > end:
            end, last = data_start + offset + tensor.size_bytes, tensor.name
    if end <= window.size_bytes:
        return end
    if _first_astray(table, alignment):
        why = f"the tensor {shown(last)} lies outside the file: its header is damaged"
        raise window.bad(why, "fetch the file again")
    has, needs = format_bytes(window.size_bytes), format_bytes(end)
    if has == needs:
        has, needs = f"{window.size_bytes} bytes", f"{end}"
    why = f"the file is {has}, its header says {needs}: still downloading, or cut off"
    raise window.bad(why, INCOMPLETE_FIX)
