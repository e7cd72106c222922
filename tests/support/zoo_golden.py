"""What llama-server says that the zoo's models would take on a card that is not there: the tables of tests/data/planning.

    python3 -m tests.support.zoo_golden dense > tests/data/planning/card_dense.json
    python3 -m tests.support.zoo_golden partial > tests/data/planning/card_partial.json

Needs llama-server, a C compiler and libggml-dev; the test bed has them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llamad.gguf.read import read_facts
from tests.support.breakdown import Breakdown, placement_args
from tests.support.card import ask_on_cards, build_card
from tests.support.models import build_hollow
from tests.support.shapes import SHAPES
from tests.support.zoo_dense import ZOO as DENSE
from tests.support.zoo_mixed import ZOO as MIXED

WHOLE_ONLY = frozenset({"bge-large", "nomic-embed", "deepseek-v2-lite-old"})
"""Encoders, and a model that has no flash attention on CUDA."""
ZOOS: Mapping[str, Mapping[str, Any]] = {
    "dense": DENSE,
    "partial": {
        name: shape for name, shape in {**SHAPES, **DENSE, **MIXED}.items() if name not in WHOLE_ONLY
    },
}
CARD_MIB = 8_000_000
CASES: Sequence[Mapping[str, Any]] = (
    {"context": 4096, "cache": "f16", "slots": 1},
    {"context": 16384, "cache": "q8_0", "slots": 4},
    {"context": 32768, "cache": "f16", "slots": 4},
    {"context": 65536, "cache": "f16", "slots": 4, "unified": False, "ubatch": 256},
    {"context": 131072, "cache": "q4_0", "slots": 1, "ubatch": 2048},
    {"context": 131072, "cache": "q8_0", "slots": 4, "unified": False, "ubatch": 128},
    {"context": 8192, "cache": "f16", "slots": 4, "flash": "off"},
)
"""Flags of `placement_args`; what is left out has its default there."""
PARTIAL_CASES: Sequence[Mapping[str, Any]] = (
    {"context": 4096, "cache": "f16", "slots": 4, "kept": 0.5},
    {"context": 32768, "cache": "q8_0", "slots": 4, "kept": 0.5},
    {"context": 131072, "cache": "f16", "slots": 4, "kept": 0.5},
    {"context": 65536, "cache": "f16", "slots": 4, "unified": False, "ubatch": 256, "kept": 0.8},
    {"context": 16384, "cache": "q8_0", "slots": 1, "ubatch": 1024, "kept": 0.2},
)
"""The same with a share of the layers on the host."""


def cases_of(zoo: str) -> Sequence[Mapping[str, Any]]:
    """The cases of a table."""
    return PARTIAL_CASES if zoo == "partial" else CASES


def layers_of(case: Mapping[str, Any], n_layers: int) -> int:
    """Layers for the card, the output among them."""
    return n_layers + 1 - max(1, round(n_layers * case["kept"])) if "kept" in case else 999


def measure(zoo: str, server: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Each model in each case, on one card that takes all of it; what llama-server cannot do is left out and said."""
    library = build_card(folder)
    for name, shape in ZOOS[zoo].items():
        path = build_hollow(folder / f"{name}.gguf", shape)
        n_layers = read_facts(str(path)).n_layers
        for number, case in enumerate(cases_of(zoo)):
            flags = {key: value for key, value in case.items() if key != "kept"}
            flags["layers"] = layers_of(case, n_layers)
            args = ["-m", str(path), *placement_args(**flags), "-dev", "CUDA0"]
            try:
                found = ask_on_cards(library, {"CUDA0": CARD_MIB}, args, server)
            except RuntimeError as error:
                print(f"{name} {case}: {str(error).splitlines()[-1]}", file=sys.stderr)
                continue
            yield {"shape": name, "case": number, "build": found.build, **_row(found)}
        path.unlink()


def _row(found: Breakdown) -> dict[str, Any]:
    """Weights and context in whole MiB as printed, compute to two decimals."""
    row = found.devices["CUDA0"]
    return {
        "weights_mib": row.weights_mib,
        "context_mib": row.context_mib,
        "compute_mib": found.compute_exact_mib["CUDA0"],
        "host_weights_mib": found.host.weights_mib,
        "host_compute_mib": found.compute_exact_mib["CUDA_Host"],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table as JSON, one case a line."""
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.support.zoo_golden", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("zoo", choices=ZOOS)
    parser.add_argument("--server", default="llama-server")
    words = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="zoo-golden-") as folder:
        print("[")
        for number, row in enumerate(measure(words.zoo, words.server, Path(folder))):
            print(",\n" * (number > 0) + json.dumps(row), end="", flush=True)
        print("\n]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
