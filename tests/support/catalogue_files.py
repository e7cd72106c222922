"""Hollow GGUF files of the catalogue's shapes: what a download of them would be to the planner and to llama.cpp.

    python3 -m tests.support.catalogue_files NAME RECIPE FILE
"""

from __future__ import annotations

import sys
from pathlib import Path

from llamad.models.catalogue import Shape, load_catalogue
from tests.support.gguf_writer import (
    GgmlType,
    Tensor,
    Value,
    boolean,
    booleans,
    f32,
    f32s,
    i32s,
    string,
    u32,
    write_gguf,
)


def _value(value: object) -> Value:
    match value:
        case bool(flag):
            return boolean(flag)
        case int(number):
            return u32(number)
        case float(number):
            return f32(number)
        case str(text):
            return string(text)
        case tuple(entries) if isinstance(entries[0], bool):
            return booleans([bool(entry) for entry in entries])
        case tuple(entries) if isinstance(entries[0], float):
            return f32s([float(entry) for entry in entries])
        case tuple(entries):
            return i32s([int(entry) for entry in entries])
    raise TypeError(value)


def build_shape(path: Path, shape: Shape, recipe: str) -> Path:
    """Write the file, its weights a hole; returns it."""
    header = shape.header(recipe)
    metadata = {key: _value(value) for key, value in header.values.items()}
    metadata["tokenizer.ggml.model"] = string("none")
    tensors = [Tensor(one.name, one.dims, GgmlType(one.type_id)) for one in header.tensors]
    write_gguf(path, metadata, tensors, None)
    return path


def shape_named(name: str) -> Shape:
    """A shape by its name. Raises StopIteration."""
    return next(shape for shape in load_catalogue() if shape.name == name)


if __name__ == "__main__":
    print(build_shape(Path(sys.argv[3]), shape_named(sys.argv[1]), sys.argv[2]))
