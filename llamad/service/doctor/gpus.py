"""The GPUs on the PCI bus, the kernel modules that drive them, and the device nodes that the service must open."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator

from llamad.config.access import SERVICE_USER, may
from llamad.frozen import dataclass
from llamad.service.doctor.finding import Finding, Seen, error, ok, unseen, warn
from llamad.service.doctor.host import Host

MODULES, NODES = "modules", "nodes"
_PCI = "/sys/bus/pci/devices"
_DISPLAY, _ACCELERATOR = "0x03", "0x12"
_READ_WRITE = 6
_OPEN_BY = ("render", "video")
_MODPROBE = "/usr/bin/nvidia-modprobe"


@dataclass(frozen=True)
class Vendor:
    """Who made a GPU: its drivers, the first one that is loaded by hand, and where it comes from."""

    name: str
    modules: tuple[str, ...]
    install: str
    backends: tuple[str, ...]
    """llama.cpp's backends that can use it, by their library names; the first one is advised."""
    packages: str


VENDORS = {
    "0x10de": Vendor("NVIDIA", ("nvidia",), "apt-get install nvidia-driver && systemctl reboot",
                     ("cuda", "vulkan"), "libggml0-backend-cuda"),
    "0x1002": Vendor("AMD", ("amdgpu",), "apt-get install firmware-amd-graphics && systemctl reboot",
                     ("vulkan", "hip"), "libggml0-backend-vulkan mesa-vulkan-drivers"),
    "0x8086": Vendor("Intel", ("xe", "i915"), "apt-get install firmware-intel-graphics && systemctl reboot",
                     ("vulkan", "sycl"), "libggml0-backend-vulkan mesa-vulkan-drivers"),
}  # fmt: skip


@dataclass(frozen=True)
class Gpu:
    """A GPU of a vendor that llama.cpp can use; `driver` is the kernel's for it, "" for none."""

    address: str
    vendor: Vendor
    driver: str

    @property
    def is_driven(self) -> bool:
        """Whether it has the driver that it needs."""
        return self.driver in self.vendor.modules


def gpus(host: Host) -> list[Gpu]:
    """The GPUs of the PCI bus, in the order of their addresses."""
    found = []
    for address in host.tree.names(_PCI):
        folder = f"{_PCI}/{address}"
        vendor = VENDORS.get(host.tree.trusted_text(f"{folder}/vendor").strip())
        if vendor and host.tree.trusted_text(f"{folder}/class").startswith((_DISPLAY, _ACCELERATOR)):
            found.append(Gpu(address, vendor, os.path.basename(host.tree.link(f"{folder}/driver"))))
    return found


# -- modules ---------------------------------------------------------------------------------------------------


def check_modules(host: Host) -> Iterable[Seen]:
    """Each GPU has its driver."""
    if not host.tree.is_folder(_PCI):
        yield unseen(MODULES, f"which GPUs there are: there is no {_PCI}")
        return
    found = gpus(host)
    if not found:
        yield ok(MODULES, "no GPU of NVIDIA, AMD or Intel on the PCI bus")
    for gpu in found:
        yield _driver_of(host, gpu)


def _driver_of(host: Host, gpu: Gpu) -> Finding:
    about, name = gpu.address, f"{gpu.vendor.name} GPU"
    if gpu.is_driven:
        return ok(MODULES, f"{name}, driven by {gpu.driver}", about=about)
    if gpu.driver == "vfio-pci":
        return ok(MODULES, f"{name}, given to a virtual machine", about=about)
    if gpu.driver:
        why = f"llama.cpp needs {gpu.vendor.modules[0]}"
        return warn(MODULES, f"{name} is driven by {gpu.driver}", about=about, why=why, cure=gpu.vendor.install)
    for module in gpu.vendor.modules:
        there = host.commands.ask("modinfo", "--field=filename", module)
        if there and there.status == 0:
            what = f"{name} has no driver: the module {module} is not loaded"
            return error(MODULES, what, about=about, cure=f"modprobe {module}")
    what = f"{name} has no driver: the module {gpu.vendor.modules[0]} is not installed"
    return error(MODULES, what, about=about, cure=gpu.vendor.install)


# -- nodes -----------------------------------------------------------------------------------------------------


def check_nodes(host: Host) -> Iterable[Seen]:
    """The nodes of GPUs that have a driver are there, and the service may open them."""
    found = [gpu for gpu in gpus(host) if gpu.is_driven]
    cures = {node: cure for gpu in found for node, cure in _nodes_of(host, gpu)}
    bad = False
    for node, cure in cures.items():
        if not host.tree.exists(node):
            bad = True
            why = "the driver is loaded, and who serves models may not make it"
            yield error(NODES, "the device node is missing", about=node, why=why, cure=cure)
    optional = [node for node in ("/dev/kfd", "/dev/nvidia-uvm-tools") if host.tree.exists(node)]
    for node in (*cures, *(optional if found else ())):
        for finding in _closed(host, node):
            bad = True
            yield finding
    if cures and not bad:
        yield ok(NODES, f"{len(cures)} device nodes, open to {SERVICE_USER}")


def _nodes_of(host: Host, gpu: Gpu) -> Iterator[tuple[str, str]]:
    """The nodes that a GPU needs, each with what makes it."""
    if gpu.driver == "nvidia":
        minor = _minor(host, gpu)
        make = f"nvidia-modprobe -c {minor} -u"
        if not host.tree.exists(_MODPROBE):
            make = f"apt-get install nvidia-modprobe && {make}"
        yield from ((node, make) for node in ("/dev/nvidiactl", "/dev/nvidia-uvm", f"/dev/nvidia{minor}"))
        return
    for name in host.tree.names(f"{_PCI}/{gpu.address}/drm"):
        if name.startswith("renderD"):
            yield f"/dev/dri/{name}", "udevadm trigger --action=add --subsystem-match=drm && udevadm settle"


def _minor(host: Host, gpu: Gpu) -> str:
    told = host.tree.trusted_text(f"/proc/driver/nvidia/gpus/{gpu.address}/information")
    found = re.search(r"^Device Minor:\s*(\d{1,3})\s*$", told, re.MULTILINE)
    if found:
        return found[1]
    cards = [other.address for other in gpus(host) if other.driver == "nvidia"]
    return str(cards.index(gpu.address))  # what it mostly is


def _closed(host: Host, node: str) -> Iterator[Finding]:
    mode = host.tree.mode(node)
    if host.user is None or mode is None or may(host.user, mode, _READ_WRITE):
        return
    openers = {host.accounts.group(name) for name in _OPEN_BY}
    if mode.gid in openers and mode.permissions & 0o060 == 0o060:
        return  # the user is not in the group, which the account's check tells
    quoted, why = shlex.quote(node), f"owner {mode.uid}, group {mode.gid}, mode {mode.permissions:04o}"
    cure = f"chgrp render {quoted} && chmod 0660 {quoted}"
    if node.startswith("/dev/nvidia"):
        cure = f"chmod 0666 {quoted}"
        why += "; NVreg_DeviceFileMode in /etc/modprobe.d sets it for good"
    yield error(NODES, f"{SERVICE_USER} may not open it", about=node, why=why, cure=cure)
