"""Bytes outside llama.cpp's buffers: driver context, growth at run time, and what is left free on purpose. Pure.

First-run defaults, replaced by what a load really took as soon as that is known. They are on the safe side of
figures published for a dozen cards; a context needs 180 to 605 MiB, more on cards with more multiprocessors.
"""

from __future__ import annotations

from llamad.gguf.facts import ModelFacts
from llamad.hardware.device import Device
from llamad.planning.backends import backend_of
from llamad.planning.choice import Choice
from llamad.planning.compute import largest_scratch_bytes
from llamad.planning.layers import ModelShape
from llamad.planning.plan import BuildGates
from llamad.units import GIB, MIB, parse_size

_CONTEXT_BYTES = 460 * MIB
_LARGE_CARD_CONTEXT_BYTES = 650 * MIB
_LARGE_CARD_BYTES = 30 * GIB
_MARGIN_BYTES = 128 * MIB
_MEASURED_MARGIN_BYTES = 70 * MIB
"""64 MiB, and 2 MiB for each of the three buffers: the granularity of cudaMalloc."""
_SHARED_DEVICE_MARGIN_BYTES = 256 * MIB

# Types for which CUDA multiplies without unpacking the matrix to f16 first (MMQ), and those that need no unpacking.
_DIRECT_TYPES = frozenset(
    {0, 1, 30, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 16, 17, 18, 19, 20, 21, 22, 23, 39, 40}
)
_SOFTWARE = ("llvmpipe", "lavapipe", "swiftshader")


def is_software(device: Device) -> bool:
    """Whether a device is a CPU in disguise: no driver context, and its memory is the host's."""
    return any(word in device.description.lower() for word in _SOFTWARE)


def shares_host(device: Device) -> bool:
    """Whether the device's memory is the host's, so that both must have room at once."""
    return device.integrated or is_software(device)


def context_bytes(device: Device) -> int:
    """The driver's context of one process; 0 where the free figure was read through a live one."""
    if device.context_included or is_software(device):
        return 0
    known = backend_of(device.backend).context_bytes
    if known is not None:
        return known
    return _LARGE_CARD_CONTEXT_BYTES if device.total_bytes >= _LARGE_CARD_BYTES else _CONTEXT_BYTES


def unpacked_bytes(facts: ModelFacts) -> int:
    """The f16 copy of the largest matrix whose type must be unpacked before a large batch; 0 for usual types."""
    if _DIRECT_TYPES.issuperset({t.type_id for t in facts.tensors}):
        return 0
    odd = (t for t in facts.tensors if t.type_id not in _DIRECT_TYPES and len(t.dims) > 1)
    return max((2 * t.dims[0] * t.dims[1] for t in odd), default=0)


def growth_bytes(device: Device, shape: ModelShape, choice: Choice, gates: BuildGates, unpacked: int) -> int:
    """What pools and libraries take after the load: activations in q8_1, workspaces, scratch of older builds."""
    rules = backend_of(device.backend)
    activations = 9 * choice.step_tokens * shape.widest_activation // 8
    scratch = (
        largest_scratch_bytes(shape, choice) if rules.cache_scratch and not gates.scratch_in_graph else 0
    )
    libraries = 0 if is_software(device) else rules.library_bytes
    return activations + scratch + libraries + unpacked


class Margin:
    """What stays free beyond every known byte: so many bytes, and a share of the buffers."""

    __slots__ = ("divisor", "least_bytes")

    def __init__(self, least_bytes: int, divisor: int = 0) -> None:
        """`divisor`: 1 byte of so many is left of the buffers; 0 = none."""
        self.least_bytes = least_bytes
        self.divisor = divisor

    def bytes_of(self, buffers_bytes: int) -> int:
        """With buffers of this size."""
        return self.least_bytes + (buffers_bytes // self.divisor if self.divisor else 0)


def margin(written: str, device: Device | None, *, measured: bool) -> Margin:
    """What stays free. `written` is `vram_margin`: `auto` or a size.

    A device that others use too (a display, foreign processes) gets more: their use moves by itself.
    """
    if written != "auto":
        return Margin(parse_size(written))
    if measured:
        return Margin(_MEASURED_MARGIN_BYTES)
    least = _MARGIN_BYTES
    if device is not None and (device.display_active or device.foreign_bytes):
        least += max(_SHARED_DEVICE_MARGIN_BYTES, device.foreign_bytes // 10)
    return Margin(least, 200)


def margin_bytes(written: str, device: Device | None, buffers_bytes: int, *, measured: bool) -> int:
    """What stays free beside buffers of this size: see `margin`."""
    return margin(written, device, measured=measured).bytes_of(buffers_bytes)
