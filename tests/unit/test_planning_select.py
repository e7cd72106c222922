"""Which devices may be combined, and in which order sets of them are tried."""

from __future__ import annotations

import pytest

from llamad.config.definition import Placement
from llamad.hardware.device import Device
from llamad.planning.refusal import PromiseError
from llamad.planning.select import device_sets
from tests.support.planning import card


def names(devices: list[Device], **placement: object) -> list[str]:
    return ["+".join(d.name for d in one) for one in device_sets(devices, Placement(**placement))]  # type: ignore[arg-type]


def test_single_devices_come_first_then_those_with_most_room_together() -> None:
    cards = [card("CUDA0", 8), card("CUDA1", 24), card("CUDA2", 16)]
    assert names(cards) == ["CUDA1", "CUDA2", "CUDA0", "CUDA1+CUDA2", "CUDA0+CUDA1+CUDA2"]


def test_backends_and_kinds_are_not_mixed() -> None:
    mixed = [card("CUDA0", 8), card("Vulkan1", 24), card("Vulkan2", 12, integrated=True)]
    assert names(mixed) == ["CUDA0", "Vulkan1", "Vulkan2"]


def test_the_vendors_own_backend_is_the_better_one() -> None:
    assert names([card("Vulkan0", 24), card("CUDA0", 23)])[0] == "CUDA0"


def test_slices_of_a_gpu_stay_alone() -> None:
    slices = [card("CUDA0", 20, mig=True), card("CUDA1", 20, mig=True), card("CUDA2", 24)]
    assert names(slices) == ["CUDA2", "CUDA0", "CUDA1"]
    with pytest.raises(PromiseError, match="slice of a GPU"):
        names(slices, tensor_split=(1.0, 1.0))


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        ({"split_mode": "none"}, ["CUDA1", "CUDA0"]),
        ({"main_gpu": 0}, ["CUDA0"]),
        ({"gpus": ("CUDA0",)}, ["CUDA0"]),
        ({"tensor_split": (1.0, 2.0)}, ["CUDA0+CUDA1"]),
        ({"tensor_split": (1.0, 2.0), "gpus": (1, 0)}, ["CUDA1+CUDA0"]),
        ({"tensor_split": (0.0, 2.0)}, ["CUDA1"]),
    ],
)
def test_what_is_written_leaves_only_that(placement: dict[str, object], expected: list[str]) -> None:
    assert names([card("CUDA0", 8), card("CUDA1", 24)], **placement) == expected
