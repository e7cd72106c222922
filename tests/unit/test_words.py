"""The lines of `systemctl status` for plans on one device, on several, and with a part on the CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llamad.planning.plan import DevicePlan, Parts, Plan
from llamad.supervision.words import device_names, place_text, ready_text
from llamad.units import GIB, MIB
from tests.unit.test_engine_flags import plan as some_plan


def device(name: str, layers: int, used_gib: float, free_gib: float) -> DevicePlan:
    parts = Parts(weights_bytes=int(used_gib * GIB), margin_bytes=200 * MIB)
    return DevicePlan(name, "", int(free_gib * GIB), int(free_gib * GIB), layers, parts)


def plan(*devices: DevicePlan, **more: object) -> Plan:
    layers = sum(device.layers for device in devices)
    base = replace(some_plan(), context_tokens=8192, context_train_tokens=16384, slots=4, layers=layers, layers_total=41)
    return replace(base, devices=devices, host=Parts(2 * GIB), host_available_bytes=60 * GIB, **more)  # type: ignore[arg-type]


FIRST, SECOND, THIRD = device("CUDA0", 25, 11.9, 15.6), device("CUDA1", 16, 7.2, 11.9), device("CUDA2", 0, 0.5, 8)


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (plan(replace(FIRST, layers=41)), "41/41 layers on CUDA0, 11.9 of 15.6 GiB"),
        (plan(FIRST, SECOND), "41/41 layers on CUDA0 and CUDA1, 11.9 of 15.6 GiB and 7.2 of 11.9 GiB"),
        (plan(FIRST, THIRD), "25/41 layers on CUDA0, 11.9 of 15.6 GiB"),
        (
            plan(FIRST, SECOND, host_experts=12),
            "41/41 layers on CUDA0 and CUDA1, the experts of 12 on the CPU, 11.9 of 15.6 GiB and 7.2 of 11.9 GiB",
        ),
        (plan(), "on the CPU, 2.0 of 60.0 GiB"),
    ],
)
def test_ready(found: Plan, text: str) -> None:
    assert ready_text(found) == f"ready: ctx 8192 of 16384, {text}, 4 slots"


def test_places_in_a_sentence_and_in_a_field() -> None:
    three = plan(FIRST, SECOND, replace(THIRD, layers=1))
    assert place_text(three) == "CUDA0, CUDA1 and CUDA2"
    assert device_names(three) == "CUDA0, CUDA1, CUDA2"
    assert (place_text(plan()), device_names(plan())) == ("the CPU", "CPU")
