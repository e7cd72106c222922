"""Asks a real llama-server what memory it would take: its first memory breakdown, printed before a byte is loaded.

It shares no code with llamad: what it returns is the truth that plans are compared with.

    python3 -m tests.support.breakdown --root ROOT --models DIR    # prints the table of tests/data/planning
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

_ROW = re.compile(r"\|\s+- (\S+).*\|\s+(?:\d+ = \d+ \+ \()?\s*\d+ =\s+(\d+) \+\s+(\d+) \+\s+(\d+)")
_COMPUTE = re.compile(r"sched_reserve:\s+(\S+) compute buffer size =\s+([\d.]+) MiB")
_CACHE = re.compile(r"llama_kv_cache: size =\s+([\d.]+) MiB")
_BUILD = re.compile(r"build (\d+)")


@dataclass(frozen=True)
class Row:
    """One line of the breakdown, in whole MiB as printed (rounded down)."""

    weights_mib: int
    context_mib: int
    compute_mib: int


@dataclass
class Breakdown:
    """The first breakdown of a llama-server. `*_exact` come from its debug lines, in MiB to two decimals."""

    build: int = 0
    devices: dict[str, Row] = field(default_factory=dict)
    host: Row = Row(0, 0, 0)
    compute_exact_mib: dict[str, float] = field(default_factory=dict)
    context_exact_mib: float = 0.0


def ask(server: Sequence[str], args: Sequence[str], *, timeout_s: float = 30.0) -> Breakdown:
    """Run `server` (a command and what goes before it: chroot, env) with `args`, read its breakdown, kill it.

    Raises RuntimeError with its last lines if it ends, or `timeout_s` pass, without one.
    """
    command = [*server, *args, "--port", "0", "-lv", "5"]
    child = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True, text=True, errors="replace"
    )
    assert child.stderr is not None
    deadline = time.monotonic() + timeout_s
    found = Breakdown()
    tail: list[str] = []
    try:
        for line in child.stderr:
            tail = [*tail[-9:], line]
            if _take(found, line):
                return found
            if time.monotonic() > deadline:
                break
    finally:
        _kill(child)
        child.stderr.close()
    msg = "no memory breakdown from " + " ".join(command) + "\n" + "".join(tail)
    raise RuntimeError(msg)


def _take(found: Breakdown, line: str) -> bool:
    """Note what a line says; True at the last row."""
    if match := _COMPUTE.search(line):
        found.compute_exact_mib[match[1].partition("[")[0]] = float(match[2])
    elif match := _CACHE.search(line):
        found.context_exact_mib = float(match[1])
    elif not found.build and "print_info: build" in line and (match := _BUILD.search(line)):
        found.build = int(match[1])
    elif "memory_breakdown_print" in line and (match := _ROW.search(line)):
        row = Row(int(match[2]), int(match[3]), int(match[4]))
        if match[1] == "Host":
            found.host = row
            return True
        found.devices[match[1]] = row
    return False


def _kill(child: subprocess.Popen[str]) -> None:
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


@contextmanager
def rpc_device(command: Sequence[str], *, port: int) -> Iterator[str]:
    """Run ggml-rpc-server (`command`) on `port` and give its address: a device that takes any size, none of it real."""
    child = subprocess.Popen(
        [*command, "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
        restore_signals=False,  # SIGPIPE stays ignored: a client that is killed in mid-answer must not end it
    )
    try:
        _wait_for(child, port)
        yield f"127.0.0.1:{port}"
    finally:
        _kill(child)
        assert child.stdout is not None
        child.stdout.close()


def _wait_for(child: subprocess.Popen[str], port: int, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while child.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            probe.settimeout(0.2)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)  # nothing tells when it listens: it prints that line before
    msg = f"ggml-rpc-server does not listen on port {port}"
    raise RuntimeError(msg)


_SHAPES = ("phi4", "llama31-8b", "qwen25-32b", "qwen3-8b", "llama32-3b")
_CONTEXTS = (4096, 16384, 65536)
_TYPES = ("f16", "q8_0")


def placement_args(
    *,
    context: int,
    cache: str,
    ubatch: int = 512,
    slots: int = 4,
    unified: bool = True,
    layers: int = 999,
    flash: str = "on",
) -> list[str]:
    """llama-server's placement flags for one case."""
    words = ["-c", context, "-ngl", layers, "-fa", flash, "-b", ubatch, "-ub", ubatch, "-np", slots]
    words += ["-ctk", cache, "-ctv", cache]
    return [str(word) for word in words] + (["-kvu"] if unified else [])


