"""The models that a configuration for other programs is made for: those named, or all definitions of this host."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llamad.config.load import load_definition
from llamad.config.names import check_name, definition_names
from llamad.errors import LlamadError, UsageError
from llamad.export.fleet import Model


def models_of(names: Sequence[str], root: Path) -> tuple[Model, ...]:
    """The models with the aliases that their definitions here give them; who has none here has none.

    Raises ConfigError for what no model can be named, UsageError where there is none at all.
    """
    known = definition_names(root)
    for name in names:
        check_name(name, root)
    chosen = list(dict.fromkeys(names)) or known
    if not chosen:
        raise UsageError(
            f"no model: none is named, and there is no definition in {root}", fix="name them: --model phi4,qwen3"
        )
    return tuple(Model(name, _aliases(name, root) if name in known else ()) for name in chosen)


def _aliases(name: str, root: Path) -> tuple[str, ...]:
    try:
        return load_definition(name, root).definition.aliases
    except LlamadError:  # `llamad check` tells of it; the model may be served on the other hosts all the same
        return ()
