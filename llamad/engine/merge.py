"""One list of devices from several: the engine's names and order, the drivers' figures and identities. Pure.

The engine says which devices a child will see, and never which card that is. A driver's figures may only be taken
for a device that is certainly that card: two equal cards of which the engine shows one stay with what the engine
says of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from llamad.hardware.device import Device, HostMemory

_NO_VARIABLES: Mapping[str, str] = MappingProxyType({})
_SAME_SIZE = 0.05
# Vulkan adds a card's heaps up, or leaves out what the driver keeps.
_SAME_SIZE_IN_VULKAN = 0.12
# A device whose memory is the host's shows nearly all of it; a card beside it seldom has as much.
_UNIFIED_SHARE = 0.75
# What shows some of the AMD cards only, or in another order.
_HIP_CHOICES = ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "CUDA_VISIBLE_DEVICES")


def merge_devices(
    engine: Sequence[Device],
    nvml: Sequence[Device],
    amdgpu: Sequence[Device],
    host: HostMemory,
    env: Mapping[str, str] = _NO_VARIABLES,
    *,
    nvml_complete: bool = True,
) -> list[Device]:
    """The engine's devices in its order and with its names, the drivers' figures in place of its own.

    `env` is the child's environment, whose variables decide which cards it sees. `nvml_complete` is false where the
    driver left GPUs out: numbers of GPUs then say nothing. Slices of a GPU (MIG) stand for all CUDA devices:
    llama-server alone sees one of them, and is shown the planned one by UUID. A card that a second backend shows
    (Vulkan) keeps the figures of that backend and has the card's identity.
    """
    cuda = [device for device in engine if device.backend == "CUDA"]
    shown, in_order = _shown(nvml, env, complete=nvml_complete)
    if cuda and any(device.mig for device in shown):
        others = [device for device in engine if device.backend != "CUDA"]
        slices = [replace(device, name=f"CUDA{index}") for index, device in enumerate(shown)]
        return slices + merge_devices(others, (), amdgpu, host, env)
    known = {} if "GGML_CUDA_DEVICES" in env else _paired(cuda, shown, in_order=in_order)
    rocm = [device for device in engine if device.backend == "ROCm"]
    discrete = [device for device in amdgpu if not device.integrated]
    known |= _paired(rocm, discrete, in_order=not any(name in env for name in _HIP_CHOICES))
    found = [_with_figures(device, known.get(device.name), host) for device in engine]
    found = _identified(found, [device for device in nvml if not device.mig], discrete)
    return [_sharing(device, amdgpu, host) for device in found]


def _with_figures(device: Device, driver: Device | None, host: HostMemory) -> Device:
    if driver is None:
        return device
    if driver.integrated and device.total_bytes < _UNIFIED_SHARE * host.total_bytes:
        # The driver tells no memory of it, and what the engine tells is not the host's: a card with its own.
        return replace(_as(device, driver), integrated=False)
    return replace(driver, name=device.name, description=device.description or driver.description)


def _as(device: Device, driver: Device) -> Device:
    """The engine's view of a card, with what only the driver tells of it."""
    return replace(
        device,
        uuid=driver.uuid,
        pci=driver.pci,
        driver=driver.driver,
        integrated=driver.integrated,
        display_active=driver.display_active,
        foreign_bytes=driver.foreign_bytes,
    )


def _paired(engine: Sequence[Device], driver: Sequence[Device], *, in_order: bool) -> dict[str, Device]:
    """The driver's view of each of the engine's devices, by the engine's name, where that is certain.

    Equal cards are told apart by their order alone, and only where both show as many of them. Where the names are
    of no use, as many devices in the same order and of the same sizes are the same ones.
    """
    pairs: dict[str, Device] = {}
    for named in (True, False):
        left = [one for one in driver if one not in pairs.values()]
        rest = [one for one in engine if one.name not in pairs]
        if not named and len(rest) != len(left):
            break
        for device in rest:
            cards = [one for one in left if _alike(device, one, named=named)]
            equals = [one for one in rest if any(_alike(one, card, named=named) for card in cards)]
            if cards and len(cards) == len(equals) and (in_order or len(cards) == 1):
                pairs[device.name] = cards[equals.index(device)]
    return pairs


def _alike(engine: Device, driver: Device, *, named: bool, tolerance: float = _SAME_SIZE) -> bool:
    if named and driver.source == "nvml" and engine.description != driver.description:
        return False
    return driver.integrated or abs(engine.total_bytes - driver.total_bytes) <= tolerance * driver.total_bytes


def _shown(nvml: Sequence[Device], env: Mapping[str, str], *, complete: bool) -> tuple[list[Device], bool]:
    """What CUDA shows of `nvml`, and whether in that order.

    CUDA_VISIBLE_DEVICES has numbers of GPUs (of one in MIG mode the first slice is shown) or UUIDs, which may be
    shortened as long as one GPU has them; it ends at the first word that is neither.
    """
    in_order = complete and env.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID") == "PCI_BUS_ID"
    if "CUDA_VISIBLE_DEVICES" not in env:
        return list(nvml), in_order
    gpus = list({device.pci or device.uuid: device for device in reversed(nvml)}.values())[::-1]
    shown: list[Device] = []
    for word in (part.strip().lower() for part in env["CUDA_VISIBLE_DEVICES"].split(",")):
        if word.isdecimal() and not in_order:
            return list(nvml), False
        if word.isdecimal():
            found = gpus[int(word) : int(word) + 1] if len(word) < 4 else []
        else:
            named = word.startswith(("gpu-", "mig-"))
            found = [device for device in nvml if named and device.uuid.lower().startswith(word)]
        if len(found) != 1 or found[0] in shown:
            break
        shown += found
    return shown, in_order or not any(word.isdecimal() for word in env["CUDA_VISIBLE_DEVICES"].split(","))


def _identified(found: list[Device], nvml: Sequence[Device], amd: Sequence[Device]) -> list[Device]:
    """Cards that Vulkan shows, under the identity that the driver gives them.

    Of equal cards Vulkan's order is not known. Where a vendor's backend shows them too it does not matter which is
    which, for that backend is preferred; else they stay without an identity.
    """
    vulkan = [device for device in found if device.backend == "Vulkan"]
    own = {device.pci for device in found if device.pci}
    twins: dict[str, Device] = {}
    for device in vulkan:
        cards = [one for one in (*nvml, *amd) if _is_card(device, one)]
        equals = [one for one in vulkan if any(_is_card(one, card) for card in cards)]
        if not cards or len(cards) != len(equals):
            continue
        card = cards[equals.index(device)]
        if len(cards) == 1:
            twins[device.name] = _as(device, card)
        elif all(one.pci in own for one in cards):
            twins[device.name] = replace(device, pci=card.pci)
    return [twins.get(device.name, device) for device in found]


def _is_card(device: Device, card: Device) -> bool:
    if card.source == "amdgpu" and not _is_amd(device):
        return False
    return _alike(device, card, named=True, tolerance=_SAME_SIZE_IN_VULKAN)


def _is_amd(device: Device) -> bool:
    return device.backend == "ROCm" or "AMD" in device.description or "Radeon" in device.description


def _sharing(device: Device, amdgpu: Sequence[Device], host: HostMemory) -> Device:
    """A device with the host's memory can have no more than the host has."""
    unknown = not (device.pci or device.uuid)
    if unknown and _is_amd(device) and any(card.integrated for card in amdgpu):
        device = replace(device, integrated=True)
    if not device.integrated or device.source == "nvml":
        return device
    return replace(device, free_bytes=min(device.free_bytes, host.available_bytes))
