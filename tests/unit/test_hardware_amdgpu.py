"""The amdgpu probe over a made /sys."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llamad.errors import DeviceError
from llamad.hardware.amdgpu import AmdGpus

GIB = 1 << 30


def card(root: Path, name: str, pci: str, **files: object) -> None:
    device = root / "devices" / pci
    device.mkdir(parents=True)
    for file, value in {
        "vendor": "0x1002",
        "uevent": f"DRIVER=amdgpu\nPCI_SLOT_NAME={pci}\n",
        **files,
    }.items():
        (device / file).write_text(f"{value}\n")
    link = root / "class" / "drm" / name
    link.mkdir(parents=True)
    (link / "device").symlink_to(device)


def test_cards_in_pci_order_with_what_is_free(tmp_path: Path) -> None:
    card(
        tmp_path,
        "card1",
        "0000:83:00.0",
        mem_info_vram_total=24 * GIB,
        mem_info_vram_used=4 * GIB,
        unique_id="5f3c",
    )
    card(tmp_path, "card0", "0000:03:00.0", mem_info_vram_total=16 * GIB, mem_info_vram_used=GIB)
    card(tmp_path, "card0-DP-1", "connector", mem_info_vram_total=GIB, mem_info_vram_used=0)
    card(tmp_path, "card2", "0000:01:00.0", vendor="0x10de", mem_info_vram_total=GIB, mem_info_vram_used=0)
    card(tmp_path, "card3", "0000:09:00.0")  # another driver has it: no figures
    card(tmp_path, "renderD128", "render", mem_info_vram_total=GIB, mem_info_vram_used=0)
    first, second = AmdGpus(tmp_path).devices()
    assert (first.name, first.pci, first.free_bytes, first.uuid) == ("ROCm0", "0000:03:00.0", 15 * GIB, "")
    assert (second.name, second.total_bytes, second.free_bytes) == ("ROCm1", 24 * GIB, 20 * GIB)
    assert second.uuid == "GPU-5f3c" and second.source == "amdgpu" and second.driver.startswith("amdgpu ")
    assert not first.integrated


def test_an_integrated_gpu_is_known_by_its_carve_out(tmp_path: Path) -> None:
    sizes = {"mem_info_vram_total": GIB // 2, "mem_info_vram_used": GIB // 4, "mem_info_gtt_total": 15 * GIB}
    card(tmp_path, "card0", "0000:c4:00.0", **sizes)
    (device,) = AmdGpus(tmp_path).devices()
    assert device.integrated


def test_the_drivers_own_version_if_it_has_one(tmp_path: Path) -> None:
    card(tmp_path, "card0", "0000:03:00.0", mem_info_vram_total=GIB, mem_info_vram_used=2 * GIB)
    (tmp_path / "module" / "amdgpu").mkdir(parents=True)
    (tmp_path / "module" / "amdgpu" / "version").write_text("6.10.5\n")
    (device,) = AmdGpus(tmp_path).devices()
    assert device.driver == "6.10.5" and device.free_bytes == 0


def test_no_graphics_driver_at_all(tmp_path: Path) -> None:
    assert AmdGpus(tmp_path).devices() == []
    (tmp_path / "class" / "drm").mkdir(parents=True)
    assert AmdGpus(tmp_path).devices() == []


@pytest.mark.parametrize(
    ("vram_gib", "gtt_gib", "more", "integrated"),
    [
        (0.5, 15, {}, True),
        (4, 15, {"mem_info_vram_vendor": "unknown"}, True),
        (4, 15, {"mem_info_vram_vendor": "samsung"}, False),  # an old card with little memory
        (4, 3, {}, False),
        (64, 32, {}, False),  # a carve-out that the host lacks is memory of its own
        (2, 0, {"mem_info_gtt_total": "x"}, False),
    ],
)
def test_which_gpus_are_part_of_a_processor(
    tmp_path: Path, vram_gib: float, gtt_gib: float, more: dict[str, str], integrated: bool
) -> None:
    sizes = {"mem_info_vram_total": int(vram_gib * GIB), "mem_info_vram_used": 1, "mem_info_gtt_total": gtt_gib * GIB}
    card(tmp_path, "card0", "0000:c4:00.0", **{**sizes, **more})
    (device,) = AmdGpus(tmp_path).devices()
    assert device.integrated == integrated


GARBAGE = ["", "many", "-5", "1e9", "0x10", "9" * 5000, "\u0663", "12 34", "\0"]


@pytest.mark.parametrize("text", GARBAGE)
@pytest.mark.parametrize("file", ["mem_info_vram_total", "mem_info_vram_used"])
def test_garbage_in_a_size_leaves_that_card_out(tmp_path: Path, file: str, text: str) -> None:
    card(tmp_path, "card0", "0000:03:00.0", **{"mem_info_vram_total": GIB, "mem_info_vram_used": 0, file: text})
    card(tmp_path, "card1", "0000:04:00.0", mem_info_vram_total=2 * GIB, mem_info_vram_used=0)
    assert [device.total_bytes for device in AmdGpus(tmp_path).devices()] == [2 * GIB]


def test_what_is_missing_or_broken_beside_the_sizes_costs_a_name_only(tmp_path: Path) -> None:
    card(tmp_path, "card0", "x", mem_info_vram_total=GIB, mem_info_vram_used=0, uevent="no slot here")
    (tmp_path / "devices" / "x" / "product_name").write_bytes(b"\xff\xfeRadeon")
    (tmp_path / "devices" / "x" / "unique_id").mkdir()
    (tmp_path / "class" / "drm" / "card1").mkdir()  # no device behind it
    (tmp_path / "class" / "drm" / "card2").symlink_to("/nowhere")
    (device,) = AmdGpus(tmp_path).devices()
    assert (device.pci, device.uuid, device.name) == ("", "", "ROCm0") and "Radeon" in device.description


def test_permission_denied_is_said_and_not_taken_for_no_gpu(tmp_path: Path) -> None:
    card(tmp_path, "card0", "0000:03:00.0", mem_info_vram_total=GIB, mem_info_vram_used=0)
    secret = tmp_path / "devices" / "0000:03:00.0" / "mem_info_vram_used"
    secret.chmod(0)
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(DeviceError, match=r"mem_info_vram_used: permission denied"):
            AmdGpus(tmp_path).devices()
    finally:
        os.seteuid(me)


def test_garbage_is_left_out(tmp_path: Path) -> None:
    card(tmp_path, "card0", "0000:03:00.0", mem_info_vram_total="many", mem_info_vram_used="-5")
    card(tmp_path, "card1", "0000:04:00.0", mem_info_vram_total=0, mem_info_vram_used=0)
    assert AmdGpus(tmp_path).devices() == []
