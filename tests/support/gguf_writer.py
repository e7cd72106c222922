"""Writes GGUF version 3 files, little endian, with the standard library only.

It knows the file format and nothing of any model. It shares no code with llamad's reader on purpose: each is
then a check of the other.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import BinaryIO

ALIGNMENT_BYTES = 32
_MAGIC = b"GGUF"
_VERSION = 3


class GgmlType(IntEnum):
    """The tensor types that the test models use, with ggml's own ids."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    IQ4_NL = 20
    IQ4_XS = 23
    BF16 = 30
    MXFP4 = 39


# type -> (elements in a block, bytes in a block), from ggml.c's type_traits.
_BLOCKS: Mapping[GgmlType, tuple[int, int]] = {
    GgmlType.F32: (1, 4),
    GgmlType.F16: (1, 2),
    GgmlType.Q4_0: (32, 18),
    GgmlType.Q5_0: (32, 22),
    GgmlType.Q5_1: (32, 24),
    GgmlType.Q8_0: (32, 34),
    GgmlType.Q3_K: (256, 110),
    GgmlType.Q4_K: (256, 144),
    GgmlType.Q5_K: (256, 176),
    GgmlType.Q6_K: (256, 210),
    GgmlType.IQ4_NL: (32, 18),
    GgmlType.IQ4_XS: (256, 136),
    GgmlType.BF16: (1, 2),
    GgmlType.MXFP4: (32, 17),
}


@dataclass(frozen=True)
class Tensor:
    """One tensor info: `dims[0]` is the row, the dimension that is contiguous in memory."""

    name: str
    dims: tuple[int, ...]
    type: GgmlType

    @property
    def elements(self) -> int:
        """How many numbers the tensor holds."""
        count = 1
        for dim in self.dims:
            count *= dim
        return count

    @property
    def size_bytes(self) -> int:
        """Bytes of its data, without padding. Raises ValueError for a row that is no whole number of blocks."""
        block, block_bytes = _BLOCKS[self.type]
        if self.dims[0] % block:
            msg = f"{self.name}: a row of {self.dims[0]} is no multiple of the {self.type.name} block of {block}"
            raise ValueError(msg)
        return self.elements // block * block_bytes


@dataclass(frozen=True)
class Value:
    """One encoded metadata value: GGUF's type id and the bytes after it."""

    type_id: int
    payload: bytes


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def u16(number: int) -> Value:
    """A uint16 (GGUF type 2)."""
    return Value(2, struct.pack("<H", number))


def u32(number: int) -> Value:
    """A uint32 (GGUF type 4)."""
    return Value(4, struct.pack("<I", number))


def i32(number: int) -> Value:
    """An int32 (GGUF type 5)."""
    return Value(5, struct.pack("<i", number))


def f32(number: float) -> Value:
    """A float32 (GGUF type 6)."""
    return Value(6, struct.pack("<f", number))


def boolean(flag: bool) -> Value:
    """A bool (GGUF type 7)."""
    return Value(7, struct.pack("<?", flag))


def string(text: str) -> Value:
    """A string (GGUF type 8)."""
    return Value(8, _text(text))


def strings(texts: Sequence[str]) -> Value:
    """An array of strings."""
    return Value(9, struct.pack("<IQ", 8, len(texts)) + b"".join(map(_text, texts)))


def i32s(numbers: Sequence[int]) -> Value:
    """An array of int32."""
    return Value(9, struct.pack("<IQ", 5, len(numbers)) + struct.pack(f"<{len(numbers)}i", *numbers))


def booleans(flags: Sequence[bool]) -> Value:
    """An array of bool."""
    return Value(9, struct.pack("<IQ", 7, len(flags)) + bytes(map(int, flags)))


def f32s(numbers: Sequence[float]) -> Value:
    """An array of float32."""
    return Value(9, struct.pack("<IQ", 6, len(numbers)) + struct.pack(f"<{len(numbers)}f", *numbers))


Metadata = Mapping[str, Value]
DataWriter = Callable[[BinaryIO, Tensor], None]


def _padded(size_bytes: int) -> int:
    return -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def data_size_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the data section of one file that holds exactly these tensors."""
    return sum(_padded(tensor.size_bytes) for tensor in tensors)


def _header(metadata: Metadata, tensors: Sequence[Tensor]) -> bytes:
    parts = [_MAGIC, struct.pack("<IQQ", _VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_text(key), struct.pack("<I", value.type_id), value.payload]
    offset = 0
    for tensor in tensors:
        parts += [_text(tensor.name), struct.pack("<I", len(tensor.dims))]
        parts.append(struct.pack(f"<{len(tensor.dims)}QIQ", *tensor.dims, tensor.type, offset))
        offset += _padded(tensor.size_bytes)
    header = b"".join(parts)
    return header + b"\0" * (_padded(len(header)) - len(header))


def write_gguf(path: Path, metadata: Metadata, tensors: Sequence[Tensor], data: DataWriter | None) -> None:
    """Write one file at `path`, replacing what is there.

    `data` is called once a tensor, in order, and must write exactly its `size_bytes`; with None the data section
    is a hole of the right length that takes no room on the disk.
    """
    with path.open("wb") as file:
        file.write(_header(metadata, tensors))
        start = file.tell()
        for tensor in tensors if data else ():
            assert data is not None
            before = file.tell()
            data(file, tensor)
            wrote = file.tell() - before
            if wrote != tensor.size_bytes:
                msg = f"{tensor.name}: {wrote} bytes were written, {tensor.size_bytes} belong there"
                raise ValueError(msg)
            file.write(b"\0" * (_padded(wrote) - wrote))
        file.truncate(start + data_size_bytes(tensors))


def shard_paths(path: Path, count: int) -> list[Path]:
    """The names llama.cpp wants for `count` shards of `path`: NAME-00001-of-00003.gguf and so on."""
    stem = path.name.removesuffix(".gguf")
    return [path.with_name(f"{stem}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]


def write_shards(
    path: Path, metadata: Metadata, tensors: Sequence[Tensor], data: DataWriter | None, *, count: int
) -> list[Path]:
    """Write the model as `count` files beside `path` (see `shard_paths`) and return them, first shard first.

    As llama-gguf-split does, only the first shard carries the metadata of the model.
    """
    paths = shard_paths(path, count)
    per_shard = -(-len(tensors) // count)
    for number, shard in enumerate(paths):
        split = {
            "split.no": u16(number),
            "split.count": u16(count),
            "split.tensors.count": i32(len(tensors)),
        }
        own = tensors[number * per_shard : (number + 1) * per_shard]
        write_gguf(shard, {**metadata, **split} if number == 0 else split, own, data)
    return paths
