"""Several models on the same devices: every order of starts gives the same contexts, and nobody takes another's room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamad.config.definition import Placement
from llamad.gguf.facts import ModelFacts
from llamad.hardware.device import Device
from llamad.planning.claims import claimant
from llamad.planning.plan import BuildGates, Plan
from llamad.planning.problem import Problem
from llamad.planning.shares import Claim, Claimant, shares
from llamad.planning.solve import plan
from llamad.units import GIB
from tests.support.planning import HOST, card, facts_of
from tests.support.shapes import LLAMA31_8B, LLAMA32_3B, PHI4_14B, QWEN3_8B

MODELS = {"a": facts_of(LLAMA31_8B), "b": facts_of(QWEN3_8B), "c": facts_of(LLAMA32_3B)}


def started(
    order: Sequence[str], cards: Sequence[Device], models: Mapping[str, ModelFacts] = MODELS
) -> dict[str, Plan]:
    """Start one after the other, each on what the others left."""
    claimants = [claimant(name, problem(facts, cards)) for name, facts in models.items()]
    share = shares({device.name: device.free_bytes for device in cards}, claimants)
    free = {device.name: device.free_bytes for device in cards}
    plans = {}
    for name in order:
        now = [replace(device, free_bytes=free[device.name]) for device in cards]
        others = [other for other in models if other != name]
        found = plan(models[name], now, HOST, Placement(), frozenset(), BuildGates(), share=share[name], others=others)
        for device in found.devices:
            free[device.name] -= device.parts.total_bytes
            assert free[device.name] >= 0
        plans[name] = found
    return plans


def problem(facts: ModelFacts, cards: Sequence[Device]) -> Problem:
    return Problem(facts, tuple(cards), HOST, Placement(), BuildGates())


@pytest.mark.parametrize(
    "cards",
    [
        [card("CUDA0", 24)],
        [card("CUDA0", 16), card("CUDA1", 10)],
        [card("CUDA0", 80)],
        [card("CUDA0", 9), card("CUDA1", 9)],
    ],
    ids=["one", "two", "plenty", "small"],
)
def test_three_definitions_in_six_orders(cards: list[Device]) -> None:
    found = [started(order, cards) for order in permutations(MODELS)]
    contexts = {tuple(sorted((name, made.context_tokens) for name, made in plans.items())) for plans in found}
    assert len(contexts) == 1
    places = {tuple(sorted((name, made.devices[0].name) for name, made in plans.items())) for plans in found}
    assert len(places) == 1


def test_the_first_one_is_not_greedy_and_says_for_whom() -> None:
    alone = plan(MODELS["a"], [card("CUDA0", 20)], HOST, Placement(), frozenset(), BuildGates())
    plans = started(("a", "b", "c"), [card("CUDA0", 20)])
    assert plans["a"].context_tokens < alone.context_tokens
    (text,) = (reason.text for reason in plans["a"].reasons if reason.topic == "context")
    assert "of CUDA0 is left to b, c, which are enabled too" in text


def test_a_promise_does_not_shrink() -> None:
    cards = [card("CUDA0", 20)]
    found = plan(
        MODELS["a"],
        cards,
        HOST,
        Placement(context=65536),
        frozenset(),
        BuildGates(),
        share={"CUDA0": 8 * GIB},
        others=["b"],
    )
    assert found.context_tokens == 65536


def test_a_share_that_is_too_small_is_no_reason_to_stay_down() -> None:
    found = plan(
        MODELS["a"],
        [card("CUDA0", 20)],
        HOST,
        Placement(),
        frozenset(),
        BuildGates(),
        share={"CUDA0": GIB},
        others=["b"],
    )
    assert found.context_tokens >= 4096


def test_a_model_for_two_devices_claims_of_both() -> None:
    cards = [card("CUDA0", 7), card("CUDA1", 7)]
    (claims,) = claimant("phi4", problem(facts_of(PHI4_14B), cards)).places
    assert set(claims) == {"CUDA0", "CUDA1"}


sizes = st.integers(0, 1 << 36)
claims = st.builds(lambda floor, more: Claim(floor, floor + more), sizes, sizes)


@given(st.integers(0, 1 << 38), st.lists(claims, min_size=1, max_size=6))
def test_shares_keep_floors_and_never_exceed_what_there_is(size: int, listed: list[Claim]) -> None:
    claimants = [Claimant(f"m{index}", ({"d": claim},)) for index, claim in enumerate(listed)]
    found = [shares({"d": size}, claimants)[f"m{index}"]["d"] for index in range(len(listed))]
    assert all(claim.floor_bytes <= share <= claim.want_bytes for claim, share in zip(listed, found, strict=True))
    floors = sum(claim.floor_bytes for claim in listed)
    assert sum(found) <= max(size, floors)
    # Who wants no less and needs no more than another gets no less of what is left.
    grown = [share - claim.floor_bytes for claim, share in zip(listed, found, strict=True)]
    unfilled = [more for claim, share, more in zip(listed, found, grown, strict=True) if share < claim.want_bytes]
    assert not unfilled or max(grown) - min(unfilled) <= len(listed)
