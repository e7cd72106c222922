"""The shapes of well-known open models, as the package ships them, and facts of them as if their files were here.

Facts are made by the code that reads files, from a header that is made here instead of read, so that a plan of a shape
and a plan of its file are the same.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import resources
from math import prod
from typing import Any

from llamad.gguf.facts import ModelFacts, Tensor
from llamad.gguf.ggml_types import GGML_TYPES, type_id
from llamad.gguf.header import Header, Value
from llamad.gguf.read import model_facts
from llamad.models.recipes import RECIPES, Blank, Kind, blank, file_type_number, typed

_FILE = "catalogue.toml"


class Shape:
    """One model of the catalogue, without weights. Lengths are in elements, `parameters` counts all of them."""

    def __init__(self, name: str, row: Mapping[str, Any]) -> None:
        self.name = name
        self.title: str = row["title"]
        self.architecture: str = row["architecture"]
        self.released: str = row["released"]
        self.hub: str = row["hub"]
        self.recipes: tuple[str, ...] = tuple(
            row.get("quantisations") or [r for r in RECIPES if r != "MXFP4"]
        )
        """What its files are made in, the largest first."""
        self._row = row

    @property
    def keys(self) -> Mapping[str, Any]:
        """The header's keys below the architecture."""
        keys: Mapping[str, Any] = self._row["keys"]
        return keys

    @cached_property
    def blanks(self) -> tuple[Blank, ...]:
        """Every tensor in the order of a file, without its type."""
        kinds = {letter: _blanks(text) for letter, text in self._row["blocks"].items()}
        found = _blanks(self._row["ends"])
        for number, letter in enumerate(self._row["layers"]):
            found += [one.in_layer(number) for one in kinds[letter]]
        return tuple(found)

    @cached_property
    def parameters(self) -> int:
        """All of them, but for blocks that only guess ahead."""
        return sum(prod(one.dims) for one in self.blanks if one.layer < self._layers)

    @cached_property
    def active_parameters(self) -> float:
        """Those that one token is computed with: a share of the experts, and no rows of other tokens."""
        return sum(prod(one.dims) * share for one, share in zip(self.blanks, self._shares, strict=True))

    @property
    def context_tokens(self) -> int:
        """What it was trained for."""
        tokens: int = self.keys["context_length"]
        return tokens

    def least_bytes(self, recipe: str) -> int:
        """What its weights take at least: for a look at many shapes, without making their tensors."""
        kind = GGML_TYPES[type_id(RECIPES[recipe])]
        return self.parameters * kind.block_bytes // kind.block

    def facts(self, recipe: str) -> ModelFacts:
        """As of a file in this quantisation. Raises KeyError for one that is not known."""
        return model_facts((self.header(recipe),))

    def header(self, recipe: str) -> Header:
        """The header that such a file has. Raises as `facts`."""
        tensors = typed(self.blanks, self._kind(), recipe)
        prefix, size_bytes = f"{self.architecture}.", sum(tensor.size_bytes for tensor in tensors)
        values: dict[str, Value] = {
            "general.architecture": self.architecture,
            "general.type": "model",
            "general.name": self.title,
            "general.file_type": file_type_number(recipe),
            **{prefix + key: tuple(v) if isinstance(v, list) else v for key, v in self.keys.items()},
        }
        return Header(
            path=f"{self.name}-{recipe}.gguf",
            version=3,
            file_bytes=size_bytes,
            data_start=0,
            needs_bytes=size_bytes,
            alignment=32,
            values=values,
            tensors=tensors,
            digest=f"{self.name} {recipe}",
        )

    def active_bytes(self, tensors: Sequence[Tensor]) -> Mapping[str, float]:
        """Bytes of each tensor of a file that are read for a token."""
        return {
            tensor.name: tensor.size_bytes * share
            for tensor, share in zip(tensors, self._shares, strict=True)
        }

    @property
    def least_share(self) -> float:
        """Of any matrix that a token needs, it reads as much or more."""
        experts = int(self.keys.get("expert_count", 0))
        return int(self.keys["expert_used_count"]) / experts if experts else 1.0

    @cached_property
    def _shares(self) -> tuple[float, ...]:
        """How much of each tensor is read for a token."""
        tied = not any(one.role == "output" for one in self.blanks)
        found = []
        for one in self.blanks:
            share = self.least_share if "_exps." in one.name else 1.0
            if one.role == "embedding":
                share = 1.0 if tied and one.name == "token_embd.weight" else 0.0
            found.append(share if one.layer < self._layers else 0.0)
        return tuple(found)

    @property
    def _layers(self) -> int:
        """Without the blocks that predict further tokens, which are not loaded."""
        return len(self._row["layers"]) - int(self.keys.get("nextn_predict_layers", 0))

    def _kind(self) -> Kind:
        heads, key_heads = (_first(self.keys.get(f"attention.head_count{end}", 0)) for end in ("", "_kv"))
        layers = int(self.keys["block_count"])
        llama_70b = self.architecture == "llama" and layers == 80 and heads != key_heads
        experts = int(self.keys.get("expert_count", 0))
        return Kind(layers, experts, heads // key_heads if key_heads else 0, llama_70b)


def load_catalogue() -> tuple[Shape, ...]:
    """Every shape, as the file has them. About 25 ms."""
    text = resources.files("llamad.data").joinpath(_FILE).read_text(encoding="utf-8")
    return tuple(Shape(name, row) for name, row in tomllib.loads(text).items())


def _first(value: Any) -> int:
    return int(value[0]) if isinstance(value, list) else int(value)


def _blanks(text: str) -> list[Blank]:
    """The tensors of a spelled block."""
    found = []
    for part in text.split(";"):
        words, _, kept = part.strip().partition(":")
        name, *dims = words.split()
        full = name.removesuffix("!") if name.endswith("!") else f"{name}.weight"
        found.append(blank(full, tuple(map(int, dims)), kept))
    return found
