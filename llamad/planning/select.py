"""Which devices a definition allows, and in which order they are tried. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from llamad.config.definition import Placement
from llamad.hardware.device import Device
from llamad.planning.overhead import is_software
from llamad.planning.refusal import NoDevice, PromiseError


def candidates(devices: Sequence[Device], placement: Placement) -> tuple[Device, ...]:
    """The allowed devices, the best first; () if there is no device at all.

    With `gpus = "auto"`: discrete cards before integrated ones, remote ones and CPUs in disguise; among equals the
    one with the most free memory. Named ones are tried by the same rule. Raises NoDevice if one that is named is
    not there, PromiseError for promises that take several devices at once.
    """
    several = [share for share in placement.tensor_split if share > 0]
    if len(several) > 1:
        raise PromiseError(
            "tensor_split over several devices is not planned yet",
            fix="remove tensor_split, and name one device in gpus",
        )
    allowed = _unique(devices)
    if placement.gpus != "auto":
        allowed = [_named(devices, word) for word in placement.gpus]
    if placement.main_gpu != "auto" and devices:
        allowed = [_named(allowed, placement.main_gpu)]
    return tuple(sorted(allowed, key=_rank))


def _rank(device: Device) -> tuple[int, int]:
    if is_software(device):
        kind = 3
    elif device.backend == "RPC":
        kind = 2
    else:
        kind = 1 if device.integrated else 0
    return kind, -device.free_bytes


def _unique(devices: Sequence[Device]) -> list[Device]:
    """One card that two backends list (CUDA and Vulkan) counts once, by the vendor's own backend."""
    own = {device.pci for device in devices if device.pci and device.backend != "Vulkan"}
    return [device for device in devices if device.backend != "Vulkan" or device.pci not in own]


def _named(devices: Sequence[Device], word: int | str) -> Device:
    if isinstance(word, int):
        if 0 <= word < len(devices):
            return devices[word]
    else:
        wanted = word.lower()
        for device in devices:
            names = (device.name.lower(), device.uuid.lower())
            if wanted in names or (device.pci and _pci(wanted) == _pci(device.pci)):
                return device
    raise _missing(devices, word)


def _pci(address: str) -> str:
    """`0000:01:00.0` of `00000000:01:00.0` (NVML writes eight digits) or `01:00.0`."""
    parts = address.lower().split(":")
    if len(parts) == 2:
        parts = ["0000", *parts]
    return ":".join([parts[0][-4:], *parts[1:]]) if len(parts) == 3 else address.lower()


def _missing(devices: Sequence[Device], word: int | str) -> NoDevice:
    import difflib  # only for what is refused: a start has no time for it

    there = ", ".join(device.name for device in devices) or "none"
    names = [device.name for device in devices] + [device.uuid for device in devices if device.uuid]
    near = difflib.get_close_matches(str(word), names, 1)
    fix = f'did you mean "{near[0]}"?' if near else "check the driver, or change gpus"
    return NoDevice(f"no device {word!r}", why=f"devices here: {there}", fix=fix)
