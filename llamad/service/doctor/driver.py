"""NVIDIA's driver: its libraries against the loaded module, whether it answers, and what the kernel says of GPUs."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator

from llamad.errors import DeviceError
from llamad.hardware.driver import driver_upgrade
from llamad.hardware.faults import Fault
from llamad.hardware.nvml_errors import DriverUpgraded
from llamad.service.doctor.finding import Finding, Seen, error, ok, unseen, warn
from llamad.service.doctor.gpus import gpus
from llamad.service.doctor.host import Answer, Host

DRIVER, KERNEL_LOG = "driver", "kernel-log"
_RECENT_S = 86_400
_XID = re.compile(r"Xid \((?:PCI:)?([0-9a-fA-F:.]+)\): (\d{1,4})\b")
_OTHERS = re.compile(r"amdgpu .*(?:GPU reset|ring \S+ timeout)|i915 .*GPU HANG|xe .*GT.* reset")
_GREP = r"NVRM: Xid|amdgpu.*(GPU reset|ring .* timeout)|GPU HANG|xe .*GT.* reset"


def check_driver(host: Host) -> Iterable[Seen]:
    """Nothing where there is no GPU of NVIDIA with its driver."""
    tree = host.tree
    upgraded = driver_upgrade(
        (tree.path("/usr/lib"), tree.path("/usr/lib64")),
        tree.path("/sys/module/nvidia/version"), tree.path("/proc/driver/nvidia/version"),
    )  # fmt: skip
    if upgraded:
        what = f"NVIDIA's driver was upgraded: the kernel runs {upgraded[0]}, the libraries are {upgraded[1]}"
        yield error(DRIVER, what, why="nothing that starts now gets a GPU", cure="systemctl reboot")
        return
    if any(gpu.driver == "nvidia" for gpu in gpus(host)):
        yield _answer(host)


def _answer(host: Host) -> Seen:
    try:
        devices = host.nvml.devices()
    except DeviceError as problem:
        reset = "gpu-reset" in problem.fix
        cure = "systemctl reboot"
        if reset and not isinstance(problem, DriverUpgraded):
            cure = "systemctl stop llamad.target && nvidia-smi --gpu-reset && systemctl start llamad.target"
        return error(DRIVER, problem.what, why=f"{problem.why}; {problem.fix}", cure=cure)
    absence: str = getattr(host.nvml, "absence", "")
    if "pynvml" in absence:
        why = "free memory is told by llama-server alone, which takes memory to tell it"
        return warn(DRIVER, absence, why=why, cure="apt-get install python3-pynvml")
    if not devices:
        return error(DRIVER, absence or "NVIDIA's driver shows no GPU", cure="systemctl reboot")
    versions = sorted({device.driver for device in devices if device.driver})
    return ok(DRIVER, f"NVIDIA {', '.join(versions)} answers for {len(devices)} GPUs")


# -- the kernel's log ------------------------------------------------------------------------------------------


def check_kernel_log(host: Host) -> Iterable[Seen]:
    """The last fault of each kind and GPU that the kernel logged since it was booted."""
    words = ("--dmesg", "--boot", "--output=json", "--no-pager", "--quiet", "--lines=500", f"--grep={_GREP}")
    answer = host.commands.ask("journalctl", *words)
    if answer is None or (not host.is_root and not answer.text.strip() and not _may_read(host)):
        yield unseen(KERNEL_LOG, "the kernel's log: it needs root, or the group systemd-journal")
        return
    found = dict(_faults(host, answer))
    yield from found.values() or [ok(KERNEL_LOG, "no fault of a GPU since the boot")]


def _may_read(host: Host) -> bool:
    answer = host.commands.ask("journalctl", "--dmesg", "--boot", "--no-pager", "--quiet", "--lines=1")
    return answer is not None and bool(answer.text.strip())


def _faults(host: Host, answer: Answer) -> Iterator[tuple[str, Finding]]:
    """By what they are about, so that a later one takes the place of an earlier."""
    for line in answer.text.splitlines():
        try:
            record = json.loads(line)
            text, at_s = str(record["MESSAGE"]), int(record["__REALTIME_TIMESTAMP"]) / 1e6
        except (ValueError, LookupError, TypeError):
            continue
        if xid := _XID.search(text):
            yield f"{xid[1]} {xid[2]}", _xid(host, xid[1], int(xid[2]), at_s)
        elif _OTHERS.search(text):
            yield text.split()[0], _reset(host, text[:120], at_s)


def _xid(host: Host, address: str, number: int, at_s: float) -> Finding:
    fault, when = Fault("", number), _when(host, at_s)
    what = f"{fault}, last {when}"
    if not fault.of_the_device:
        return ok(KERNEL_LOG, what, about=address, why="a program's fault, not the GPU's")
    if host.now_s() - at_s > _RECENT_S:
        return ok(KERNEL_LOG, what, about=address)
    return warn(KERNEL_LOG, what, about=address, why="the GPU may be unusable until then", cure="systemctl reboot")


def _reset(host: Host, text: str, at_s: float) -> Finding:
    return ok(KERNEL_LOG, f"{text}, last {_when(host, at_s)}", why="what ran on it died, and was started again")


def _when(host: Host, at_s: float) -> str:
    ago_s = max(0.0, host.now_s() - at_s)
    ago = f"{ago_s / 60:.0f} min" if ago_s < 7200 else f"{ago_s / 3600:.0f} h"
    return f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(at_s))}, {ago} ago"
