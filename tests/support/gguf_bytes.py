"""GGUF bytes by hand, right or wrong on purpose; the well-formed ones come from tests.support.models."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path


def text(value: str | bytes) -> bytes:
    """A GGUF string."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: str, kind: int, payload: bytes) -> bytes:
    """One key with its value."""
    return text(name) + struct.pack("<I", kind) + payload


def key_text(name: str, value: str) -> bytes:
    return key(name, 8, text(value))


def key_u32(name: str, value: int) -> bytes:
    return key(name, 4, struct.pack("<I", value))


def key_u16(name: str, value: int) -> bytes:
    return key(name, 2, struct.pack("<H", value))


def key_array(name: str, kind: int, count: int, payload: bytes) -> bytes:
    return key(name, 9, struct.pack("<IQ", kind, count) + payload)


def key_i32s(name: str, *numbers: int) -> bytes:
    return key_array(name, 5, len(numbers), struct.pack(f"<{len(numbers)}i", *numbers))


def tensor(name: str, dims: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    """One tensor info."""
    head = text(name) + struct.pack("<I", len(dims))
    return head + struct.pack(f"<{len(dims)}QIQ", *dims, kind & 0xFFFFFFFF, offset)


LLAMA_KEYS = [
    key_text("general.architecture", "llama"),
    key_u32("llama.block_count", 2),
    key_u32("llama.context_length", 8192),
    key_u32("llama.embedding_length", 64),
    key_u32("llama.attention.head_count", 4),
]
EMBEDDING = tensor("token_embd.weight", (64, 8))


@dataclass
class Gguf:
    """The parts of a file; each may lie."""

    keys: list[bytes] = field(default_factory=lambda: list(LLAMA_KEYS))
    tensors: list[bytes] = field(default_factory=lambda: [EMBEDDING])
    data_bytes: int = 64 * 8 * 4
    magic: bytes = b"GGUF"
    version: int = 3
    n_keys: int | None = None
    n_tensors: int | None = None
    alignment: int = 32

    def to_bytes(self) -> bytes:
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_keys = len(self.keys) if self.n_keys is None else self.n_keys
        head = self.magic + struct.pack("<IQQ", self.version, n_tensors, n_keys)
        head += b"".join(self.keys) + b"".join(self.tensors)
        return head + b"\0" * (-len(head) % self.alignment) + b"\1" * self.data_bytes

    def write(self, path: Path) -> str:
        path.write_bytes(self.to_bytes())
        return str(path)
