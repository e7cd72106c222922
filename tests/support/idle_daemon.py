"""A real `llamad serve` with a llama-server that does nothing, to be looked at from outside.

The engine is a stand-in, so that any machine can do it; the daemon is all there: its loop, its threads, its address,
its ledger, a service manager's watchdog. As root it runs as `nobody`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.models import build_tiny

ROOT = Path(__file__).parents[2]
NOBODY = 65534
# Root's own Python may lie where nobody can look.
_READ_ALL = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *_READ_ALL, "--")
STABLE_S = 10
WATCHDOG_USEC = 30_000_000

ENGINE = """#!/bin/sh
case " $* " in
*" --help "*) exec cat {data}/help_11669.txt;;
*" --version "*) exec cat {data}/version_11669.txt >&2;;
*" --list-devices "*) echo "Available devices:"; exit 0;;
*" --fit on "*) exit 1;;
esac
export FAKE_LLAMA='{lines}'
exec {python} {root}/tests/support/fake_llama_server.py "$@"
"""

LINES = [
    "0.00.100.000 I load_tensors:   CPU_Mapped model buffer size =     4.79 MiB",
    "0.00.100.000 I llama_kv_cache:        CPU KV buffer size =    16.00 MiB",
]
"""As much as is planned for this model."""


@dataclass(frozen=True)
class Look:
    """What the kernel says of a process at a moment."""

    at_s: float
    cpu_s: float
    """Processor time of its threads, by the scheduler's own account: a tick of utime is 10 ms, which is too coarse."""
    wake_ups: int
    """Voluntary context switches of all threads: each ends a sleep."""
    pss_kib: int
    threads: int
    fds: int


class Daemon:
    """One that serves."""

    def __init__(self, process: subprocess.Popen[bytes], ear: socket.socket) -> None:
        self.process = process
        self._ear = ear

    def until_ready(self, limit_s: float = 60.0) -> None:
        """Return when it has said READY=1 (once more). Reads all that it tells its service manager."""
        self._ear.settimeout(limit_s)
        while b"READY=1" not in self._ear.recv(1 << 16):
            assert self.process.poll() is None, "llamad ended"

    def drain(self) -> None:
        """Read what it has told meanwhile."""
        self._ear.settimeout(0)
        try:
            while True:
                self._ear.recv(1 << 16)
        except BlockingIOError:
            return

    @property
    def child(self) -> int:
        """Process id of its llama-server; 0 where there is none."""
        pid = self.process.pid
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(found[0]) if found else 0

    def look(self) -> Look:
        proc = Path(f"/proc/{self.process.pid}")
        cpu_ns = sum(int((task / "schedstat").read_text().split()[0]) for task in (proc / "task").iterdir())
        tasks = [(task / "status").read_text() for task in (proc / "task").iterdir()]
        wake_ups = sum(int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0]) for text in tasks)
        pss = (proc / "smaps_rollup").read_text().partition("\nPss:")[2].split()[0]
        return Look(time.monotonic(), cpu_ns / 1e9, wake_ups, int(pss), len(tasks), len(list((proc / "fd").iterdir())))

    def next_exec_s(self) -> float:
        """Kill its llama-server; seconds until the next one is a process."""
        former, began_s = self.child, time.monotonic()
        os.kill(former, signal.SIGKILL)
        while self.child in (0, former):
            time.sleep(0.0005)
        return time.monotonic() - began_s


@contextmanager
def idle_daemon(folder: Path) -> Iterator[Daemon]:
    """A daemon that is ready, in this folder, which is emptied of nothing else. It is stopped at the end."""
    folder.chmod(0o711)
    home = folder / "home"
    (home / "etc").mkdir(parents=True)
    server, model = home / "llama-server", home / "tiny.gguf"
    data = ROOT / "tests/data/engine"
    build_tiny(model)
    lines = json.dumps({"lines": LINES})
    server.write_text(ENGINE.format(data=data, python=sys.executable, root=ROOT, lines=lines))
    server.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (home / "etc/llamad.toml").write_text(f'[host]\nserver = "{server}"\n')
    text = f'model = "{model}"\nlisten = "127.0.0.1:{port}"\n[placement]\nallow_cpu = true\n[limits]\nstable_s = {STABLE_S}\n'
    (home / "etc/idle.toml").write_text(text)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(home / "notify"))
        if os.geteuid() == 0:
            for path in (home, *home.rglob("*")):
                os.chown(path, NOBODY, NOBODY)
        process = _start(home)
        try:
            daemon = Daemon(process, ear)
            daemon.until_ready()
            yield daemon
        finally:
            process.terminate()
            process.wait(30)


def unprivileged_llamad(home: Path) -> tuple[list[str], dict[str, str]]:
    """How this checkout's llamad is started (where it has none, the one that is installed), as `nobody` where we are
    root, and its environment: a home of its own with the definitions in `etc`.
    """
    own = ROOT / "llamad"
    words = [sys.executable, "-m", "llamad"] if own.is_dir() else [shutil.which("llamad") or "llamad"]
    env = {
        "PATH": os.environ["PATH"], "HOME": str(home), "XDG_RUNTIME_DIR": str(home), "LLAMAD_CONFIG": str(home / "etc"),
        "PYTHONDONTWRITEBYTECODE": "1", **({"PYTHONPATH": str(ROOT)} if own.is_dir() else {}),
    }  # fmt: skip
    return [*(AS_NOBODY if os.geteuid() == 0 else ()), *words], env


def _start(home: Path) -> subprocess.Popen[bytes]:
    words, env = unprivileged_llamad(home)
    env |= {"NOTIFY_SOCKET": str(home / "notify"), "WATCHDOG_USEC": str(WATCHDOG_USEC)}
    with (home / "log").open("wb") as log:
        return subprocess.Popen([*words, "serve", "idle"], env=env, stdout=log, stderr=log, cwd="/")
