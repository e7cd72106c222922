"""Faults provoked on real units in a booted machine: how each is done, what must hold, and how long it took.

`bench/faults` prints them as a table, `tests/system/test_faults.py` runs them one by one. The faults themselves are
in `provoke_engine.py` (llama-server) and `provoke_host.py` (llamad itself, and what is around it).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.system.conftest import ETC, Bed, get, post, run, wait_for

NAME = "fault"
UNIT = f"llamad@{NAME}"
CPU = "[placement]\nallow_cpu = true\n"
TOOLS = Path("/run/llamad-faults")
"""What the faults need beside the unit; readable in its sandbox."""
TRIGGER = TOOLS / "trigger"
STARTED_S = 60.0


@dataclass(frozen=True)
class Provoked:
    """A fault that was provoked, and all held. Seconds; None where the word has no meaning for it."""

    detected_s: float | None = None
    served_s: float | None = None
    note: str = ""


Provoke = Callable[[Bed], Provoked]


@dataclass(frozen=True)
class Provocation:
    """`row` is the name of its row in `faults.py`."""

    row: str
    how: str
    run: Provoke
    long: bool
    """Takes more than a quarter of a minute."""


PROVOCATIONS: dict[str, Provocation] = {}


def provokes(row: str, how: str, *, long: bool = False) -> Callable[[Provoke], Provoke]:
    """Register a function under its name. It raises AssertionError where something does not hold."""

    def register(function: Provoke) -> Provoke:
        PROVOCATIONS[function.__name__.replace("_", "-")] = Provocation(row, how, function, long)
        return function

    return register


# -- the unit ------------------------------------------------------------------------------------------------


def serve(bed: Bed, limits: str = "", *, vulkan: bool = False, head: str = "", placement: str = "") -> str:
    """Define the model and start its unit; the base URL."""
    define(bed, limits, vulkan=vulkan, head=head, placement=placement)
    bed.ctl("start", UNIT)
    return url_of(bed)


def define(bed: Bed, limits: str = "", *, vulkan: bool = False, head: str = "", placement: str = "") -> None:
    """Write its definition."""
    bed.define(NAME, extra=f"{CPU}{placement}\n[limits]\n{limits}\n", vulkan=vulkan, head=head)


def url_of(bed: Bed) -> str:
    return f"http://127.0.0.1:{bed.ports[NAME]}"


def answers(url: str, tokens: int = 1, timeout: float = 60) -> bool:
    """Whether a token is generated now (a request that is held counts when it is answered)."""
    try:
        return post(f"{url}/completion", {"prompt": [10, 11], "n_predict": tokens}, timeout)[0] == 200
    except OSError:
        return False


def served_within(url: str, since_s: float, limit_s: float) -> float:
    """Seconds from `since_s` until a token is generated. Fails past the limit."""
    wait_for(lambda: answers(url, timeout=limit_s), "served again", limit_s)
    took_s = time.monotonic() - since_s
    assert took_s <= limit_s, f"served again only after {took_s:.1f} s"
    return took_s


def event_within(bed: Bed, event: str, since_s: float, limit_s: float) -> dict[str, Any]:
    """The first record of this event after a moment (time.monotonic), with `after_s`, by the journal's own stamp."""

    def find() -> dict[str, Any] | None:
        for record in bed.events(NAME, event):
            after_s = int(record["__MONOTONIC_TIMESTAMP"]) / 1e6 - since_s
            if after_s >= -0.001:
                return {**record, "after_s": max(0.0, after_s)}
        return None

    record: dict[str, Any] = wait_for(find, f"event {event}", limit_s, 0.05)
    assert record["after_s"] <= limit_s
    return record


def alive(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def resident_kib(pid: int) -> int:
    rows = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith("VmRSS"))


def health_s(url: str) -> float:
    """How long llamad takes to answer /health, whatever it says."""
    began_s = time.monotonic()
    get(f"{url}/health", timeout=10)
    return time.monotonic() - began_s


@contextlib.contextmanager
def request_at_work(url: str) -> Iterator[None]:
    """A long answer is being generated; what becomes of it does not matter."""
    body = {"prompt": [10, 11], "n_predict": 7000, "ignore_eos": True, "stream": True}
    with contextlib.closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)) as client:
        client.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
        with client.getresponse() as answer:
            assert answer.readline().startswith(b"data:")
            yield


# -- the machine around it -----------------------------------------------------------------------------------


@contextlib.contextmanager
def tools() -> Iterator[Path]:
    """An empty folder for what the faults need."""
    shutil.rmtree(TOOLS, ignore_errors=True)
    TOOLS.mkdir(mode=0o755)
    try:
        yield TOOLS
    finally:
        shutil.rmtree(TOOLS)


@contextlib.contextmanager
def engine(beside: str) -> Iterator[None]:
    """The real llama-server, with something in its process group while the trigger is there."""
    settings = ETC / "llamad.toml"
    saved = settings.read_text()
    with tools() as folder:
        script = folder / "llama-server"
        text = f'#!/bin/sh\ncase " $* " in *" --fit off "*) test ! -e {TRIGGER} || {{ {beside} }};; esac\n'
        script.write_text(text + 'exec /usr/bin/llama-server "$@"\n')
        script.chmod(0o755)
        settings.write_text(f'[host]\nserver = "{script}"\n')
        try:
            yield
        finally:
            run("systemctl", "kill", "-s", "KILL", UNIT, check=False)
            run("systemctl", "stop", UNIT, check=False)
            settings.write_text(saved)


@contextlib.contextmanager
def drop_in(text: str) -> Iterator[None]:
    """Settings of this unit alone."""
    file = Path(f"/run/systemd/system/{UNIT}.service.d/fault.conf")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"[Service]\n{text}\n")
    run("systemctl", "daemon-reload")
    try:
        yield
    finally:
        run("systemctl", "stop", UNIT, check=False)
        shutil.rmtree(file.parent)
        run("systemctl", "daemon-reload")


@contextlib.contextmanager
def old_control_group(controller: str, at: Path | None = None) -> Iterator[Path]:
    """A control group of the first kind: for what those of today do not do, or where this machine has no others."""
    top = at or Path("/run/llamad-fault-groups")
    top.mkdir(exist_ok=True)
    run("mount", "-t", "cgroup", "-o", controller, "none", str(top))
    group = top / f"llamad-fault-{os.getpid()}"
    group.mkdir()
    try:
        yield group
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):  # it may end meanwhile
                (top / "cgroup.procs").write_text(pid)
        wait_for(lambda: not (group / "cgroup.procs").read_text().strip(), "the group is empty", 20)
        group.rmdir()
        run("umount", str(top))
        top.rmdir()


def put_into(group: Path, *pids: int) -> None:
    for pid in pids:
        (group / "cgroup.procs").write_text(str(pid))


def start_quietly(*argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
