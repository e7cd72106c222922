"""Room that a start leaves to the other models of the host."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest

from llamad.config.load import load_definition
from llamad.gguf.read import read_facts
from llamad.hardware.device import HostMemory
from llamad.ledger.lease import Lease, Phase
from llamad.planning.plan import BuildGates, Plan
from llamad.planning.problem import Problem
from llamad.planning.solve import plan
from llamad.service import sharing
from llamad.service.sharing import CLAIMS, Sharing
from llamad.units import GIB
from tests.support.models import build_hollow
from tests.support.planning import card
from tests.support.shapes import LLAMA31_8B, LLAMA32_3B, QWEN3_8B

HOST = HostMemory(256 * GIB, 250 * GIB)
SHAPES = {"llama": LLAMA31_8B, "qwen": QWEN3_8B, "small": LLAMA32_3B}


class Machine:
    """Definitions, enabled units, one card, and what the models that run have taken of it."""

    def __init__(self, folder: Path, free_gib: float) -> None:
        self.etc, self.units, self.caches = folder / "etc", folder / "wants", folder / "cache"
        for made in (self.etc, self.units, self.caches):
            made.mkdir()
        self.total = card("CUDA0", free_gib).total_bytes
        self.running: dict[str, Lease] = {}
        for name, shape in SHAPES.items():
            build_hollow(folder / f"{name}.gguf", shape)
            self.define(name, f'model = "{folder}/{name}.gguf"\n')
            self.enable(name)

    def define(self, name: str, text: str) -> None:
        (self.etc / f"{name}.toml").write_text(text)

    def enable(self, name: str) -> None:
        (self.units / f"llamad@{name}.service").touch()

    def start(self, name: str) -> Plan:
        taken = sum(lease.visible["CUDA0"] for lease in self.running.values())
        device = card("CUDA0", (self.total - taken) / GIB, total_gib=self.total / GIB)
        loaded = load_definition(name, self.etc)
        facts = read_facts(loaded.definition.model)
        problem = Problem(facts, (device,), HOST, loaded.definition.placement, BuildGates())
        others = Sharing(self.etc, self.caches / name, lambda: list(self.running.values()), self.units)
        share = others.share(name, problem)
        found = plan(
            facts, [device], HOST, loaded.definition.placement, loaded.written, BuildGates(),
            share=share.bytes_by_place, others=share.others,
        )  # fmt: skip
        takes = {"CUDA0": found.devices[0].parts.total_bytes}
        self.running[name] = Lease(name, Phase.SETTLED, promised=takes, visible=takes)
        return found


def contexts(machine: Machine, order: tuple[str, ...]) -> dict[str, int]:
    machine.running.clear()
    return {name: machine.start(name).context_tokens for name in sorted(order, key=order.index)}


def test_three_definitions_in_six_orders(tmp_path: Path) -> None:
    machine = Machine(tmp_path, 24)
    found = [sorted(contexts(machine, order).items()) for order in permutations(SHAPES)]
    assert all(one == found[0] for one in found)
    assert all(4096 < context < 131072 for _, context in found[0])


def test_a_model_that_is_alone_takes_what_fits(tmp_path: Path) -> None:
    machine = Machine(tmp_path, 24)
    shared = machine.start("llama").context_tokens
    for unit in machine.units.iterdir():
        unit.unlink()
    machine.running.clear()
    assert machine.start("llama").context_tokens > shared


def test_one_that_runs_without_being_enabled_counts(tmp_path: Path) -> None:
    machine = Machine(tmp_path, 24)
    (machine.units / "llamad@small.service").unlink()
    machine.start("small")
    found = machine.start("llama")
    (text,) = (reason.text for reason in found.reasons if reason.topic == "context")
    assert "left to qwen, small" in text


def test_a_neighbour_that_cannot_be_read_claims_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path, 24)
    before = machine.start("llama").context_tokens
    machine.running.clear()
    (tmp_path / "qwen.gguf").write_bytes(b"no model")
    machine.define("small", "model = 3\n")
    assert machine.start("llama").context_tokens > before


def test_claims_are_kept_until_something_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path, 24)
    first = machine.start("llama").context_tokens
    assert (machine.caches / "llama" / CLAIMS).exists()
    machine.running.clear()
    with monkeypatch.context() as patched:
        patched.setattr(sharing, "_read_claimant", lambda *_: pytest.fail("read again"))
        assert machine.start("llama").context_tokens == first
    machine.running.clear()
    machine.define("small", f'model = "{tmp_path}/small.gguf"\n[placement]\ncontext = 131072\n')
    assert machine.start("llama").context_tokens < first


@pytest.mark.parametrize("text", ["[]", "{", '{"a": 3}', "null", '{"": [{"CUDA0": ["x"]}]}'])
def test_garbage_that_was_kept_is_read_anew(tmp_path: Path, text: str) -> None:
    machine = Machine(tmp_path, 24)
    first = machine.start("llama").context_tokens
    (machine.caches / "llama" / CLAIMS).write_text(text)
    machine.running.clear()
    assert machine.start("llama").context_tokens == first
