"""`llamad list`: the definitions."""

from __future__ import annotations

import argparse
import json

from llamad.config.load import definition_names, load_definition
from llamad.errors import LlamadError
from llamad.service.overview import overview


def run(args: argparse.Namespace) -> int:
    """Print every definition with its file, address and state; one that cannot be read says so in its line."""
    names = definition_names(args.config)
    rows = [_row(name, model.state, args) for name, model in zip(names, overview(names), strict=True)]
    if args.json:
        print(json.dumps({"models": rows}, indent=2))
        return 0
    if not rows:
        print(f"no definitions in {args.config}; `llamad add NAME FILE.gguf` writes one")
        return 0
    widths = {key: max(len(str(row[key])) for row in rows) for key in ("name", "state", "listen")}
    for row in rows:
        print(
            f"{row['name']!s:<{widths['name']}}  {row['state']!s:<{widths['state']}}  "
            f"{row['listen']!s:<{widths['listen']}}  {row['model']}"
        )
    return 0


def _row(name: str, state: str, args: argparse.Namespace) -> dict[str, object]:
    try:
        definition = load_definition(name, args.config).definition
    except LlamadError as error:
        return {
            "name": name,
            "state": state,
            "listen": "-",
            "model": str(error).splitlines()[0],
            "valid": False,
        }
    return {
        "name": name,
        "state": state,
        "listen": definition.listen or "-",
        "model": definition.model,
        "aliases": list(definition.aliases),
        "valid": True,
    }
