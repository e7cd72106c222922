"""Reads the files that a definition wants beside its model. Blocking; imported only for a definition that has any."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TypeVar

from llamad.config.definition import Draft
from llamad.config.keys import dotted, shown
from llamad.config.loaded import Loaded
from llamad.errors import AccessError, BadModelError, ModelMissingError
from llamad.gguf.beside import SideFile, read_beside, require_base
from llamad.gguf.facts import ModelFacts
from llamad.gguf.read import read_facts
from llamad.gguf.window import bad_model
from llamad.planning import extras as planned
from llamad.planning.vision import BATCH_TOKENS, projector_bytes

T = TypeVar("T")


def read_extras(loaded: Loaded, facts: ModelFacts) -> planned.Extras:
    """What the definition wants beside the model with these facts.

    Raises BadModelError, ModelMissingError or AccessError located at the key of the file that it is about.
    """
    definition = loaded.definition
    names = frozenset(tensor.name for tensor in facts.tensors)
    draft = _draft(loaded, facts)
    return planned.Extras(
        vision=_vision(loaded),
        adapters=tuple(
            _located(loaded, lambda file: _adapter(file, facts, names), file, "lora", "adapters", file)
            for file in definition.lora.adapters
        ),
        control_vectors=tuple(
            _located(loaded, lambda file: read_beside(file, "control vector"), file, "lora", "control_vectors", file)
            for file in definition.lora.control_vectors
        ),
        draft=draft,
        guessed_tokens=draft.most_tokens(definition.draft.ngram_draft) if draft else 0,
    )  # fmt: skip


def fingerprint(facts: ModelFacts, extras: planned.Extras | None) -> str:
    """Of everything that is loaded: the model's own where there is nothing beside it."""
    beside = list(extras.fingerprints) if extras else []
    if not beside:
        return facts.fingerprint
    return hashlib.sha256("\0".join([facts.fingerprint, *beside]).encode()).hexdigest()


def _located(loaded: Loaded, read: Callable[[str], T], file: str, *key: str) -> T:
    """What `read` makes of a file; what is wrong with it is located where the definition names it."""
    try:
        return read(file)
    except (BadModelError, ModelMissingError, AccessError) as error:
        named = key[:-1] if key[-1] == file else key
        error.what = f"{dotted(named)}: {shown(file, 200)}: {error.what}"
        error.where = loaded.where(*key)
        raise


def _adapter(file: str, facts: ModelFacts, names: frozenset[str]) -> SideFile:
    adapter = read_beside(file, "adapter")
    require_base(adapter, facts.architecture, names)
    return adapter


def _projector(file: str) -> SideFile:
    projector = read_beside(file, "projector")
    projector_bytes(projector, "CPU")  # its numbers are looked at here, where there is a key to point at
    return projector


def _vision(loaded: Loaded) -> planned.Vision | None:
    vision = loaded.definition.vision
    if vision.mmproj is None:
        return None
    return planned.Vision(
        file=_located(loaded, _projector, vision.mmproj, "vision", "mmproj"),
        offload=vision.offload,
        movable="vision.offload" not in loaded.written and vision.gpu == "auto",
        device=vision.gpu,
        image_max_tokens=vision.image_max_tokens,
        batch_tokens=vision.batch_tokens or BATCH_TOKENS,
    )


def _draft(loaded: Loaded, facts: ModelFacts) -> planned.Draft | None:
    draft = loaded.definition.draft
    if not draft.types:
        return None
    if draft.model is None and "draft-mtp" in draft.types and not facts.n_layers_nextn:
        raise BadModelError(
            "draft.types: draft-mtp needs blocks that predict further tokens",
            where=loaded.where("draft", "types"),
            why="the model has none",
            fix="name a file of such blocks as model in [draft], or another type",
        )
    own = None if draft.model is None else _located(loaded, _draft_facts, draft.model, "draft", "model")
    return planned.Draft(
        types=draft.types,
        facts=own,
        tokens=draft.n_max or planned.DRAFT_TOKENS,
        cache_type=draft.kv_cache,
        ubatch_tokens=None if draft.ubatch == "auto" else draft.ubatch,
        layers=None if draft.gpu_layers == "auto" else draft.gpu_layers,
        devices=() if draft.gpus == "auto" else draft.gpus,
        host_experts=_host_experts(draft, own),
    )


def _draft_facts(file: str) -> ModelFacts:
    facts = read_facts(file)
    if not facts.n_layers:
        raise bad_model(file, "it has no layers", "name a model")
    return facts


def _host_experts(draft: Draft, own: ModelFacts | None) -> int:
    if own is None or not own.n_expert:
        return 0
    if draft.cpu_moe:
        return own.n_layers
    return 0 if draft.n_cpu_moe == "auto" else min(draft.n_cpu_moe, own.n_layers)
