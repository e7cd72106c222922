"""Plans that an engine with figures of its own confirms, in few rounds and without leaving much."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamad.config.definition import Placement
from llamad.gguf.facts import ModelFacts
from llamad.hardware.device import HostMemory
from llamad.planning.confirm import Asked
from llamad.planning.plan import BuildGates, Parts, Plan
from llamad.planning.refusal import NeverFits, NoRoomNow, NoSettlement
from llamad.planning.settle import ROUNDS, settled
from llamad.planning.solve import plan
from llamad.units import GIB, MIB
from tests.support.planning import card, facts_of
from tests.support.shapes import LLAMA31_8B

HOST = HostMemory(256 * GIB, 250 * GIB)
LLAMA = facts_of(LLAMA31_8B)
ODD = replace(LLAMA, architecture="unheard-of")  # a bound of a fifth and 256 MiB too much
Truth = Callable[[Plan], int]
"""Compute MiB that the engine reports for a plan."""


class Engine:
    """Answers with a compute buffer of its own and counts the questions."""

    def __init__(self, facts: ModelFacts, truth: Truth, free_gib: float = 12, **placement: object) -> None:
        self.facts, self.truth, self.free_gib = facts, truth, free_gib
        self.placement = Placement(**placement)  # type: ignore[arg-type]
        self.asked: list[Plan] = []

    def solve(self, corrections: Mapping[str, int]) -> Plan:
        device = card("CUDA0", self.free_gib)
        return plan(self.facts, [device], HOST, self.placement, frozenset(), BuildGates(), corrections=corrections)

    def ask(self, found: Plan) -> Asked:
        self.asked.append(found)
        parts = found.devices[0].parts
        compute = Parts(parts.weights_bytes // MIB * MIB, parts.context_bytes // MIB * MIB, self.truth(found) * MIB)
        return Asked({"CUDA0": compute}, found.host)

    def settled(self) -> Plan:
        return settled(self.solve, self.ask, grows=self.placement.context == "auto")


def slope(base_mib: int, per_k_mib: float) -> Truth:
    return lambda found: int(base_mib + per_k_mib * found.context_tokens / 1024)


def test_formulas_that_are_exact_are_settled_at_once() -> None:
    engine = Engine(LLAMA, lambda found: found.devices[0].parts.compute_bytes // MIB)
    found = engine.settled()
    assert found.source == "asked"
    assert len(engine.asked) == 1


def test_a_bound_that_was_too_careful_is_given_to_the_context() -> None:
    engine = Engine(ODD, slope(120, 1))
    first = engine.solve({})
    found = engine.settled()
    assert found.context_tokens > first.context_tokens
    assert found.devices[0].parts.total_bytes <= found.devices[0].budget_bytes
    spare = found.devices[0].budget_bytes - found.devices[0].parts.total_bytes
    per_token = found.devices[0].parts.context_bytes / found.context_tokens
    assert spare < 1024 * per_token + 64 * MIB


def test_a_promised_context_is_asked_about_once() -> None:
    engine = Engine(ODD, slope(120, 1), context=8192)
    assert engine.settled().context_tokens == 8192
    assert len(engine.asked) == 1


def test_formulas_that_fall_short_lead_to_less() -> None:
    engine = Engine(LLAMA, slope(900, 8))
    found = engine.settled()
    assert found.context_tokens < engine.asked[0].context_tokens
    assert found.devices[0].parts.total_bytes <= found.devices[0].budget_bytes


def test_an_engine_that_contradicts_itself_is_refused() -> None:
    answers = iter(range(1000, 100_000, 3000))
    engine = Engine(LLAMA, lambda _: next(answers), context_min=256)
    with pytest.raises((NoSettlement, NoRoomNow, NeverFits)):
        engine.settled()
    assert len(engine.asked) <= ROUNDS


def test_an_engine_that_cannot_tell_leaves_the_computed_plan() -> None:
    engine = Engine(ODD, slope(1, 1))
    found = settled(engine.solve, lambda _: None)
    assert (found.source, bool(found.remarks)) == ("computed", True)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([LLAMA, ODD]),
    st.integers(1, 1500),
    st.floats(0, 12),
    st.floats(7, 30),
    st.sampled_from([{}, {"kv_cache": "auto"}, {"context": 8192}]),
)
def test_what_is_settled_was_confirmed_and_fits(
    facts: ModelFacts, base: int, per_k: float, free_gib: float, placement: dict[str, object]
) -> None:
    engine = Engine(facts, slope(base, per_k), free_gib, **placement)
    try:
        found = engine.settled()
    except (NoSettlement, NoRoomNow, NeverFits):
        return
    (device,) = found.devices
    assert found.source == "asked"
    assert found.context_tokens in {one.context_tokens for one in engine.asked}
    assert device.parts.compute_bytes >= engine.truth(found) * MIB
    assert device.parts.total_bytes <= device.budget_bytes
