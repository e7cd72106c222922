"""Whatever a header says, planning ends: in a plan that keeps its budget, or in a typed refusal, and soon."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamad.config.definition import Placement
from llamad.errors import LlamadError
from llamad.gguf.facts import ModelFacts
from llamad.hardware.device import Device
from llamad.planning.explain import explain
from llamad.planning.plan import BuildGates
from llamad.planning.solve import plan
from llamad.units import GIB
from tests.support.gguf_fuzz import read_all
from tests.support.planning import HOST, card

CASES = 3_000
MACHINES: tuple[list[Device], ...] = ([card()], [card("Vulkan0", 7.5, integrated=True)], [])
PLACEMENTS = (Placement(), Placement(allow_cpu=True), Placement(allow_cpu=True, kv_cache="auto", parallel=3))


@pytest.fixture
def folder() -> Iterator[Path]:
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if os.access(shm, os.W_OK) else None) as made:
        yield Path(made)


@pytest.mark.parametrize("values_only", [False, True])
def test_plans_of_damaged_headers(folder: Path, values_only: bool) -> None:
    """The facts of every damaged header that can be read, each on another machine. A second is the bound."""
    machines = itertools.cycle(itertools.product(MACHINES, PLACEMENTS))
    ends = {"plan": 0, "refusal": 0}

    def planned(facts: ModelFacts) -> None:
        devices, placement = next(machines)
        try:
            made = plan(facts, devices, HOST, placement, frozenset(), BuildGates())
        except LlamadError as error:
            assert str(error)
            ends["refusal"] += 1
            return
        ends["plan"] += 1
        assert explain(made, [])
        assert 0 < made.context_tokens <= max(facts.n_ctx_train, placement.context_min, 256)
        for device in made.devices:
            assert 0 <= device.parts.total_bytes <= device.budget_bytes <= 16 * GIB
            assert min(vars(device.parts).values()) >= 0
        assert min(vars(made.host).values()) >= 0 and made.host.total_bytes <= HOST.available_bytes

    found = read_all(folder, CASES, 7, planned, values_only=values_only)
    assert not found["failures"], "\n".join(map(str, found["failures"]))
    assert ends["plan"] > 50 and ends["refusal"] > 10, ends
