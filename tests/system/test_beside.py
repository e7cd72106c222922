"""A LoRA adapter, a control vector and a draft model beside a model: told when wrong, planned, loaded, served."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llamad.gguf.read import read_facts
from tests.support.gguf_writer import GgmlType, Tensor, f32, string, u32, write_gguf
from tests.support.models import build_tiny
from tests.system.conftest import MODELS, Bed, chat, run

RANK = 8


@pytest.fixture(scope="module")
def files(tiny: Path) -> Iterator[dict[str, Path]]:
    """What is laid over the tiny model, all numbers 0, and a smaller model that guesses for it."""
    folder = MODELS / "beside"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    facts = read_facts(str(tiny))
    found = {name: folder / f"{name}.gguf" for name in ("lora", "vector", "draft")}
    bases = [t for t in facts.tensors if t.name.startswith("blk.") and len(t.dims) == 2]
    pairs = [
        Tensor(f"{base.name}.{part}", dims, GgmlType.F32)
        for base in bases for part, dims in (("lora_a", (base.dims[0], RANK)), ("lora_b", (RANK, base.dims[1])))
    ]  # fmt: skip
    kind = {"general.type": string("adapter"), "adapter.type": string("lora"), "adapter.lora.alpha": f32(8.0)}
    write_gguf(found["lora"], {"general.architecture": string("llama"), **kind}, pairs, None)
    rows = [Tensor(f"direction.{n}", (facts.n_embd,), GgmlType.F32) for n in range(1, facts.n_layers)]
    keys = {"general.architecture": string("controlvector"), "controlvector.layer_count": u32(len(rows))}
    write_gguf(found["vector"], keys, rows, None)
    build_tiny(found["draft"], layers=2, embd=128, heads=2, seed=2, name="draft")
    for path in found.values():
        path.chmod(0o644)
    yield found
    for path in found.values():
        path.unlink()
    folder.rmdir()


def definition(files: dict[str, Path]) -> str:
    return (
        "[placement]\ncontext = 2048\nparallel = 2\nallow_cpu = true\ngpu_layers = 0\n"
        f'[lora.adapters]\n"{files["lora"]}" = 1.0\n[lora.control_vectors]\n"{files["vector"]}" = 1.0\n'
        f'[draft]\ntypes = ["draft-simple"]\nmodel = "{files["draft"]}"\nn_max = 4\n'
    )


def logged_mib(lines: str, kind: str) -> list[float]:
    """Every buffer of a kind that llama-server said it made, in the order of its log."""
    return [float(size) for size in re.findall(rf"CPU\w* {kind} buffer size = +([\d.]+) MiB", lines)]


def test_it_is_planned_and_loaded(bed: Bed, files: dict[str, Path]) -> None:
    url = bed.define("beside", extra=definition(files), vulkan=False)
    assert run("llamad", "check", "beside").stderr == ""
    bed.ctl("start", "llamad@beside")
    status, answer = chat(url)
    assert status == 200, answer

    lines = "\n".join(str(record["MESSAGE"]) for record in bed.journal("-t", "llama-server@beside"))
    shown: dict[str, Any] = json.loads(run("llamad", "plan", "beside", "--json").stdout)
    host, vector_mib = shown["host"], (4 - 1) * 256 * 4 / 2**20  # said nowhere
    (adapters_mib,) = logged_mib(lines, "LoRA")
    assert host["adapters_mib"] == pytest.approx(adapters_mib + vector_mib, abs=0.05)
    caches, computes = logged_mib(lines, "KV"), logged_mib(lines, "compute")
    assert len(caches) == 2  # that of the model, and that of the draft
    assert host["draft_mib"] >= caches[1] + min(computes)
    assert host["total_mib"] >= sum(caches) + max(computes) + min(computes) + adapters_mib
    assert shown["source"] == "asked"


def test_an_adapter_of_another_model_is_named_before_anything_starts(bed: Bed, files: dict[str, Path]) -> None:
    bed.define("beside", extra=f'[lora.adapters]\n"{files["draft"]}" = 1.0\n', vulkan=False)
    said = run("llamad", "check", "beside", check=False)
    assert said.returncode == 78  # as for everything that a definition has wrong
    assert "it is a model, not a LoRA adapter" in said.stderr
    assert bed.ctl("start", "llamad@beside", check=False).returncode != 0
    assert bed.show("llamad@beside", "ExecMainStatus") == "65"
