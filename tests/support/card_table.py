"""Writes what llama-server takes for the mixed shapes on a card that is not there: tests/data/planning/card_mixed.json.

    python3 -m tests.support.card_table [--server llama-server] > tests/data/planning/card_mixed.json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.support.breakdown import placement_args
from tests.support.card import ask_on_cards, build_card
from tests.support.models import build_hollow
from tests.support.zoo_mixed import ZOO

CARDS = {"CUDA0": 4_000_000, "CUDA1": 4_000_000}
CASES: tuple[Mapping[str, object], ...] = (
    {"context": 8192, "cache": "f16"},
    {"context": 32768, "cache": "q8_0", "slots": 1, "unified": False},
    {"context": 65536, "cache": "f16", "ubatch": 256, "unified": False},
    {"context": 5000, "cache": "q4_0", "ubatch": 1024, "slots": 3},
    {"context": 16384, "cache": "f16", "slots": 1, "devices": 2},
    {"context": 16384, "cache": "f16", "slots": 1, "experts": True},
)


def measure(server: str, folder: Path) -> Iterator[dict[str, object]]:
    """Every shape in every case that it can have; what llama-server refuses is left out and said."""
    library = build_card(folder)
    for name, shape in ZOO.items():
        path = build_hollow(folder / f"{name}.gguf", shape)  # type: ignore[arg-type]
        for case in CASES:
            if case.get("experts") and not any("exps" in tensor.name for tensor in shape.tensors()):
                continue
            flags = {key: value for key, value in case.items() if key not in ("devices", "experts")}
            args = ["-m", str(path), *placement_args(**flags)]  # type: ignore[arg-type]
            args += ["-dev", ",".join(list(CARDS)[: int(str(case.get("devices", 1)))])]
            args += ["-ts", split(shape.layers), "--fit", "off"] if "devices" in case else []
            args += ["-cmoe"] if case.get("experts") else []
            try:
                found = ask_on_cards(library, CARDS, args, server)
            except RuntimeError as error:
                print(f"{name} {case}: {str(error).splitlines()[-1]}", file=sys.stderr)
                continue
            yield {
                "shape": name,
                **case,
                "build": found.build,
                "devices_mib": [vars(row) for row in found.devices.values()],
                "host_mib": vars(found.host),
            }


def split(layers: int) -> str:
    """Half of the layers for each of two devices, the output with the second."""
    return f"{layers // 2},{layers + 1 - layers // 2}"


def main() -> int:
    """Print the table, one case a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="llama-server")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="card-table-") as folder:
        rows = [json.dumps(row) for row in measure(words.server, Path(folder))]
    print("[\n" + ",\n".join(rows) + "\n]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
