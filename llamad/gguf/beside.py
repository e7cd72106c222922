"""Files that are loaded beside a model: vision projectors, LoRA adapters, control vectors. Pure.

They are GGUF files of their own kinds. As much is read of them as their memory depends on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from llamad.frozen import dataclass
from llamad.gguf.facts import Tensor
from llamad.gguf.header import Header, read_header
from llamad.gguf.window import bad_model

Kind = Literal["projector", "adapter", "control vector"]
_LIMIT = 1 << 24
_WORDS: Mapping[Kind, str] = {
    "projector": "a vision or audio projector (mmproj)",
    "adapter": "a LoRA adapter",
    "control vector": "a control vector",
}


@dataclass(frozen=True)
class SideFile:
    """One such file."""

    kind: Kind
    path: str
    file_bytes: int
    fingerprint: str
    architecture: str
    """Of an adapter: that of the model which it was made for."""
    tensors: tuple[Tensor, ...]
    values: Mapping[str, object]
    """Scalars and short arrays of the header by their full keys."""

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors, without padding."""
        return sum(tensor.size_bytes for tensor in self.tensors)

    def text(self, key: str) -> str:
        """A text; empty where there is none."""
        value = self.values.get(key)
        return value if isinstance(value, str) else ""

    def count(self, key: str, default: int = 0) -> int:
        """A count. Raises BadModelError for one that no file of this kind can have."""
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LIMIT:
            raise bad_model(self.path, f"{key} is {str(value)[:40]!r} (0 to {_LIMIT})", "fetch the file again")
        return value


def read_beside(path: str, kind: Kind) -> SideFile:
    """The file at `path`, which is to be of this kind. Raises as `read_header`; BadModelError for another kind."""
    return side_file(read_header(path), kind)


def side_file(header: Header, kind: Kind) -> SideFile:
    """What `read_beside` makes of a header. Raises BadModelError for another kind, and for one without tensors."""
    found = _kind_of(header)
    if found != kind:
        what = _WORDS[found] if found else "a model"
        raise bad_model(header.path, f"it is {what}, not {_WORDS[kind]}", f"name a file that is {_WORDS[kind]}")
    if not header.tensors:
        raise bad_model(header.path, "it holds no tensors", "fetch the file again")
    if kind == "adapter" and header.text("adapter.type") != "lora":
        raise bad_model(header.path, "it is an adapter of another type than lora", "convert it to lora")
    return SideFile(
        kind=kind,
        path=header.path,
        file_bytes=header.file_bytes,
        fingerprint=header.digest,
        architecture=header.text("general.architecture"),
        tensors=header.tensors,
        values=header.values,
    )


def _kind_of(header: Header) -> Kind | None:
    architecture, written = header.text("general.architecture"), header.text("general.type")
    if architecture == "clip" or written == "mmproj":
        return "projector"
    if architecture == "controlvector" or written == "controlvector":
        return "control vector"
    return "adapter" if written == "adapter" or "adapter.type" in header.values else None


def require_base(adapter: SideFile, architecture: str, names: frozenset[str]) -> None:
    """Raise BadModelError if an adapter was made for another model, as llama-server would when it loads it.

    `names`: the tensors of the model.
    """
    fix = "name an adapter that was made for this model"
    if adapter.architecture != architecture:
        why = f'it was made for a model of the architecture "{adapter.architecture}", not "{architecture}"'
        raise bad_model(adapter.path, why, fix)
    for tensor in adapter.tensors:
        base, _, part = tensor.name.rpartition(".")
        if part not in ("lora_a", "lora_b"):
            if tensor.name.endswith("_norm.weight"):
                continue  # llama.cpp takes these for nothing and says so
            raise bad_model(adapter.path, f"its tensor {tensor.name!r} is no part of an adapter", fix)
        if base not in names:
            raise bad_model(adapter.path, f"it adapts {base!r}, which the model does not have", fix)
