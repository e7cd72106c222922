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
    not there.
    """
    allowed = _unique(devices)
    if placement.gpus != "auto":
        allowed = [_named(devices, word) for word in placement.gpus]
    if placement.main_gpu != "auto" and devices:
        allowed = [_named(allowed, placement.main_gpu)]
    return tuple(sorted(allowed, key=_rank))


def device_sets(devices: Sequence[Device], placement: Placement) -> tuple[tuple[Device, ...], ...]:
    """The sets of devices that a model may be spread over, in the order in which they are tried.

    Single devices come first, then of each backend the two with most room, the three, and so on. Slices of a GPU
    (MIG) are not combined: a process sees one. Written shares (`tensor_split`) leave only the set that they are for.
    Raises NoDevice as `candidates`, PromiseError if there are shares for more devices than there are.
    """
    allowed = candidates(devices, placement)
    shares = placement.tensor_split
    if shares and allowed:
        return (_shared_out(devices, allowed, placement),)
    singles = tuple((device,) for device in allowed)
    if placement.split_mode == "none" or placement.main_gpu != "auto":
        return singles
    groups = dict.fromkeys(_family(device) for device in allowed)
    sets = []
    for group in groups:
        members = [device for device in allowed if _family(device) == group and not device.mig]
        sets += [tuple(sorted(members[:count], key=_place)) for count in range(2, len(members) + 1)]
    return (*singles, *sorted(sets, key=len))


def _shared_out(
    devices: Sequence[Device], allowed: Sequence[Device], placement: Placement
) -> tuple[Device, ...]:
    shares = placement.tensor_split
    if placement.gpus == "auto":
        order = sorted(allowed, key=_place)
    else:
        order = [_named(devices, word) for word in placement.gpus]
    if len(order) < len(shares):
        raise PromiseError(
            f"tensor_split has {len(shares)} shares for {len(order)} devices",
            why=f"devices: {', '.join(device.name for device in order) or 'none'}",
            fix="write one share a device, or remove tensor_split",
        )
    chosen = tuple(device for device, share in zip(order, shares, strict=False) if share > 0)
    if len(chosen) > 1 and any(device.mig for device in chosen):
        slices = " and ".join(device.name for device in chosen if device.mig)
        raise PromiseError(
            "tensor_split spreads the model over a slice of a GPU",
            why=f"a process can use one slice alone, and nothing beside it; slices: {slices}",
            fix="name one device in gpus and remove tensor_split",
        )
    return chosen


def _family(device: Device) -> tuple[str, bool, bool]:
    """Devices that are alike enough to share a model."""
    return device.backend, is_software(device), device.integrated


def _place(device: Device) -> tuple[str, int]:
    """The backend's own order."""
    digits = device.name[len(device.backend) :]
    return device.backend, int(digits) if digits else 0


def _rank(device: Device) -> tuple[int, int, int]:
    if is_software(device):
        kind = 3
    elif device.backend == "RPC":
        kind = 2
    else:
        kind = 1 if device.integrated else 0
    # Where it cannot be told that two backends list the same card, the vendor's own one is the better.
    return kind, device.backend == "Vulkan", -device.free_bytes


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
