"""The files that a definition names besides its model: which key each stands at, and what it is. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from llamad.config.definition import Definition
from llamad.config.keys import Path


class NamedFile(NamedTuple):
    """One file, and the path of its key. `holds_weights`: llama-server loads it beside the model."""

    key: Path
    file: str
    holds_weights: bool


def named_files(definition: Definition) -> Iterator[NamedFile]:
    """Every file but the model itself, in the order of the sections."""
    server, sampling, draft, lora = definition.server, definition.sampling, definition.draft, definition.lora
    of_keys: tuple[tuple[Path, str | None, bool], ...] = (
        (("api_keys_file",), definition.api_keys_file, False),
        (("admin_keys_file",), definition.admin_keys_file, False),
        (("tls_cert",), definition.tls_cert, False),
        (("tls_key",), definition.tls_key, False),
        (("server", "chat_template_file"), server.chat_template_file, False),
        (("sampling", "grammar_file"), sampling.grammar_file, False),
        (("sampling", "json_schema_file"), sampling.json_schema_file, False),
        (("draft", "model"), draft.model, True),
        (("draft", "ngram_cache_file"), draft.ngram_cache_file, False),
        *((("lora", "adapters", file), file, True) for file in lora.adapters),
        *((("lora", "control_vectors", file), file, True) for file in lora.control_vectors),
        (("vision", "mmproj"), definition.vision.mmproj, True),
    )
    for key, file, holds_weights in of_keys:
        if file is not None:
            yield NamedFile(key, file, holds_weights)
