"""The driver's libraries on disk against the module that the kernel runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamad.hardware.driver import driver_upgrade

PROC = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 UTC 2024\nGCC version:  gcc 13.2.0\n"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.14  Release Build  (root@x)\n"


class Driver:
    """Files of a driver as packages leave them."""

    def __init__(self, root: Path) -> None:
        self.lib, self.module, self.proc = root / "lib", root / "module", root / "proc"
        self.lib.mkdir()

    def library(self, version: str, folder: str = "x86_64-linux-gnu") -> None:
        """As Debian has it: a link to the alternatives' link to the file."""
        place = self.lib / folder / "nvidia/current"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"libnvidia-ml.so.{version}").touch()
        link = self.lib / folder / "libnvidia-ml.so.1"
        link.unlink(missing_ok=True)
        link.symlink_to(place / f"libnvidia-ml.so.{version}")

    def upgrade(self) -> tuple[str, str] | None:
        return driver_upgrade([self.lib, self.lib / "none"], self.module, self.proc)


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    return Driver(tmp_path)


def test_equal_versions_are_no_upgrade_and_other_ones_are_named(driver: Driver) -> None:
    driver.module.write_text("550.54.14\n")
    driver.library("550.54.14")
    assert driver.upgrade() is None
    driver.library("550.90.07")
    assert driver.upgrade() == ("550.54.14", "550.90.07")


@pytest.mark.parametrize("text", [PROC, OPEN])
def test_the_module_is_known_by_proc_where_sys_is_hidden(driver: Driver, text: str) -> None:
    driver.proc.write_text(text)
    driver.library("560.35.3")
    assert driver.upgrade() == ("550.54.14", "560.35.3")
    driver.library("550.54.14")
    assert driver.upgrade() is None


def test_nothing_is_said_without_a_module_without_libraries_or_in_the_middle_of_an_upgrade(driver: Driver) -> None:
    assert driver.upgrade() is None
    driver.library("550.90.07")
    assert driver.upgrade() is None, "no module is loaded"
    driver.module.write_text("550.54.14\n")
    assert driver.upgrade() is not None
    (driver.lib / "x86_64-linux-gnu/nvidia/current/libnvidia-ml.so.550.90.07").unlink()
    assert driver.upgrade() is None, "a link to nowhere"


def test_one_library_that_agrees_is_enough(driver: Driver) -> None:
    driver.module.write_text("550.54.14\n")
    driver.library("535.183.01", "i386-linux-gnu")
    driver.library("550.54.14")
    assert driver.upgrade() is None


def test_garbage_is_no_version(driver: Driver) -> None:
    driver.module.write_bytes(b"\xff\xfe\n")
    driver.proc.write_text("Kernel Module\n")
    driver.library("x")
    assert driver.upgrade() is None
