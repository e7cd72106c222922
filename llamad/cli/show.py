"""`llamad show NAME`."""

from __future__ import annotations

import argparse
import json

from llamad.config.load import load_definition
from llamad.config.show import show_json, show_rows


def run(args: argparse.Namespace) -> int:
    """Print every value in force and where it was written."""
    loaded = load_definition(args.name, args.config)
    if args.json:
        print(json.dumps(show_json(loaded), indent=2))
        return 0
    rows = show_rows(loaded)
    width = max(len(f"{key} = {value}") for key, value, _origin in rows)
    width = min(width, 60)
    for key, value, origin in rows:
        print(f"{f'{key} = {value}':<{width}}  # {origin}")
    return 0
