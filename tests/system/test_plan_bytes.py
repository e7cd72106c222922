"""Planned bytes against the installed llama-server's own first breakdown, for real shapes; `llamad plan` is fast.

The device is a CPU behind RPC: it has no limit on a tensor's size, and the breakdown takes no memory.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.breakdown import Breakdown, ask, rpc_device
from tests.support.card import question
from tests.support.models import build_hollow
from tests.support.shapes import LLAMA31_8B, PHI4_14B, QWEN3_8B, QWEN25_32B, HollowShape
from tests.system.conftest import MODELS, free_port, run

SHAPES = {"phi4": PHI4_14B, "llama31-8b": LLAMA31_8B, "qwen25-32b": QWEN25_32B, "qwen3-8b": QWEN3_8B}

@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder that `_llamad` can read, for models that are only headers."""
    made = MODELS / "hollow"
    made.mkdir(parents=True, exist_ok=True)
    made.chmod(0o755)
    yield made
    for path in made.iterdir():
        path.unlink()
    made.rmdir()


@pytest.fixture(scope="module")
def rpc() -> Iterator[str]:
    (command,) = Path("/usr/libexec").glob("*/llama/bin/ggml-rpc-server")
    with rpc_device([str(command)], port=free_port()) as address:
        yield address


def hollow(folder: Path, name: str, shape: HollowShape, *, vocab: bool = False) -> Path:
    path = folder / f"{name}{'-vocab' if vocab else ''}.gguf"
    if not path.exists():
        build_hollow(path, shape, ctx_train_tokens=131072, vocab=vocab)
        path.chmod(0o644)
    return path


def plan_of(folder: Path, model: Path, context: int, cache: str) -> dict[str, Any]:
    definition = folder / "asked.toml"
    definition.write_text(f'model = "{model}"\n[placement]\ncontext = {context}\nkv_cache = "{cache}"\n')
    definition.chmod(0o644)
    shown = run("llamad", "plan", "--computed", "--gpu", "RPC0=60GiB", "--json", str(definition))
    found: dict[str, Any] = json.loads(shown.stdout)
    assert found["source"] == "computed"
    assert found["context_tokens"] == context
    return found


def breakdown(rpc: str, args: Sequence[str]) -> Breakdown:
    return ask(["llama-server"], ["--rpc", rpc, *question(args)])


@pytest.mark.parametrize("cache", ["f16", "q8_0"])
@pytest.mark.parametrize("context", [4096, 16384, 65536])
@pytest.mark.parametrize("name", SHAPES)
def test_planned_bytes(folder: Path, rpc: str, name: str, context: int, cache: str) -> None:
    """Weights and context within 1 MiB, total never under by more than 32 MiB and within 2 %."""
    found = plan_of(folder, hollow(folder, name, SHAPES[name]), context, cache)
    (planned,) = found["devices"]
    real = breakdown(rpc, found["args"]).devices["RPC0"]
    # The breakdown prints whole MiB, rounded down: half a MiB more is the best reading of it.
    assert abs(planned["weights_mib"] - real.weights_mib - 0.5) <= 1
    assert abs(planned["context_mib"] - real.context_mib) <= 1
    buffers = planned["weights_mib"] + planned["context_mib"] + planned["compute_mib"]
    total = real.weights_mib + real.context_mib + real.compute_mib
    assert buffers >= total - 32
    assert buffers == pytest.approx(total, rel=0.02)


BAR_S = 0.25


@pytest.mark.alone
@pytest.mark.parametrize("how", ["file", "name"])
def test_the_command_takes_at_most_a_quarter_of_a_second(folder: Path, how: str) -> None:
    """With a vocabulary of 150,000 tokens and a warm cache, the median of five."""
    model = hollow(folder, "qwen3-8b", QWEN3_8B, vocab=True)
    definition = Path("/etc/llamad/quick.toml")
    definition.write_text(f'model = "{model}"\n')
    try:
        medians_s = list(medians(str(model) if how == "file" else "quick"))
    finally:
        definition.unlink()
    print(f"llamad plan --computed {how}: {min(medians_s):.3f} s")
    assert min(medians_s) <= BAR_S, medians_s


def medians(what: str) -> Iterator[float]:
    """Until one is good: a busy neighbour may spoil some."""
    for _ in range(6):
        took_s = []
        for _ in range(6):
            start = time.monotonic()
            run("llamad", "plan", "--computed", "--gpu", "RPC0=60GiB", "--json", what)
            took_s.append(time.monotonic() - start)
        yield statistics.median(took_s[1:])
        if statistics.median(took_s[1:]) <= BAR_S:
            return
