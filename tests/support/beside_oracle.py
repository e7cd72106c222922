"""Asks a real llama-server, on cards that are not there, what it holds beside a model: the table of tests/data/planning.

It shares no code with llamad. Models are hollow; what llama-server says of itself is the truth that plans are
compared with.

    python3 -m tests.support.beside_oracle --models DIR > tests/data/planning/card_beside.json

`DIR` must be on a file system with sparse files and will hold the models. LLAMAD_CARD_LIBRARY names the built card.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from tests.support.card import build_card, card_environment
from tests.support.models import build_hollow
from tests.support.projectors import PROJECTORS
from tests.support.shapes import SHAPES, HollowShape
from tests.support.zoo_dense import ZOO as DENSE
from tests.support.zoo_mixed import ZOO as MIXED
from tests.support.zoo_mixed import MixedShape

_CARDS = {"CUDA0": 4_000_000, "CUDA1": 4_000_000}
_ROW = re.compile(r"\|\s+- (\S+).*\|\s+(?:\d+ = \d+ \+ \()?\s*\d+ =\s+(\d+) \+\s+(\d+) \+\s+(\d+)")
_VISION = re.compile(r"adding ([\d.]+) MiB to fit_params_target for device (\S+)")
_COMPUTE = re.compile(r"sched_reserve:\s+(CUDA\d) compute buffer size =\s+([\d.]+) MiB")
_END = "fitting params to free memory took"


def _predicting(shape: MixedShape, block: int, title: str) -> MixedShape:
    """The shape with one block more, like `block`, that predicts further tokens."""
    return replace(shape, title=title, blocks=(*shape.blocks, shape.blocks[block]), nextn=1)


MODELS: Mapping[str, Any] = {
    "qwen3-8b": SHAPES["qwen3-8b"],
    "llama32-3b": SHAPES["llama32-3b"],
    "qwen3-06b": DENSE["qwen3-06b"],
    "gemma3-4b": DENSE["gemma3-4b"],
    "glm-45-air": MIXED["glm-45-air"],
    "qwen35-27b": _predicting(MIXED["qwen35-27b"], 3, "Qwen3.5 27B"),
    "qwen35-35b-a3b": _predicting(MIXED["qwen35-35b-a3b"], 3, "Qwen3.5 35B A3B"),
}


@dataclass(frozen=True)
class Case:
    """One question. `more` are llama-server's flags beyond those of every question; a model is named `{NAME}`."""

    name: str
    model: str
    more: tuple[str, ...]
    ubatch: int = 512
    layers: int = 999
    split: tuple[int, ...] = ()


_DRAFT = ("-md", "{qwen3-06b}", "--spec-type", "draft-simple")
_MTP = ("--spec-type", "draft-mtp")
CASES: tuple[Case, ...] = (
    Case("draft", "qwen3-8b", _DRAFT),
    Case("draft, small micro-batch", "qwen3-8b", (*_DRAFT, "--spec-draft-n-ubatch", "128")),
    Case("draft, q8_0", "qwen3-8b", (*_DRAFT, "-ctkd", "q8_0", "-ctvd", "q8_0")),
    Case("draft on the host", "qwen3-8b", (*_DRAFT, "-ngld", "0")),
    Case("draft, model partly on the host", "qwen3-8b", _DRAFT, layers=10),
    Case("draft on two", "qwen3-8b", _DRAFT, split=(18, 19)),
    Case("draft on two, unevenly", "qwen3-8b", _DRAFT, split=(10, 27)),
    Case("draft on the second", "qwen3-8b", (*_DRAFT, "-devd", "CUDA1"), split=(18, 19)),
    *(Case("mtp", model, _MTP) for model in ("glm-45-air", "qwen35-27b", "qwen35-35b-a3b")),
    Case("mtp on two", "glm-45-air", _MTP, split=(24, 24)),
    Case("mtp, model partly on the host", "glm-45-air", _MTP, layers=20),
    Case("mtp, experts on the host", "glm-45-air", (*_MTP, "--n-cpu-moe", "47")),
    Case("mtp, seven tokens", "qwen35-27b", (*_MTP, "--spec-draft-n-max", "7")),
    *(
        Case("ngram", model, ("--spec-type", "ngram-simple"), ubatch=ubatch)
        for model in ("qwen3-8b", "llama32-3b", "gemma3-4b") for ubatch in (256, 512)
    ),
    *(Case(f"projector {name}", "llama32-3b", ("-mm", f"{{mm-{name}}}")) for name in PROJECTORS),
)  # fmt: skip


def arguments(case: Case) -> list[str]:
    """llama-server's arguments, models still by their names."""
    words = ["-m", f"{{{case.model}}}", "-c", "16384", "-ngl", str(case.layers), "-fa", "on", "-np", "4", "-kvu"]
    words += ["-b", "2048" if case.split else str(case.ubatch), "-ub", str(case.ubatch)]
    words += ["-dev", "CUDA0,CUDA1", "-ts", ",".join(map(str, case.split))] if case.split else ["-dev", "CUDA0"]
    return [*words, *case.more]


def measure(folder: Path, library: Path, server: str) -> Iterator[dict[str, object]]:
    """All cases, in order."""
    paths = dict(_written(folder))
    env = [f"{name}={value}" for name, value in card_environment(library, _CARDS).items()]
    for case in CASES:
        args = arguments(case)
        command = ["env", *env, server, *(paths.get(word.strip("{}"), word) for word in args), "--port", "0", "-lv", "5"]
        yield {"name": case.name, "model": case.model, "args": args, **_ask(command)}


def _written(folder: Path) -> Iterator[tuple[str, str]]:
    for name, shape in MODELS.items():
        yield name, str(build_hollow(folder / f"{name}.gguf", cast("HollowShape", shape)))
    for name, projector in PROJECTORS.items():
        yield f"mm-{name}", str(projector.write(folder / f"mm-{name}.gguf"))


def _ask(command: Sequence[str], timeout_s: float = 60.0) -> dict[str, object]:
    tables: list[dict[str, list[int]]] = []
    vision: dict[str, float] = {}
    compute: dict[str, float] = {}
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace")
    assert child.stderr is not None
    try:
        for line in child.stderr:
            if "memory breakdown [MiB]" in line:
                tables.append({})
            elif tables and (row := _ROW.search(line)):
                tables[-1][row[1]] = [int(row[number]) for number in (2, 3, 4)]
            elif match := _VISION.search(line):
                vision[match[2]] = float(match[1])
            elif not tables and (match := _COMPUTE.search(line)):
                compute[match[1]] = float(match[2])
            elif tables and _END in line:
                break
    finally:
        child.kill()
        child.wait(timeout_s)
        child.stderr.close()
    return {"tables": tables, "vision_mib": vision, "compute_exact_mib": compute}


def main(words: Sequence[str] | None = None) -> int:
    """Print the table as JSON, one case a line."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.support.beside_oracle", description=__doc__.partition("\n")[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--server", default="llama-server")
    chosen = parser.parse_args(words)
    rows = [json.dumps(row) for row in measure(chosen.models, build_card(chosen.models), chosen.server)]
    print("[\n" + ",\n".join(rows) + "\n]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
