"""What `llamad doctor` finds on the host: users, GPUs and their drivers, folders, disks, units, the ledger."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamad.config.access import Identity
from llamad.errors import DeviceError
from llamad.hardware.device import Device
from llamad.hardware.nvml_errors import driver_upgraded
from llamad.service.doctor import account, disks, driver, folders, gpus, leases, others, units
from llamad.service.doctor.finding import Severity, Unseen
from llamad.service.doctor.tree import Space
from tests.support.doctor_host import (
    GIB,
    ME,
    MY_GROUP,
    NOW_S,
    OTHER,
    FakeCommands,
    make_host,
    the_one,
    wrong,
)

NVIDIA, AMD, INTEL = "0x10de", "0x1002", "0x8086"
CARD = "0000:01:00.0"


# -- the account -------------------------------------------------------------------------------------------------


def test_no_user_and_no_group(tmp_path: Path) -> None:
    fakes = make_host(tmp_path)
    fakes.accounts.users["_llamad"] = Identity("_llamad", ME, frozenset({44}))
    found = the_one(account.check(fakes.host))
    assert (found.about, found.cure) == ("render", "systemd-sysusers llamad.conf")
    del fakes.accounts.groups["video"]
    assert [one.what for one in wrong(account.check(fakes.host))][1] == "there is no group video"


def test_no_user_at_all(tmp_path: Path) -> None:
    fakes = make_host(tmp_path)
    del fakes.accounts.users["_llamad"]
    assert the_one(account.check(fakes.host)).what == "there is no user _llamad"


# -- kernel modules ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vendor", "bound", "module", "severity", "says", "cure"),
    [
        (NVIDIA, "nvidia", "", "ok", "NVIDIA GPU, driven by nvidia", ""),
        (AMD, "amdgpu", "", "ok", "AMD GPU, driven by amdgpu", ""),
        (INTEL, "i915", "", "ok", "Intel GPU, driven by i915", ""),
        (NVIDIA, "vfio-pci", "", "ok", "given to a virtual machine", ""),
        (NVIDIA, "nouveau", "", "warn", "driven by nouveau", "apt-get install nvidia-driver && systemctl reboot"),
        (NVIDIA, "", "nvidia", "error", "the module nvidia is not loaded", "modprobe nvidia"),
        (INTEL, "", "i915", "error", "the module i915 is not loaded", "modprobe i915"),
        (NVIDIA, "", "", "error", "nvidia is not installed", "apt-get install nvidia-driver && systemctl reboot"),
        (AMD, "", "", "error", "amdgpu is not installed", "apt-get install firmware-amd-graphics && systemctl reboot"),
    ],
)
def test_gpus_and_their_modules(
    tmp_path: Path, vendor: str, bound: str, module: str, severity: str, says: str, cure: str
) -> None:
    fakes = make_host(tmp_path)
    fakes.gpu(CARD, vendor, bound)
    fakes.commands.say("modinfo", status=1)
    fakes.commands.say("modinfo", "--field=filename", module)
    (found,) = gpus.check_modules(fakes.host)
    assert not isinstance(found, Unseen)
    assert (found.about, found.severity, found.cure) == (CARD, severity, cure)
    assert says in found.what


def test_what_is_no_gpu_of_theirs_is_passed_over(tmp_path: Path) -> None:
    fakes = make_host(tmp_path)
    fakes.gpu("0000:00:02.0", "0x1af4")  # virtio
    fakes.gpu("0000:00:03.0", INTEL)
    fakes.tree.write("/sys/bus/pci/devices/0000:00:03.0/class", "0x020000\n")  # a network card
    assert wrong(gpus.check_modules(fakes.host)) == []
    (fakes.root / "sys/bus/pci/devices").rename(tmp_path / "gone")
    (seen,) = gpus.check_modules(fakes.host)
    assert isinstance(seen, Unseen)


# -- device nodes --------------------------------------------------------------------------------------------------


def test_nodes_of_nvidia_that_are_missing(tmp_path: Path) -> None:
    fakes = make_host(tmp_path)
    fakes.gpu(CARD, NVIDIA, "nvidia")
    fakes.tree.write(f"/proc/driver/nvidia/gpus/{CARD}/information", "Model: X\nDevice Minor: \t 3\n")
    fakes.tree.write("/dev/nvidiactl", "", 0o666)
    found = wrong(gpus.check_nodes(fakes.host))
    assert [one.about for one in found] == ["/dev/nvidia-uvm", "/dev/nvidia3"]
    assert found[0].cure == "apt-get install nvidia-modprobe && nvidia-modprobe -c 3 -u"
    fakes.tree.write("/usr/bin/nvidia-modprobe", "", 0o755)
    assert wrong(gpus.check_nodes(fakes.host))[0].cure == "nvidia-modprobe -c 3 -u"
    for node in ("/dev/nvidia-uvm", "/dev/nvidia3"):
        fakes.tree.write(node, "", 0o666)
    (well,) = gpus.check_nodes(fakes.host)
    assert not isinstance(well, Unseen) and well.what == "3 device nodes, open to _llamad"


def test_nodes_of_a_gpu_without_its_driver_are_not_asked_for(tmp_path: Path) -> None:
    fakes = make_host(tmp_path)
    fakes.gpu(CARD, NVIDIA, "nouveau")
    assert list(gpus.check_nodes(fakes.host)) == []


def test_a_render_node_that_is_missing_then_closed_then_open(tmp_path: Path) -> None:
    fakes = make_host(tmp_path, user_uid=OTHER)
    fakes.gpu(CARD, AMD, "amdgpu", nodes=["card0", "renderD128"])
    assert the_one(gpus.check_nodes(fakes.host)).cure.startswith("udevadm trigger --action=add")
    node = fakes.tree.write("/dev/dri/renderD128", "", 0o600)
    found = the_one(gpus.check_nodes(fakes.host))
    assert f"owner {ME}, group {MY_GROUP}, mode 0600" in found.why
    assert found.cure == "chgrp render /dev/dri/renderD128 && chmod 0660 /dev/dri/renderD128"
    node.chmod(0o660)  # of the test's group, which the service is in
    assert wrong(gpus.check_nodes(fakes.host)) == []
    fakes.tree.write("/dev/kfd", "", 0o600)
    assert the_one(gpus.check_nodes(fakes.host)).about == "/dev/kfd"


def test_a_node_of_the_group_that_the_user_lacks_is_told_once_by_the_account(tmp_path: Path) -> None:
    fakes = make_host(tmp_path, user_uid=OTHER)
    fakes.accounts.users["_llamad"] = Identity("_llamad", OTHER, frozenset())
    fakes.accounts.groups["render"] = MY_GROUP
    fakes.gpu(CARD, AMD, "amdgpu", nodes=["renderD128"])
    fakes.tree.write("/dev/dri/renderD128", "", 0o660)
    assert wrong(gpus.check_nodes(fakes.host)) == []
    assert {one.about for one in wrong(account.check(fakes.host))} == {"render", "video"}


def test_a_node_of_nvidia_that_is_closed(tmp_path: Path) -> None:
    fakes = make_host(tmp_path, user_uid=OTHER)
    fakes.gpu(CARD, NVIDIA, "nvidia")
    for node in ("/dev/nvidia-uvm", "/dev/nvidiactl", "/dev/nvidia0"):
        fakes.tree.write(node, "", 0o600 if node.endswith("0") else 0o666)
    assert the_one(gpus.check_nodes(fakes.host)).cure == "chmod 0666 /dev/nvidia0"


# -- NVIDIA's driver -----------------------------------------------------------------------------------------------


def test_an_upgraded_driver_wants_a_reboot(tmp_path: Path) -> None:
    fakes = make_host(tmp_path)
    fakes.gpu(CARD, NVIDIA, "nvidia")
    fakes.tree.write("/sys/module/nvidia/version", "550.54.14\n")
    fakes.tree.write("/usr/lib/libnvidia-ml.so.560.28.03", "")
    fakes.tree.lead("/usr/lib/libnvidia-ml.so.1", "libnvidia-ml.so.560.28.03")
    found = the_one(driver.check_driver(fakes.host))
    assert "the kernel runs 550.54.14, the libraries are 560.28.03" in found.what
    assert found.cure == "systemctl reboot"


@pytest.mark.parametrize(
    ("problem", "cure"),
    [
        (DeviceError("GPU 0 needs a reset", why="a fault", fix="run nvidia-smi --gpu-reset, or reboot"),
         "systemctl stop llamad.target && nvidia-smi --gpu-reset && systemctl start llamad.target"),
        (driver_upgraded("1.0", "2.0"), "systemctl reboot"),
        (DeviceError("the NVIDIA driver does not answer", why="no answer within 8 s"), "systemctl reboot"),
    ],
)  # fmt: skip
def test_a_driver_that_cannot_be_used(tmp_path: Path, problem: DeviceError, cure: str) -> None:
    fakes = make_host(tmp_path)
    fakes.gpu(CARD, NVIDIA, "nvidia")
    fakes.nvml.error = problem
    found = the_one(driver.check_driver(fakes.host))
    assert (found.what, found.cure) == (problem.what, cure)


def test_a_driver_that_answers_and_one_that_nobody_can_ask(tmp_path: Path) -> None:
    fakes = make_host(tmp_path)
    assert list(driver.check_driver(fakes.host)) == []  # no card, nothing to say
    fakes.gpu(CARD, NVIDIA, "nvidia")
    fakes.nvml.found = [Device("CUDA0", GIB, GIB, driver="560.28")]
    assert wrong(driver.check_driver(fakes.host)) == []
    fakes.nvml.found, fakes.nvml.absence = [], "the Python module pynvml (nvidia-ml-py) is missing"
    assert the_one(driver.check_driver(fakes.host)).cure == "apt-get install python3-pynvml"


# -- the kernel's log ------------------------------------------------------------------------------------------------


def logged(*messages: tuple[float, object]) -> str:
    rows = [{"MESSAGE": text, "__REALTIME_TIMESTAMP": str(int(at_s * 1e6))} for at_s, text in messages]
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def xid(number: int) -> str:
    return f"NVRM: Xid (PCI:0000:01:00): {number}, pid='<unknown>', name=<unknown>"


@pytest.mark.parametrize(
    ("number", "ago_s", "severity", "says"),
    [
        (79, 10_800, "warn", "Xid 79 (it has fallen off the bus)"),
        (79, 200_000, "ok", "Xid 79"),
        (31, 60, "ok", "Xid 31"),
    ],
)
def test_the_last_xid_with_its_time(tmp_path: Path, number: int, ago_s: float, severity: str, says: str) -> None:
    fakes = make_host(tmp_path)
    text = logged((NOW_S - ago_s - 500, xid(number)), (NOW_S - ago_s, xid(number)))
    fakes.commands.say("journalctl", "--dmesg", text=text)
    (found,) = driver.check_kernel_log(fakes.host)
    assert not isinstance(found, Unseen)
    assert (found.about, found.severity) == ("0000:01:00", severity)
    assert says in found.what
    if ago_s == 10_800:
        assert ", 3 h ago" in found.what and found.cure == "systemctl reboot"


def test_garbage_in_the_log_is_passed_over(tmp_path: Path) -> None:
    fakes = make_host(tmp_path)
    garbage = "no json\n[]\n{}\nnull\n" + logged((NOW_S, [1, 2]), (NOW_S, "NVRM: Xid (PCI:0000:01:00): 99999999999, x"))
    fakes.commands.say("journalctl", "--dmesg", text=garbage)
    (found,) = driver.check_kernel_log(fakes.host)
    assert not isinstance(found, Unseen) and found.severity is Severity.OK


def test_a_log_that_only_root_may_read(tmp_path: Path) -> None:
    fakes = make_host(tmp_path, is_root=False)
    (seen,) = driver.check_kernel_log(fakes.host)
    assert isinstance(seen, Unseen)
    fakes.commands.say("journalctl", "--dmesg", "--boot", "--no-pager", text="kernel: hello\n")
    (found,) = driver.check_kernel_log(fakes.host)
    assert not isinstance(found, Unseen)


# -- folders -----------------------------------------------------------------------------------------------------


def test_folders_of_the_package(tmp_path: Path) -> None:
    fakes = make_host(tmp_path)
    assert wrong(folders.check(fakes.host)) == []
    (fakes.root / "var/lib/llamad/state").chmod(0o777)
    (fakes.root / "run/llamad/api").rmdir()
    found = {one.about: one for one in wrong(folders.check(fakes.host))}
    assert set(found) == {"/var/lib/llamad/state", "/run/llamad/api"}
    assert "must be root:root 0755" in found["/var/lib/llamad/state"].why
    assert {one.cure for one in found.values()} == {"systemd-tmpfiles --create llamad.conf"}


def test_the_set_group_id_bit_counts(tmp_path: Path) -> None:
    fakes = make_host(tmp_path)
    (fakes.root / "var/lib/llamad/models").chmod(0o755)
    assert the_one(folders.check(fakes.host)).about == "/var/lib/llamad/models"


def test_state_that_belongs_to_another(tmp_path: Path) -> None:
    fakes = make_host(tmp_path)
    fakes.tree.folder("/var/lib/llamad/state/phi4")
    fakes.tree.write("/var/cache/llamad/phi4/devices.json", "{}")
    fakes.tree.write("/var/cache/llamad/.headers.json", "{}")  # root's own
    assert wrong(folders.check(fakes.host)) == []
    del fakes.host.user  # asked once
    fakes.accounts.users["_llamad"] = Identity("_llamad", OTHER, frozenset({MY_GROUP}))
    fakes.tree.write("/usr/lib/tmpfiles.d/llamad.conf", "")
    found = wrong(folders.check(fakes.host))
    assert [one.about for one in found] == ["/var/lib/llamad/state/phi4", "/var/cache/llamad/phi4"]
    assert found[0].cure == "chown -R --no-dereference _llamad:_llamad /var/lib/llamad/state/phi4"
    fakes.host.only = "qwen"
    assert wrong(folders.check(fakes.host)) == []


# -- disks -------------------------------------------------------------------------------------------------------

STATE, CACHE = "/var/lib/llamad/state", "/var/cache/llamad"


def test_a_read_only_state_is_mounted_again(tmp_path: Path) -> None:
    fakes = make_host(tmp_path)
    fakes.tree.write("/proc/self/mountinfo", "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 8:2 / /var ro - ext4 /dev/sda2 ro\n")
    fakes.tree.spaces[STATE] = Space(GIB, 100, True)
    found = the_one(disks.check(fakes.host))
    assert (found.about, found.cure) == (STATE, "mount -o remount,rw /var")


def test_what_makes_room_on_a_full_disk(tmp_path: Path) -> None:
    fakes = make_host(tmp_path)
    fakes.tree.spaces[CACHE] = Space(1000, 100, False)
    assert the_one(disks.check(fakes.host)).cure == "du -xh --max-depth=3 / | sort -h | tail -n 20"
    fakes.tree.folder("/var/log/journal")
    assert the_one(disks.check(fakes.host)).cure == "journalctl --rotate --vacuum-size=64M"
    fakes.tree.write(f"{CACHE}/phi4/big", "x" * (2 << 20))
    fakes.tree.write(f"{CACHE}/qwen/small", "x")
    assert the_one(disks.check(fakes.host)).cure == "systemctl clean --what=cache llamad@phi4.service"


def test_the_cache_of_a_model_that_runs_is_cleaned_between_stop_and_start(tmp_path: Path) -> None:
    fakes = make_host(tmp_path)
    fakes.tree.spaces[CACHE] = Space(GIB, 0, False)
    fakes.tree.write(f"{CACHE}/phi4/big", "x" * (2 << 20))
    fakes.commands.units["llamad@phi4.service"] = {"ActiveState": "active"}
    found = the_one(disks.check(fakes.host))
    assert found.what == "the disk is full: no inode is free"
    unit = "llamad@phi4.service"
    assert found.cure == f"systemctl stop {unit} && systemctl clean --what=cache {unit} && systemctl start {unit}"


def test_state_on_a_network_file_system_is_noted(tmp_path: Path) -> None:
    fakes = make_host(tmp_path)
    fakes.tree.write("/proc/self/mountinfo", "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
                     "2 1 0:9 / /var/lib rw - nfs server:/lib rw\n")  # fmt: skip
    noted = [one.what for one in disks.check(fakes.host) if not isinstance(one, Unseen) and one.about == STATE]
    assert noted == ["it is on nfs (server:/lib)"]
    assert wrong(disks.check(fakes.host)) == []


# -- others ------------------------------------------------------------------------------------------------------


def test_debians_own_unit_and_the_file_that_llama_server_reads(tmp_path: Path) -> None:
    fakes = make_host(tmp_path)
    fakes.commands.units["llama-server.service"] = {"ActiveState": "active", "UnitFileState": "enabled"}
    fakes.tree.write("/etc/llama.cpp/config.ini", "; a comment = none\n[*]\nctx-size = 512\nmlock=1\n")
    unit, ini = wrong(others.check(fakes.host))
    assert unit.cure == "systemctl disable --now llama-server.service"
    assert ini.why.endswith("ctx-size, mlock")
    assert ini.cure == "mv /etc/llama.cpp/config.ini /etc/llama.cpp/config.ini.unused"
    fakes = make_host(tmp_path / "again")
    fakes.tree.write("/etc/llama.cpp/config.ini", "# nothing = here\n; nor = here\n[*]\n")
    assert wrong(others.check(fakes.host)) == []


# -- units -------------------------------------------------------------------------------------------------------


def test_an_old_systemd_and_none(tmp_path: Path) -> None:
    fakes = make_host(tmp_path)
    fakes.commands.say("systemctl", "--version", text="systemd 252 (252.39-1)\n")
    assert the_one(units.check_systemd(fakes.host)).what == "systemd 252 is too old"
    fakes = make_host(tmp_path / "container")
    (fakes.root / "run/systemd/system").rmdir()
    (seen,) = units.check_systemd(fakes.host)
    assert isinstance(seen, Unseen)
    assert list(units.check_units(fakes.host)) == []


def enabled(commands: FakeCommands, root: Path, *names: str) -> None:
    folder = root / "etc/systemd/system/llamad.target.wants"
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"llamad@{name}.service").symlink_to("/usr/lib/systemd/system/llamad@.service")
        commands.units[f"llamad@{name}.service"] = {"UnitFileState": "enabled"}


def test_what_became_of_the_units(tmp_path: Path) -> None:
    fakes = make_host(tmp_path)
    fakes.define("phi4", 'model = "/m"\n')
    enabled(fakes.commands, fakes.root, "phi4", "gone")
    fakes.commands.say("systemctl", "list-units", text="llamad@odd.service loaded failed failed LLM\nllamad@.x\n")
    fakes.commands.units |= {
        "llamad@phi4.service": {"ActiveState": "activating", "SubState": "auto-restart", "ExecMainStatus": "69",
                                "StatusText": "cannot start: no device"},
        "llamad@odd.service": {"ActiveState": "failed", "Result": "exit-code", "ExecMainStatus": "70"},
        "llamad.service": {"LoadState": "masked", "UnitFileState": "masked"},
        "llamad.target": {"UnitFileState": "disabled", "NeedDaemonReload": "yes"},
    }  # fmt: skip
    fakes.tree.write("/var/lib/llamad/state/odd/deaths.json", '[[1700000000, "crash", "it crashed"]]')
    found = {(one.about, one.cure): one for one in wrong(units.check_units(fakes.host))}
    assert set(found) == {
        ("llamad@phi4.service", "systemctl restart llamad@phi4.service"),
        ("llamad@odd.service", "systemctl restart llamad@odd.service"),
        ("llamad.service", "systemctl unmask llamad.service"),
        ("llamad.target", "systemctl enable llamad.target"),
        ("llamad@gone.service", "systemctl disable llamad@gone.service"),
        ("", "systemctl daemon-reload"),
    }
    assert found["llamad@phi4.service", "systemctl restart llamad@phi4.service"].why == "cannot start: no device"
    assert "it crashed" in found["llamad@odd.service", "systemctl restart llamad@odd.service"].why


def test_a_masked_template_is_told_once(tmp_path: Path) -> None:
    fakes = make_host(tmp_path)
    fakes.define("phi4", 'model = "/m"\n')
    fakes.tree.lead("/etc/systemd/system/llamad@.service", "/dev/null")
    fakes.commands.units["llamad@phi4.service"] = {"LoadState": "masked"}
    found = the_one(units.check_units(fakes.host))
    assert found.cure == "systemctl unmask llamad@.service"


# -- the ledger --------------------------------------------------------------------------------------------------


@pytest.fixture
def held() -> Iterator[list[int]]:
    """Descriptors to be closed."""
    descriptors: list[int] = []
    yield descriptors
    for fd in descriptors:
        os.close(fd)


def lock(path: Path, text: str = "") -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.pwrite(fd, text.encode(), 0)
    return fd


def test_who_sits_on_the_ledgers_lock(tmp_path: Path, held: list[int]) -> None:
    fakes = make_host(tmp_path)
    held.append(lock(fakes.root / "run/llamad/ledger/.ledger", "phi4 (process 4711)\n"))
    found = the_one(leases.check(fakes.host))
    assert found.what.startswith("phi4 (process 4711) has the ledger's lock")
    assert found.cure == "kill -CONT 4711"


def test_a_lease_whose_llamad_is_gone(tmp_path: Path, held: list[int]) -> None:
    fakes = make_host(tmp_path)
    ledger = fakes.root / "run/llamad/ledger"
    (ledger / ".ledger").touch()
    for name in ("phi4.lock", "phi4.owner", "free.lock", "orphan+1.lock"):
        (ledger / name).touch()
    held += [lock(ledger / "phi4.lock"), lock(ledger / "phi4.owner"), lock(ledger / "orphan+1.lock")]
    fakes.tree.lead("/proc/815/fd/3", "/run/llamad/ledger/orphan+1.lock")
    fakes.tree.write("/proc/815/comm", "llama-server\n")
    fakes.tree.write("/proc/815/cgroup", "0::/system.slice/system-llamad.slice/llamad@orphan.service\n")
    found = the_one(leases.check(fakes.host))
    assert "llama-server (process 815 of llamad@orphan.service) holds the memory of orphan+1" in found.what
    assert found.cure == "kill 815"
    # Nothing was left locked by the look.
    fd = os.open(ledger / ".ledger", os.O_RDONLY)
    held.append(fd)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
