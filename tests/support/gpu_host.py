"""A host with NVIDIA GPUs that are not there: an NVML library that shows them, and a driver that gives bytes out.

`GpuHost` is the driver: fake llama-servers (`fake_gpu_server.py`) ask it for bytes over a socket, and lose them when
they end, however that comes; as of a real driver they are shown as free a while later. It refuses what is not there.
Models are served by `serve_one.py`, with llamad's own planner, ledger and supervisor.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
GIB = 1 << 30
TOTAL = 24 * GIB
RESERVED = GIB // 2
RETURN_S = 0.15
"""How long after the end of a process its bytes are shown as free."""

SERVER = """#!/bin/sh
case $1 in
--help) cat {data}/help_11669.txt;;
--version) cat {data}/version_11669.txt >&2;;
--list-devices) cat {folder}/devices;;
*) exec {python} {root}/tests/support/fake_gpu_server.py "$@";;
esac
"""


@dataclass
class Gpu:
    """One card."""

    uuid: str
    bus: str
    free: int = TOTAL - RESERVED
    held: dict[str, int] = field(default_factory=dict)
    """Bytes by the name of the model whose processes have them."""
    returning: dict[str, int] = field(default_factory=dict)
    """Bytes by the name of the model whose processes had them, which the driver does not show as free yet."""


class GpuHost:
    """The driver, the NVML library and the program `llama-server` in one folder."""

    def __init__(self, folder: Path, gpus: int = 2) -> None:
        self.folder = folder
        self.gpus = {f"GPU-{n}": Gpu(f"GPU-{n}", f"{0x10 + n:02x}") for n in range(gpus)}
        self.lock = threading.Lock()
        self.refused: list[str] = []
        self.trouble: list[str] = []
        self._processes: dict[tuple[int, str], int] = {}
        self._taken: dict[int, list[tuple[str, str, int]]] = {}
        """What each process has: model, GPU, bytes."""
        self._ends = threading.Event()
        folder.mkdir(exist_ok=True)
        folder.chmod(0o777)
        self._make_programs()
        self._write()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(folder / "driver.sock"))
        (folder / "driver.sock").chmod(0o777)
        self._socket.listen(64)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _make_programs(self) -> None:
        source = ROOT / "tests" / "support" / "nvml_shim.c"
        library = self.folder / "libnvidia-ml.so.1"
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)
        rows = [f"  CUDA{n}: NVIDIA Test ({TOTAL - RESERVED >> 20} MiB, {TOTAL - RESERVED >> 20} MiB free)" for n in range(len(self.gpus))]
        (self.folder / "devices").write_text("Available devices:\n" + "\n".join(rows) + "\n")
        text = SERVER.format(
            data=ROOT / "tests" / "data" / "engine", folder=self.folder, python=sys.executable, root=ROOT
        )
        self.server = self.folder / "llama-server"
        self.server.write_text(text)
        self.server.chmod(0o755)

    @property
    def env(self) -> dict[str, str]:
        """For a llamad that sees these GPUs."""
        state = str(self.folder / "state")
        return {**os.environ, "LD_LIBRARY_PATH": str(self.folder), "NVML_SHIM_STATE": state, "PYTHONPATH": str(ROOT)}

    def take_foreign(self, uuid: str, size: int) -> None:
        """Bytes that a program takes which is none of ours."""
        with self.lock:
            self.gpus[uuid].free -= size
            self._write()

    def grow(self, name: str, uuid: str, size: int) -> None:
        """A model's llama-server takes more than it did when it loaded."""
        with self.lock:
            taken = next(taken for taken in self._taken.values() if any(row[:2] == (name, uuid) for row in taken))
            pid = next(pid for pid, rows in self._taken.items() if rows is taken)
            assert self._give(pid, name, uuid, size, taken)

    def have(self, *trouble: str) -> None:
        """Lines of the NVML library's state (`nvml_shim.c`) that hold from now on, in place of earlier ones."""
        with self.lock:
            self.trouble = list(trouble)
            self._write()

    def installed(self, running: str, libraries: str) -> None:
        """The versions of the loaded module and of the libraries on disk."""
        folder = self.folder / "lib" / "x86_64-linux-gnu"
        folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "module").write_text(running + "\n")
        file, link = folder / f"libnvidia-ml.so.{libraries}", folder / "libnvidia-ml.so.1"
        file.touch()
        link.unlink(missing_ok=True)
        link.symlink_to(file)

    def _write(self) -> None:
        rows = ["driver 550.54"]
        rows += [f"gpu {g.uuid} 0:{g.bus} {TOTAL} {RESERVED} {g.free} 0 0 NVIDIA Test" for g in self.gpus.values()]
        index = {uuid: number for number, uuid in enumerate(self.gpus)}
        rows += [f"process {index[uuid]} {pid} {size}" for (pid, uuid), size in self._processes.items()]
        rows += self.trouble
        scratch = self.folder / "state.new"
        scratch.write_text("\n".join(rows) + "\n")
        scratch.replace(self.folder / "state")

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._client, args=(connection,), daemon=True).start()

    def _client(self, connection: socket.socket) -> None:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid = int.from_bytes(credentials[:4], "little")
        taken = self._taken[pid] = []
        gone = (ConnectionResetError, BrokenPipeError)  # a process that is killed says no farewell
        with contextlib.suppress(*gone), connection, connection.makefile("rw") as file:
            for line in file:
                name, uuid, size = line.split()
                file.write("ok\n" if self._take(pid, name, uuid, int(size), taken) else "no\n")
                file.flush()
        with self.lock:
            self._taken.pop(pid, None)
            for uuid in self.gpus:
                self._processes.pop((pid, uuid), None)
            for name, uuid, size in taken:
                gpu = self.gpus[uuid]
                gpu.held[name] -= size
                gpu.returning[name] = gpu.returning.get(name, 0) + size
            self._write()
        time.sleep(RETURN_S)
        with self.lock:
            for name, uuid, size in taken:
                self.gpus[uuid].returning[name] -= size
                self.gpus[uuid].free += size
            self._write()

    def _take(self, pid: int, name: str, uuid: str, size: int, taken: list[tuple[str, str, int]]) -> bool:
        with self.lock:
            return self._give(pid, name, uuid, size, taken)

    def _give(self, pid: int, name: str, uuid: str, size: int, taken: list[tuple[str, str, int]]) -> bool:
        gpu = self.gpus[uuid]
        if gpu.free < size:
            self.refused.append(f"{name}: {size} of {gpu.free} on {uuid}")
            return False
        gpu.free -= size
        gpu.held[name] = gpu.held.get(name, 0) + size
        taken.append((name, uuid, size))
        self._processes[pid, uuid] = sum(row[2] for row in taken if row[1] == uuid)
        self._write()
        return True

    def close(self) -> None:
        """No more clients."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class Served:
    """One `serve_one.py`: what it reported so far, and its end."""

    def __init__(self, host: GpuHost, ledger: Path, name: str, model: Path, **keys: Any) -> None:
        self.name = name
        self.states: list[tuple[str, str]] = []
        self.events: list[str] = []
        self.messages: list[str] = []
        self.on_change: Callable[[], None] = lambda: None
        words = {"name": name, "model": str(model), "server": str(host.server), "ledger": str(ledger), **keys}
        folder = host.folder / name
        folder.mkdir(exist_ok=True)
        folder.chmod(0o777)
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests/support/serve_one.py"), str(folder), json.dumps(words)],
            env=host.env, text=True, stdout=subprocess.PIPE, cwd=ROOT,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def state(self) -> str:
        """The state that it reported last."""
        return self.states[-1][0] if self.states else "starting"

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            kind, *words = json.loads(line)
            if kind == "state":
                self.states.append((words[0], words[1]))
            else:
                self.events.append(words[0])
                self.messages.append(words[1])
            self.on_change()

    def end(self, number: int) -> int:
        """Signal it, wait, and give its exit code."""
        self.process.send_signal(number)
        return self.process.wait(30)


def available() -> bool:
    """Whether this machine can have such a host."""
    import importlib.util

    return shutil.which("gcc") is not None and importlib.util.find_spec("pynvml") is not None
