"""Facts of model files, read once for as long as a file stays as it is.

A header with a large vocabulary takes 50 ms and more, at every start and every `llamad plan`. What was read is kept
for this process, and with a cache file for the next one. An entry holds for a file (all shards) of the same device,
inode, size, times of modification and change, and for this version of llamad; whatever does not match is read anew.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from llamad import __version__
from llamad.config.loaded import Loaded
from llamad.config.named_files import named_files
from llamad.errors import BadModelError, ModelMissingError
from llamad.gguf.facts import ModelFacts, Tensor
from llamad.gguf.identity import files_of, identity, lasting_identity
from llamad.store import load_cache, store_cache

if TYPE_CHECKING:
    from llamad.config.definition import Definition
    from llamad.planning.extras import Extras
    from llamad.supervision.launch import Launch

CACHE_NAME = "facts.json"
_ENTRIES_LIMIT = 8
"""Models that one cache keeps, the last ones that were read: a folder of definitions has mostly one each."""
_FACTS = {part.name: str(part.type) for part in fields(ModelFacts)}


class FactsReader:
    """Reads headers, each once for as long as the file stays as it is. `cache_file`: where that outlives us.

    The file counts only if it is this user's and nobody else may write it.
    """

    def __init__(self, cache_file: Path | None = None) -> None:
        self._kept: dict[str, tuple[str, ModelFacts]] = {}
        self._cache_file = cache_file

    def __call__(self, path: str) -> ModelFacts:
        """The facts of the model at `path`. Raises BadModelError, ModelMissingError, AccessError."""
        seen = identity(path)
        kept = self._kept.get(path)
        if kept and seen and kept[0] == seen:
            return kept[1]
        facts = self._from_disk(path, seen) if seen and _readable(path) else None
        if facts is None:
            from llamad.gguf.read import read_facts  # seldom: the cache nearly always answers

            facts = read_facts(path)
            if seen and identity(path) == seen:  # else it was exchanged while it was read
                self._to_disk(path, seen, facts)
        self._kept = {path: (seen, facts)}
        return facts

    def _from_disk(self, path: str, seen: str) -> ModelFacts | None:
        match self._entries().get(path):
            case [str(kept), dict(raw)] if kept == seen:
                return facts_of(raw)
        return None

    def _to_disk(self, path: str, seen: str, facts: ModelFacts) -> None:
        if self._cache_file is None:
            return
        entries = {name: entry for name, entry in self._entries().items() if name != path}
        kept = dict(list(entries.items())[1 - _ENTRIES_LIMIT :])
        store_cache(self._cache_file, {"version": __version__, "files": {**kept, path: [seen, raw_of(facts)]}})

    def _entries(self) -> Mapping[str, object]:
        raw = load_cache(self._cache_file, owner=os.geteuid()) if self._cache_file else None
        match raw:
            case {"version": version, "files": dict(entries)} if version == __version__:
                return entries
        return {}


def located_facts(loaded: Loaded, read: FactsReader) -> ModelFacts:
    """The facts of a definition's model; what is wrong with the file is located at the `model` line."""
    path = loaded.definition.model
    try:
        return read(path)
    except (BadModelError, ModelMissingError) as error:
        if loaded.files:
            error.what = f"model: {path}: {error.what}"
            error.where = loaded.where("model")
        raise


def files_key(definition: Definition, facts: ModelFacts) -> str:
    """Which files a definition's model consists of now, and what goes with it: another one under the same name, or
    with another header, has another key. `facts` are those of the model.
    """
    beside = (file for _, file, holds_weights in named_files(definition) if holds_weights)
    return " ".join([facts.fingerprint, *map(lasting_identity, (definition.model, *beside))])


def are_replaced(launch: Launch | None, loaded: Loaded, read: FactsReader) -> bool:
    """Whether the files of a definition are others than those that were there for this launch of it. Raises as
    `located_facts`.
    """
    if launch is None or not launch.files_key:
        return False
    return launch.files_key != files_key(loaded.definition, located_facts(loaded, read))


def extras_of(loaded: Loaded, facts: ModelFacts) -> Extras | None:
    """What the definition wants beside the model with these facts; None where there is nothing.

    Raises BadModelError, ModelMissingError or AccessError located at the key that it is about.
    """
    definition = loaded.definition
    lora = definition.lora
    wanted = definition.vision.mmproj or lora.adapters or lora.control_vectors or definition.draft.types
    if not wanted:
        return None
    from llamad.service.beside import read_extras  # only where there is something beside the model

    return read_extras(loaded, facts)


def raw_of(facts: ModelFacts) -> dict[str, object]:
    """The facts as JSON can hold them."""
    raw: dict[str, object] = {name: getattr(facts, name) for name in _FACTS}
    raw["tensors"] = [[one.name, one.dims, one.type_id, one.size_bytes] for one in facts.tensors]
    return raw


def facts_of(raw: Mapping[str, object]) -> ModelFacts | None:
    """What `raw_of` was given; None for anything else that JSON can hold."""
    try:
        if raw.keys() != _FACTS.keys() or not isinstance(raw["tensors"], list):
            return None
        values = {name: _value(raw[name], kind) for name, kind in _FACTS.items() if name not in ("tensors", "hparams")}
        tensors = tuple(
            Tensor(_value(name, "str"), _value(dims, "tuple[int, ...]"), _value(kind, "int"), _value(size, "int"))  # type: ignore[arg-type]
            for name, dims, kind, size in raw["tensors"]
        )
        hparams = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in raw["hparams"].items()  # type: ignore[attr-defined]
        }
    except (TypeError, ValueError, AttributeError):
        return None
    return ModelFacts(**values, tensors=tensors, hparams=hparams)  # type: ignore[arg-type]


def _value(value: object, kind: str) -> object:
    """A value of this type, lists as the tuples that they were. Raises TypeError."""
    if kind.startswith("tuple["):
        if not isinstance(value, list):
            raise TypeError(kind)
        inner = kind.removeprefix("tuple[").removesuffix(", ...]")
        return tuple(_value(one, inner) for one in value)
    if type(value).__name__ != kind:
        raise TypeError(kind)
    return value


def _readable(path: str) -> bool:
    """Whether we may still read the model: what is kept must not hide that we may not."""
    return all(os.access(file, os.R_OK) for file in files_of(path))
