"""Which names a child gives to the devices of a plan. Pure.

A child is shown only the NVIDIA GPUs of its plan, by UUID: each visible GPU costs it a CUDA context of some
hundred MiB, also one that it does not use. CUDA numbers what it is shown from 0, so `CUDA2` of a plan may be
`CUDA0` to its child. Other backends show everything and keep their names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from llamad.planning.plan import DevicePlan

T = TypeVar("T")


def visible_uuids(devices: Iterable[DevicePlan]) -> tuple[str, ...] | None:
    """The value of CUDA_VISIBLE_DEVICES for a plan, as UUIDs in its order.

    None where it must not be set: a planned NVIDIA GPU is known only by its number. Empty hides all of them,
    which is right for a plan on the CPU or on another backend.
    """
    cuda = [device for device in devices if _backend(device.name) == "CUDA"]
    if any(not device.uuid.startswith(("GPU-", "MIG-")) for device in cuda):
        return None
    return tuple(device.uuid for device in cuda)


def child_names(devices: Iterable[DevicePlan]) -> dict[str, str]:
    """The child's name of each planned device, in the plan's order."""
    planned = list(devices)
    names = {device.name: device.name for device in planned}
    if visible_uuids(planned) is not None:
        cuda = [device.name for device in planned if _backend(device.name) == "CUDA"]
        names |= {name: f"CUDA{index}" for index, name in enumerate(cuda)}
    return names


def plan_names(devices: Iterable[DevicePlan]) -> dict[str, str]:
    """The plan's name of each device that its child names: `child_names` the other way round."""
    return {child: name for name, child in child_names(devices).items()}


def renamed(by_name: Mapping[str, T], names: Mapping[str, str]) -> dict[str, T]:
    """`by_name` under the other names; a name that is not known keeps itself."""
    return {names.get(name, name): value for name, value in by_name.items()}


def is_host(buffer: str) -> bool:
    """Whether a buffer type's memory is the host's: `CPU`, `CPU_Mapped`, `CUDA_Host`, `CPU_REPACK`, `AMX`."""
    return buffer.startswith(("CPU", "AMX", "BLAS", "Host")) or buffer.endswith("_Host")


def _backend(name: str) -> str:
    return name.rstrip("0123456789")
