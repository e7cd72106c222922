"""Cards that are not there: builds `ggml_card.c` and shows them to a llama-server. They take any size."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.breakdown import Breakdown, ask

SOURCE = Path(__file__).with_name("ggml_card.c")
BUILT = "LLAMAD_CARD_LIBRARY"
"""Names a library that is built already; else it is compiled, which needs cc and libggml-dev."""


def build_card(folder: Path) -> Path:
    """The library. Raises subprocess.CalledProcessError where it does not compile."""
    if built := os.environ.get(BUILT):
        return Path(built)
    library = folder / "libcard.so"
    command = ["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-lggml-base"]
    subprocess.run(command, check=True)
    return library


def card_environment(library: Path, cards_mib: Mapping[str, int]) -> dict[str, str]:
    """What makes llama-server see cards of these names and sizes."""
    cards = ",".join(f"{name}={size}" for name, size in cards_mib.items())
    return {"GGML_BACKEND_PATH": str(library), "LLAMAD_CARDS": cards}


# What a served child gets and a question must not: it would keep the breakdown to itself, or listen.
_NOT_ASKED = {"--fit", "-fit", "--host", "--port", "-lv", "--verbosity", "--api-key-file", "--log-colors"}
_NOT_ASKED_SWITCHES = {"--log-jsonl"}


def question(args: Sequence[str]) -> list[str]:
    """A plan's own argv without what would keep llama-server from saying what it would take."""
    kept: list[str] = []
    words = iter(args)
    for word in words:
        if word in _NOT_ASKED:
            next(words)
        elif word not in _NOT_ASKED_SWITCHES:
            kept.append(word)
    return kept


def ask_on_cards(library: Path, cards_mib: Mapping[str, int], args: list[str], server: str = "llama-server") -> Breakdown:
    """llama-server's first breakdown for a plan's arguments. Raises RuntimeError as `ask`."""
    env = [f"{name}={value}" for name, value in card_environment(library, cards_mib).items()]
    return ask(["env", *env, server], question(args))