def _cases() -> Iterator[dict[str, object]]:
    for shape, context, cache in product(_SHAPES, _CONTEXTS, _TYPES):
        yield {"shape": shape, "context": context, "cache": cache}
    for shape in _SHAPES:
        yield {"shape": shape, "context": 8192, "cache": "f16", "slots": 1, "unified": False}
        yield {"shape": shape, "context": 8192, "cache": "f16", "slots": 4, "unified": False}
        yield {"shape": shape, "context": 65536, "cache": "q8_0", "ubatch": 256}
        yield {"shape": shape, "context": 131072, "cache": "f16", "ubatch": 2048, "slots": 1}
        yield {"shape": shape, "context": 8192, "cache": "q4_0", "ubatch": 1024}
        yield {"shape": shape, "context": 8192, "cache": "f16", "layers": 20}
        yield {"shape": shape, "context": 8192, "cache": "f16", "flash": "off"}


def measure(root: Path, models: str, *, port: int = 50152) -> Iterator[dict[str, object]]:
    """The table: every case on an RPC device, on Vulkan0 and on the CPU. `models` is a folder as seen inside `root`."""
    enter = ["chroot", str(root)]
    server = [*enter, "env", "GGML_VK_VISIBLE_DEVICES=0", "llama-server"]
    rpc = [*enter, "/usr/libexec/x86_64-linux-gnu/llama/bin/ggml-rpc-server"]
    with rpc_device(rpc, port=port) as address:
        targets = {"RPC": ["--rpc", address, "-dev", "RPC0"], "Vulkan": ["-dev", "Vulkan0"], "CPU": ["-dev", "none"]}
        for case, (backend, extra) in product(_cases(), targets.items()):
            if backend == "CPU" and "layers" in case:
                continue
            if backend == "Vulkan" and not _fits_llvmpipe(case):
                continue
            flags = {key: value for key, value in case.items() if key != "shape"}
            args = ["-m", f"{models}/{case['shape']}.gguf", *placement_args(**flags), *extra]  # type: ignore[arg-type]
            found = ask(server, args)
            yield {"backend": backend, **case, "build": found.build, **_result(found)}


def _fits_llvmpipe(case: Mapping[str, object]) -> bool:
    """llvmpipe holds no tensor above 128 MiB: it aborts on a layer's cache and gives larger activations to the CPU."""
    if int(str(case.get("ubatch", 512))) > 512 or "flash" in case:
        return False
    cells = int(str(case["context"])) * (1 if case["cache"] == "f16" else 0.54)
    return cells * 1280 * 2 < 128 * 2**20


def _result(found: Breakdown) -> dict[str, object]:
    return {
        "device": [vars(row) for row in found.devices.values()],
        "host": vars(found.host),
        "compute_exact_mib": found.compute_exact_mib,
        "context_exact_mib": found.context_exact_mib,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table as JSON, one case a line."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.support.breakdown", description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, required=True, help="a root with llama.cpp, Vulkan and RPC")
    parser.add_argument("--models", required=True, help="folder inside the root with SHAPE.gguf, made by build_hollow")
    words = parser.parse_args(arguments)
    rows = [json.dumps(row) for row in measure(words.root, words.models)]
    print("[\n" + ",\n".join(rows) + "\n]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
