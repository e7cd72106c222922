"""The host's memory from made /proc and cgroup trees."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llamad.errors import DeviceError
from llamad.hardware.device import HostMemory
from llamad.hardware.host import host_memory

GIB = 1 << 30


def proc(root: Path, *, cgroup: str = "0::/\n") -> Path:
    (root / "self").mkdir(parents=True)
    (root / "self" / "cgroup").write_text(cgroup)
    (root / "meminfo").write_text(
        f"MemTotal:       {64 * GIB // 1024} kB\nMemFree:  1 kB\n"
        f"MemAvailable:   {40 * GIB // 1024} kB\nHugePages_Total: 0\n"
    )
    return root


def limited(folder: Path, *, most: object, current: int, inactive: int = 0, high: object = "max") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.high").write_text(f"{high}\n")
    (folder / "memory.current").write_text(f"{current}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\nactive_file 7\n")


def test_without_cgroups(tmp_path: Path) -> None:
    assert host_memory(proc(tmp_path / "proc"), tmp_path / "none") == HostMemory(64 * GIB, 40 * GIB)


def test_the_tightest_cgroup_above_us_counts(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    limited(root / "system.slice", most=32 * GIB, current=10 * GIB, inactive=4 * GIB)
    limited(root / "system.slice" / "llamad.service", most="max", current=GIB)
    found = host_memory(proc(tmp_path / "proc", cgroup="0::/system.slice/llamad.service\n"), root)
    assert found == HostMemory(32 * GIB, 26 * GIB)


def test_memory_high_is_a_limit_too_and_nothing_goes_below_zero(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    limited(root / "a", most=32 * GIB, high=8 * GIB, current=9 * GIB)
    found = host_memory(proc(tmp_path / "proc", cgroup="1:name=systemd:/x\n0::/a\n"), root)
    assert found == HostMemory(8 * GIB, 0)


def test_a_limit_above_the_host_changes_nothing(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    limited(root / "a", most=1 << 50, current=0)
    assert host_memory(proc(tmp_path / "proc", cgroup="0::/a\n"), root) == HostMemory(64 * GIB, 40 * GIB)


def test_a_cgroup_whose_name_is_no_text(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    limited(root / os.fsdecode(b"box-\xff"), most=8 * GIB, current=GIB)
    folder = proc(tmp_path / "proc")
    (folder / "self" / "cgroup").write_bytes(b"0::/box-\xff\n")
    assert host_memory(folder, root) == HostMemory(8 * GIB, 7 * GIB)


@pytest.mark.parametrize("text", ["", "MemTotal: 5\n", "MemTotal: x kB\nMemAvailable: 5 kB\n", "MemTotal:\nMemAvailable:\n"])
def test_a_meminfo_without_the_figures_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "meminfo").write_text(text)
    with pytest.raises(DeviceError, match="cannot read the host's memory"):
        host_memory(tmp_path)


def test_garbage_in_a_cgroup_is_no_limit(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    limited(root / "a", most="lots", current=0)
    (root / "a" / "memory.stat").write_text("inactive_file\n\nx")
    assert host_memory(proc(tmp_path / "proc", cgroup="0::/../a\n"), root).available_bytes == 40 * GIB


def test_this_machine() -> None:
    found = host_memory()
    assert 0 <= found.available_bytes <= found.total_bytes


def test_no_proc_is_said(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="cannot read the host's memory"):
        host_memory(tmp_path)
