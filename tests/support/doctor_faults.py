"""Faults that an admin meets, planted on a real system: each with what `llamad doctor` must say of it.

The cures are not here: the test runs those that the doctor prints.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

ETC, MODELS = Path("/etc/llamad"), Path("/var/lib/llamad/models")
STATE, CACHE, LEDGER = Path("/var/lib/llamad/state"), Path("/var/cache/llamad"), Path("/run/llamad/ledger")
UNITS = Path("/etc/systemd/system")
SCRATCH = Path("/run/llamad-doctor-test")


@dataclass(frozen=True)
class Expected:
    """A finding that must be there: its check, what it is about, and a pattern of what it says."""

    check: str
    about: str
    says: str
    severity: str = "error"

    def __str__(self) -> str:
        return f"{self.check} {self.about}: {self.says}"


def sh(command: str) -> None:
    """Run a command of the planting itself."""
    subprocess.run(["sh", "-ec", command], check=True, capture_output=True, timeout=60)


VULKAN = '[environment]\nGGML_VK_VISIBLE_DEVICES = "0"\n'


def define(name: str, port: int, model: Path, extra: str = "", device: str = VULKAN) -> None:
    """A definition that uses the software Vulkan device, or another."""
    text = f'model = "{model}"\nlisten = "127.0.0.1:{port}"\n{extra}{device}'
    (ETC / f"{name}.toml").write_text(text)


# -- files and users -----------------------------------------------------------------------------------------------


@contextmanager
def files_and_users(ports: Iterator[int]) -> Iterator[list[Expected]]:
    """Modes, owners, groups, and mistakes of writing."""
    tiny, hidden, closed = MODELS / "tiny.gguf", MODELS / "hidden.gguf", Path("/srv/closed")
    shutil.copy(tiny, hidden)
    hidden.chmod(0o600)
    closed.mkdir()
    shutil.copy(tiny, closed / "m.gguf")
    closed.chmod(0o700)
    define("hidden", next(ports), hidden)
    define("parent", next(ports), closed / "m.gguf")
    define("typo", next(ports), tiny, "[placement]\ncontxt = 4096\n")
    define("gone", next(ports), MODELS / "tny.gguf")
    define("tiny", next(ports), tiny)
    define("Upper", next(ports), tiny)
    (STATE / "tiny").mkdir(exist_ok=True)
    ini = Path("/etc/llama.cpp/config.ini")
    sh(f"""
        mkdir -p {ini.parent}; printf '[*]\\nctx-size = 512\\n' >{ini}
        chown root:root {STATE}/tiny; chmod 0777 {STATE}; gpasswd --delete _llamad render
        rm -r /run/llamad/api
    """)
    try:
        yield [
            Expected("definition", "hidden", "hidden.gguf.*cannot be read by the service"),
            Expected("definition", "parent", "cannot be read by the service: the folder /srv/closed is closed"),
            Expected("definition", "typo", r"typo\.toml:4:1: placement\.contxt: unknown key"),
            Expected("definition", "gone", r"gone\.toml:1:1: model: .*tny\.gguf"),
            Expected("definition", "/etc/llamad/Upper.toml", "no name of a definition"),
            Expected("account", "render", "_llamad is not in the group render"),
            Expected("folders", f"{STATE}/tiny", "belongs to user 0"),
            Expected("folders", str(STATE), "another owner or mode"),
            Expected("folders", "/run/llamad/api", "missing"),
            Expected("others", str(ini), "changes llama-server", "warn"),
        ]
    finally:
        shutil.rmtree(closed, ignore_errors=True)
        shutil.rmtree(ini.parent, ignore_errors=True)
        hidden.unlink(missing_ok=True)


# -- units and addresses ---------------------------------------------------------------------------------------------


@contextmanager
def units_and_addresses(ports: Iterator[int]) -> Iterator[list[Expected]]:
    """Who has the port, and what became of units."""
    tiny = MODELS / "tiny.gguf"
    by_process, by_unit = next(ports), next(ports)
    for name, port in (("taken", by_process), ("theirs", by_unit), ("masked", next(ports))):
        define(name, port, tiny)
    on_cpu = "allow_cpu = true\n"  # it is started
    define("failed", next(ports), tiny, "[placement]\ncontxt = 4096\n", on_cpu)
    listen = "import socket, time; s = socket.create_server(('127.0.0.1', %d)); print(flush=True); time.sleep(600)"
    holder = subprocess.Popen([sys.executable, "-c", listen % by_process], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline()
    orphan = _holder(LEDGER / "taken.lock", "wait")
    debians = UNITS / "llama-server.service"
    code = (listen % by_unit).replace("print(flush=True)", "import sdnotify; sdnotify.SystemdNotifier().notify('READY=1')")
    debians.write_text(
        f'[Service]\nType=notify\nExecStart=/usr/bin/python3 -c "{code}"\n[Install]\nWantedBy=multi-user.target\n'
    )
    sh("""
        systemctl daemon-reload
        systemctl enable --now llama-server.service
        systemctl enable llamad@taken llamad@left
        systemctl disable llamad.target
        systemctl mask llamad@masked
        ! systemctl start llamad@failed
        sed -i s/contxt/context/ /etc/llamad/failed.toml
    """)
    try:
        yield [
            Expected("addresses", "taken", rf"127\.0\.0\.1:{by_process} is taken by python\S* \(process {holder.pid}\)"),
            Expected("addresses", "theirs", rf"{by_unit} is taken by python.* of llama-server\.service\)"),
            Expected("others", "llama-server.service", "runs", "warn"),
            Expected("ledger", "taken", rf"process {orphan.pid}.*no llamad serves it"),
            Expected("units", "llamad@masked.service", "masked"),
            Expected("units", "llamad@failed.service", r"failed \(exit-code, status 78\).*contxt"),
            Expected("units", "llamad@left.service", "there is no /etc/llamad/left.toml", "warn"),
            Expected("units", "llamad.target", "not enabled.*taken", "warn"),
        ]
    finally:
        for process in (holder, orphan):
            process.kill()
            process.wait()
        subprocess.run(["systemctl", "disable", "--now", "llama-server.service", "llamad@left"], capture_output=True)
        sh("systemctl unmask llamad@masked; systemctl enable llamad.target; systemctl stop 'llamad@*'")
        debians.unlink()


# -- limits ------------------------------------------------------------------------------------------------------


@contextmanager
def limits(ports: Iterator[int]) -> Iterator[list[Expected]]:
    """A drop-in that somebody meant well."""
    define("tiny", next(ports), MODELS / "tiny.gguf", '[placement]\nload_mode = "mlock"\n')
    folder = UNITS / "llamad@tiny.service.d"
    folder.mkdir()
    (folder / "well-meant.conf").write_text(
        "[Service]\nLimitMEMLOCK=64K\nMemoryMax=16M\nTasksMax=16\nPrivateDevices=yes\n"
    )
    sh("systemctl daemon-reload")
    try:
        yield [
            Expected("limits", "tiny", r"only 64 KiB of memory may be locked.*mlock"),
            Expected("limits", "tiny", r"16\.0 MiB of memory are allowed, and the plan needs \d+"),
            Expected("limits", "tiny", "only 16 threads"),
            Expected("limits", "tiny", "PrivateDevices= hides GPUs"),
        ]
    finally:
        shutil.rmtree(folder)
        sh("systemctl daemon-reload")


# -- the engine ------------------------------------------------------------------------------------------------------

OLD_HELP = "-m, --model FNAME  model\n--host HOST  address\n-c, --ctx-size N  context\n-ngl, --gpu-layers N  layers\n"


@contextmanager
def old_engine(ports: Iterator[int]) -> Iterator[list[Expected]]:
    """A build of long ago that somebody put first."""
    define("tiny", next(ports), MODELS / "tiny.gguf")
    engine, settings = Path("/usr/local/bin/llama-server-old"), ETC / "llamad.toml"
    (SCRATCH / "help.txt").write_text(OLD_HELP)
    engine.write_text(
        f"#!/bin/sh\ncase $1 in\n--help) cat {SCRATCH}/help.txt;;\n--version) echo 'version: 4000 (abc)';;\n"
        "*) exec /usr/bin/llama-server \"$@\";;\nesac\n"
    )
    engine.chmod(0o755)
    saved = settings.read_text()
    settings.write_text(f'[host]\nserver = "{engine}"\n')
    try:
        yield [Expected("engine", "tiny", r"llama-server-old 4000 \(abc\) is old: it lacks --fit, --log-jsonl", "warn")]
    finally:
        settings.write_text(saved)
        engine.unlink()


@contextmanager
def engine_without_gpu(ports: Iterator[int]) -> Iterator[list[Expected]]:
    """llama.cpp as it is installed by default: without a backend for GPUs. `apt-get` finds the package in a folder."""
    define("tiny", next(ports), MODELS / "tiny.gguf")
    package = "libggml0-backend-vulkan"
    repack(package)
    sh(f"dpkg --remove --force-depends {package}")
    try:
        yield [Expected("engine", "tiny", "sees no GPU and allow_cpu is not set.*asks for Vulkan.*only: cpu, rpc")]
    finally:
        subprocess.run(["dpkg", "--install", *SCRATCH.glob("repo/*.deb")], capture_output=True, check=True)


def repack(package: str) -> None:
    """A package of what is installed, in a repository that apt is told of by `APT_CONFIG`."""
    tree, repo = SCRATCH / "package", SCRATCH / "repo"
    (tree / "DEBIAN").mkdir(parents=True)
    repo.mkdir()
    shown = subprocess.run(["dpkg-query", "--status", package], capture_output=True, text=True, check=True).stdout
    control = re.sub(r"^(Status|Conffiles):.*\n( .*\n)*", "", shown, flags=re.M)
    (tree / "DEBIAN/control").write_text(control)
    for name in subprocess.run(["dpkg", "-L", package], capture_output=True, text=True, check=True).stdout.split():
        if os.path.lexists(name) and not os.path.isdir(name):
            target = tree / name.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(name, target, follow_symlinks=False)
    (SCRATCH / "sources.list").write_text(f"deb [trusted=yes] file:{repo} ./\n")
    (SCRATCH / "apt.conf").write_text(
        f'Dir::Etc::sourcelist "{SCRATCH}/sources.list";\nDir::Etc::sourceparts "-";\n'
        f'Dir::State::lists "{SCRATCH}/lists";\nAPT::Get::Assume-Yes "true";\nAPT::Sandbox::User "root";\n'
    )
    sh(f"""
        dpkg-deb -Znone --build {tree} {repo}
        cd {repo}; dpkg-scanpackages --multiversion . >Packages 2>/dev/null
        mkdir -p {SCRATCH}/lists/partial; APT_CONFIG={SCRATCH}/apt.conf apt-get update
    """)


# -- disks, devices, locks ----------------------------------------------------------------------------------------------


@contextmanager
def disks_devices_locks(ports: Iterator[int]) -> Iterator[list[Expected]]:
    """File systems that are full, read-only or dead; nodes of a GPU; what hangs on the ledger."""
    dead = Path("/srv/dead")
    dead.mkdir()
    shutil.copy(MODELS / "tiny.gguf", dead / "m.gguf")  # there again when nothing dead covers it
    define("tiny", next(ports), MODELS / "tiny.gguf")
    define("dead", next(ports), dead / "m.gguf")
    pci = _pci_bus_with_an_amd_gpu()
    udevadm = Path("/usr/local/bin/udevadm")
    udevadm.write_text("#!/bin/sh\nmkdir -p /dev/dri; [ -e /dev/dri/renderD128 ] || mknod /dev/dri/renderD128 c 226 128\n"
                       "chgrp render /dev/dri/renderD128; chmod 0660 /dev/dri/renderD128\n")  # fmt: skip
    udevadm.chmod(0o755)
    sh(f"""
        mount --bind {pci} /sys/bus/pci/devices
        mkdir -p /dev/dri; mknod -m 0600 /dev/dri/renderD129 c 226 129
        mount -t tmpfs -o size=20m,mode=755 tmpfs {CACHE}
        mkdir -p {CACHE}/tiny; chown _llamad: {CACHE}/tiny
        setpriv --reuid _llamad --regid _llamad --clear-groups head -c 18M /dev/zero >{CACHE}/tiny/junk
        chown _llamad: {CACHE}/tiny/junk
        mount -t tmpfs -o ro,size=64m,mode=755 tmpfs {STATE}
    """)
    fuse = _mount_that_never_answers(dead)
    stopped = _holder(LEDGER / ".ledger", "stop")
    try:
        yield [
            Expected("disks", str(CACHE), "the disk is full"),
            Expected("disks", str(STATE), "read-only"),
            Expected("nodes", "/dev/dri/renderD128", "missing"),
            Expected("nodes", "/dev/dri/renderD129", "_llamad may not open it"),
            Expected("definition", "dead", r"/srv/dead/m\.gguf gives no answer within \d+ s.*/srv/dead is fuse"),
            Expected("ledger", "", rf"process {stopped.pid}\) has the ledger's lock"),
        ]
    finally:
        stopped.kill()
        stopped.wait()
        os.close(fuse)
        for point in (dead, CACHE, STATE, Path("/sys/bus/pci/devices")):
            subprocess.run(["umount", "--lazy", str(point)], capture_output=True)
        shutil.rmtree("/dev/dri")
        udevadm.unlink()
        shutil.rmtree(dead)


def _pci_bus_with_an_amd_gpu() -> Path:
    bus = SCRATCH / "pci"
    card = bus / "0000:03:00.0"
    for node in ("renderD128", "renderD129"):
        (card / "drm" / node).mkdir(parents=True)
    (card / "vendor").write_text("0x1002\n")
    (card / "class").write_text("0x030000\n")
    (card / "driver").symlink_to("../../../../bus/pci/drivers/amdgpu")
    return bus


def _mount_that_never_answers(point: Path) -> int:
    """A FUSE mount that nobody serves, as a dead NFS server: whoever looks at it waits for ever."""
    node = Path("/dev/fuse")
    if not node.exists():
        os.mknod(node, 0o600 | 0o020000, os.makedev(10, 229))
    fd = os.open(node, os.O_RDWR)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"server:/export", os.fsencode(point), b"fuse", 0, options) != 0:
        raise OSError(ctypes.get_errno(), "mount")
    return fd


_HOLD = """
import fcntl, os, signal, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(fd, fcntl.LOCK_EX)
os.ftruncate(fd, 0)
os.pwrite(fd, f"phi4 (process {os.getpid()})\\n".encode(), 0)
print(flush=True)
if sys.argv[2] == "stop":
    os.kill(os.getpid(), signal.SIGSTOP)
else:
    signal.pause()
"""


def _holder(path: Path, how: str) -> subprocess.Popen[bytes]:
    user = ["setpriv", "--reuid", "_llamad", "--regid", "_llamad", "--clear-groups", "--"]
    process = subprocess.Popen([*user, sys.executable, "-c", _HOLD, str(path), how], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"\n"
    return process


Plant = Callable[[Iterator[int]], AbstractContextManager[list[Expected]]]
ROUNDS: dict[str, tuple[Plant, ...]] = {
    "files-users-engine": (files_and_users, engine_without_gpu),
    "units-addresses-old-engine": (old_engine, units_and_addresses),
    "disks-devices-locks-limits": (disks_devices_locks, limits),
}
"""What is planted together: the doctor must name all of it at once."""


def free_ports() -> Iterator[int]:
    """Ports of 127.0.0.1 that nobody listens on."""
    while True:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = int(sock.getsockname()[1])
        yield port
