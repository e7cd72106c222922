"""The JSON schemas of what `llamad bench -o` and `llamad tune --json` write, from the models; docs/make-schemas
writes them."""

from __future__ import annotations

import json
from pathlib import Path

from llamad.measure.results import BenchResult, TuneResult

FOLDER = Path(__file__).parents[2] / "docs" / "schema"
KINDS = {"bench.json": BenchResult, "tune.json": TuneResult}


def text_of(name: str) -> str:
    """The schema of one file."""
    own = KINDS[name].model_json_schema(mode="serialization")
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **own}
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"
