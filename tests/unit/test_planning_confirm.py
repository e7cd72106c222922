"""A plan held against llama-server's own breakdown."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llamad.config.definition import Placement
from llamad.gguf.facts import ModelFacts
from llamad.hardware.device import Device, HostMemory
from llamad.planning.confirm import Asked, Refit, confirmed
from llamad.planning.plan import BuildGates, Parts, Plan
from llamad.planning.refusal import NoDevice
from llamad.planning.solve import plan
from llamad.units import GIB, MIB
from tests.support.planning import HOST, card, facts_of
from tests.support.shapes import LLAMA31_8B, PHI4_14B

PHI4, LLAMA = facts_of(PHI4_14B), facts_of(LLAMA31_8B)


def planned(
    facts: ModelFacts, device: Device | None, *, host: HostMemory = HOST, corrections: dict[str, int] | None = None
) -> Plan:
    devices = [device] if device else []
    placement = Placement(allow_cpu=device is None)
    return plan(facts, devices, host, placement, frozenset(), BuildGates(), corrections=corrections or {})


def mib(weights: float, context: float, compute: float) -> Parts:
    return Parts(int(weights * MIB), int(context * MIB), int(compute * MIB))


def floored(found: Plan, *, device_extra_mib: int = 0, host_extra_mib: int = 0) -> Asked:
    """The breakdown of a server that agrees with the plan but for so much more compute."""

    def row(parts: Parts, extra: int) -> Parts:
        return mib(
            parts.weights_bytes // MIB, parts.context_bytes // MIB, parts.compute_bytes // MIB + extra
        )

    rows = {device.name: row(device.parts, device_extra_mib) for device in found.devices}
    return Asked(rows, row(found.host, host_extra_mib))


def test_a_breakdown_that_agrees_leaves_the_finer_figures() -> None:
    found = planned(LLAMA, card("CUDA0", 10))
    answer = confirmed(found, floored(found))
    assert isinstance(answer, Plan)
    assert answer.source == "asked"
    assert answer.devices == found.devices
    assert answer.host == found.host
    assert answer.reasons[-1].topic == "bytes"


def test_other_figures_replace_the_computed_ones_rounded_up() -> None:
    found = planned(PHI4, card("CUDA0", 15.6))
    answer = confirmed(found, floored(found, device_extra_mib=50))
    assert isinstance(answer, Plan)
    more = answer.devices[0].parts.compute_bytes - found.devices[0].parts.compute_bytes
    assert 50 * MIB <= more < 52 * MIB
    assert answer.devices[0].parts.overhead_bytes == found.devices[0].parts.overhead_bytes


def test_a_plan_that_no_longer_fits_is_made_again() -> None:
    device = card("CUDA0", 10)
    found = planned(LLAMA, device)
    refit = confirmed(found, floored(found, device_extra_mib=100))
    assert isinstance(refit, Refit)
    assert refit.place == "CUDA0"
    assert 0 < refit.missing_bytes <= 101 * MIB
    assert refit.context_tokens < found.context_tokens
    assert 100 * MIB <= refit.corrections["CUDA0"] < 102 * MIB

    again = planned(LLAMA, device, corrections=dict(refit.corrections))
    assert refit.context_tokens - 1024 <= again.context_tokens <= refit.context_tokens + 1024
    # What the server says of the smaller plan: the formula is still 100 MiB short of it, the correction is in it.
    assert isinstance(confirmed(again, floored(again), corrections=refit.corrections), Plan)


def test_each_of_several_devices_has_its_own_figures_in_whatever_order_they_come() -> None:
    placement = Placement(gpus=("CUDA1", "CUDA0"), tensor_split=(3, 1), context=8192)
    cards = [card("CUDA0", 10), card("CUDA1", 12)]
    found = plan(LLAMA, cards, HOST, placement, frozenset(), BuildGates())
    assert [device.name for device in found.devices] == ["CUDA1", "CUDA0"]
    told = floored(found)
    rows = dict(sorted(told.devices.items()))  # as llama-server lists them
    answer = confirmed(found, replace(told, devices=rows))
    assert isinstance(answer, Plan) and answer.devices == found.devices
    rows["CUDA0"] = replace(rows["CUDA0"], compute_bytes=10 * GIB)
    refit = confirmed(found, replace(told, devices=rows))
    assert isinstance(refit, Refit) and refit.place == "CUDA0"
    assert refit.corrections["CUDA0"] > 9 * GIB and abs(refit.corrections["CUDA1"]) < MIB


def test_corrections_add_up() -> None:
    device = card("CUDA0", 10)
    corrections = {"CUDA0": 100 * MIB}
    found = planned(LLAMA, device, corrections=corrections)
    refit = confirmed(found, floored(found, device_extra_mib=60), corrections=corrections)
    assert isinstance(refit, Refit)
    assert 160 * MIB <= refit.corrections["CUDA0"] < 162 * MIB


def test_the_next_context_moves_with_the_figures() -> None:
    found = planned(LLAMA, replace(card("CUDA0", 10)))
    room = replace(found, devices=(replace(found.devices[0], budget_bytes=12 * GIB),))
    answer = confirmed(room, floored(found, device_extra_mib=50))
    assert isinstance(answer, Plan)
    assert answer.next_context is not None
    assert found.next_context is not None
    assert 50 * MIB <= answer.next_context.missing_bytes - found.next_context.missing_bytes < 52 * MIB


def test_weights_that_the_device_cannot_hold_are_reported() -> None:
    """llvmpipe on build 11669 gives output.weight, above its 128 MiB a tensor, to the host: real figures."""
    device = Device("Vulkan0", 24 * GIB, 24 * GIB, description="llvmpipe", context_included=True)
    found = planned(PHI4, device)
    assert found.context_tokens == 16384
    answer = confirmed(found, Asked({"Vulkan0": mib(7952, 3200, 161)}, mib(677, 0, 56)))
    assert isinstance(answer, Plan)
    output_bytes = found.devices[0].parts.weights_bytes - answer.devices[0].parts.weights_bytes
    assert output_bytes == pytest.approx(100352 * 5120 * 210 // 256, abs=2 * MIB)
    assert "402 MiB of weights stay in host memory" in answer.warnings[-1]


def test_repacked_weights_are_not_forgotten() -> None:
    """Without a device the breakdown shows 3145 of 8630 MiB: the rest is repacked, and in memory all the same."""
    found = planned(PHI4, None)
    answer = confirmed(found, Asked({}, mib(3145, 3200, 171)))
    assert isinstance(answer, Plan)
    assert answer.host.weights_bytes == found.host.weights_bytes
    assert not answer.warnings


def test_the_host_can_be_short_too() -> None:
    found = planned(LLAMA, None, host=HostMemory(16 * GIB, 12 * GIB))
    refit = confirmed(found, floored(found, host_extra_mib=6000))
    assert isinstance(refit, Refit)
    assert refit.place == "host"
    again = planned(LLAMA, None, host=HostMemory(16 * GIB, 12 * GIB), corrections=dict(refit.corrections))
    assert again.context_tokens < found.context_tokens


def test_a_planned_device_must_be_in_the_answer() -> None:
    found = planned(LLAMA, card("CUDA1", 12))
    with pytest.raises(NoDevice, match="does not use CUDA1"):
        confirmed(found, Asked({"CUDA0": mib(1, 1, 1)}, mib(1, 1, 1)))
