"""AMD GPUs from the amdgpu driver's files in /sys: memory in use by all, without any library.

The kernel answers from its own books and wakes no GPU, so these reads need no deadline.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from llamad.errors import DeviceError
from llamad.hardware.device import Device

_AMD_VENDOR = "0x1002"
_CARD = re.compile(r"card\d+")
# An integrated GPU has a carve-out of the host's memory of its own, and borrows the rest of the host's (GTT).
_CARVE_OUT_BYTES = 4 << 30
_LONGEST_NUMBER = 20


class AmdGpus:
    """Probe of the amdgpu driver. `root` is where /sys is mounted."""

    def __init__(self, root: Path = Path("/sys")) -> None:
        self._root = root

    def devices(self) -> list[Device]:
        """AMD GPUs in the order of their PCI addresses, as `ROCm0`, `ROCm1`, ...; [] if there is none.

        A GPU whose driver does not tell its memory (another driver, or one in reset) is left out. Raises
        DeviceError if the files are there and may not be read.
        """
        found = sorted(self._cards(), key=lambda device: device.pci)
        return [replace(device, name=f"ROCm{index}") for index, device in enumerate(found)]

    def _cards(self) -> list[Device]:
        try:
            entries = os.listdir(self._root / "class" / "drm")
        except OSError:
            return []  # no graphics driver at all
        # card0 is a device; card0-DP-1 is a connector of it.
        cards = [self._card(entry) for entry in entries if _CARD.fullmatch(entry)]
        return [device for device in cards if device is not None]

    def _card(self, card: str) -> Device | None:
        folder = self._root / "class" / "drm" / card / "device"
        if _read(folder / "vendor") != _AMD_VENDOR:
            return None
        total, used = _number(folder / "mem_info_vram_total"), _number(folder / "mem_info_vram_used")
        if not total or used is None:
            return None
        unique = _read(folder / "unique_id")
        return Device(
            name="ROCm",
            total_bytes=total,
            free_bytes=max(0, total - used),
            uuid=f"GPU-{unique}" if unique else "",
            pci=_pci(folder),
            description=_read(folder / "product_name") or "AMD GPU",
            driver=self._driver(),
            source="amdgpu",
            integrated=_is_integrated(folder, total),
        )

    def _driver(self) -> str:
        """The driver's own version; in the mainline kernel it has none but the kernel's."""
        return _read(self._root / "module" / "amdgpu" / "version") or f"amdgpu {os.uname().release}"


def _is_integrated(folder: Path, vram_bytes: int) -> bool:
    """Whether a GPU is part of a processor and gets by with the host's memory.

    A carve-out of more than 4 GiB counts as memory of its own, which it is: the host cannot have it. Chips of a
    card's memory have a maker.
    """
    if _read(folder / "mem_info_vram_vendor") not in ("", "unknown"):
        return False
    return vram_bytes <= _CARVE_OUT_BYTES and (_number(folder / "mem_info_gtt_total") or 0) > vram_bytes


def _pci(folder: Path) -> str:
    slot = re.search(r"^PCI_SLOT_NAME=(\S+)$", _read(folder / "uevent"), re.MULTILINE)
    return slot[1] if slot else ""


def _number(path: Path) -> int | None:
    text = _read(path)
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _LONGEST_NUMBER else None


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except PermissionError as error:
        raise DeviceError(
            "cannot read an AMD GPU's memory",
            why=f"{path}: permission denied",
            fix="let the service read /sys/class/drm",
        ) from error
    except OSError:  # this driver or this GPU has no such file
        return ""
