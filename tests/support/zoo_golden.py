"""What llama-server says that the zoo's models would take on a card that is not there: the tables of tests/data/planning.

    python3 -m tests.support.zoo_golden dense > tests/data/planning/card_dense.json

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

from tests.support.breakdown import Breakdown, placement_args
from tests.support.card import ask_on_cards, build_card
from tests.support.models import build_hollow
from tests.support.zoo_dense import ZOO as DENSE

ZOOS: Mapping[str, Mapping[str, Any]] = {"dense": DENSE}
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


def measure(zoo: Mapping[str, Any], server: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Each model in each case, on one card that takes all of it."""
    library = build_card(folder)
    for name, shape in zoo.items():
        path = build_hollow(folder / f"{name}.gguf", shape)
        for number, case in enumerate(CASES):
            args = ["-m", str(path), *placement_args(**case), "-dev", "CUDA0"]
            found = ask_on_cards(library, {"CUDA0": CARD_MIB}, args, server)
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
        rows = [json.dumps(row) for row in measure(ZOOS[words.zoo], words.server, Path(folder))]
    print("[\n" + ",\n".join(rows) + "\n]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
