"""Faults of llama-server: it dies, hangs, cannot be killed, eats memory, multiplies, talks without end."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from llamad.supervision.host import oom_kills
from tests.support.provoke import (
    NAME,
    TOOLS,
    TRIGGER,
    UNIT,
    Provoked,
    alive,
    answers,
    engine,
    event_within,
    health_s,
    old_control_group,
    provokes,
    put_into,
    request_at_work,
    resident_kib,
    serve,
    served_within,
)
from tests.system.conftest import Bed, run, wait_for

MEMORY_LIMIT = 24 << 20
SMALL_BATCHES = "batch = 64\nubatch = 64"
"""The bound of a hang is ten times what a batch takes: with small ones it is soon over."""
MOST_TASKS = 150
FLOOD_LINES = 1_000_000
FLOOD_GROWTH_KIB = 8 << 10


def killed_by(bed: Bed, number: signal.Signals) -> Provoked:
    url = serve(bed)
    main, child = bed.main_pid(NAME), bed.child_pid(NAME)
    since_s = time.monotonic()
    os.kill(child, number)
    served_s = served_within(url, since_s, 6.0)
    died = event_within(bed, "child-exited", since_s, 1.0)
    assert bed.main_pid(NAME) == main and bed.child_pid(NAME) not in (0, child)
    return Provoked(died["after_s"], served_s, died["LLAMAD_DEATH"])


@provokes("child-dies", "SIGKILL to llama-server")
def child_killed(bed: Bed) -> Provoked:
    return killed_by(bed, signal.SIGKILL)


@provokes("child-dies", "SIGSEGV to llama-server")
def child_crashed(bed: Bed) -> Provoked:
    return killed_by(bed, signal.SIGSEGV)


@provokes("child-hangs", "SIGSTOP to llama-server in the middle of an answer", long=True)
def child_stopped(bed: Bed) -> Provoked:
    url = serve(bed, "hang_s = 2", placement=SMALL_BATCHES)
    with request_at_work(url):
        since_s = time.monotonic()
        os.kill(bed.child_pid(NAME), signal.SIGSTOP)
        died = event_within(bed, "child-exited", since_s, 120.0)
        served_s = served_within(url, since_s, 150.0)
    assert died["LLAMAD_DEATH"] == "hang"
    bound_s = float(bed.events(NAME, "no-progress")[0]["MESSAGE"].partition("bound ")[2].partition(" s")[0])
    assert died["after_s"] <= 3 * bound_s
    return Provoked(died["after_s"], served_s, f"bound {bound_s:g} s")


@provokes("child-ignores-term", "stop of a llama-server that takes no SIGTERM (stopped)")
def term_ignored(bed: Bed) -> Provoked:
    serve(bed, "stop_s = 1")
    child = bed.child_pid(NAME)
    os.kill(child, signal.SIGSTOP)
    since_s = time.monotonic()
    bed.ctl("stop", UNIT)
    took_s = time.monotonic() - since_s
    assert not alive(child) and bed.show(UNIT, "Result") == "success"
    assert took_s <= 2.0 + 2 * 1.0 + 1.0, took_s  # its slots are asked for 2 s, then two TERMs of stop_s
    return Provoked(None, None, f"stopped within {took_s:.1f} s")


@provokes("child-unkillable", "llama-server frozen in the kernel: state D, SIGKILL waits", long=True)
def child_unkillable(bed: Bed) -> Provoked:
    url = serve(bed, "hang_s = 1", placement=SMALL_BATCHES)
    main, child = bed.main_pid(NAME), bed.child_pid(NAME)
    with old_control_group("freezer") as group, request_at_work(url):
        put_into(group, child)
        since_s = time.monotonic()
        (group / "freezer.state").write_text("FROZEN")
        try:
            told = event_within(bed, "unkillable", since_s, 120.0)
            assert told["PRIORITY"] == "3" and "SIGKILL" in run("journalctl", "-x", "-b", "LLAMAD_EVENT=unkillable").stdout
            assert Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "D"
            assert health_s(url) < 1.0, "the unit still answers"
            assert "cannot be killed" in bed.show(UNIT, "StatusText")
            bed.ctl("reload", UNIT, timeout=20)  # no end of it would hold up who asked
            assert bed.events(NAME, "reload-refused") and bed.main_pid(NAME) == main
            children = run("pgrep", "-P", str(main)).stdout.split()
            assert children == [str(child)], "a second llama-server"
        finally:
            thawed_s = time.monotonic()
            (group / "freezer.state").write_text("THAWED")
        served_s = served_within(url, thawed_s, 10.0)
    assert bed.child_pid(NAME) not in (0, child) and bed.main_pid(NAME) == main
    return Provoked(told["after_s"], served_s, "served: after it could die")


@provokes("host-oom", "the kernel's out-of-memory killer, by a limit on the group's memory")
def host_out_of_memory(bed: Bed) -> Provoked:
    # The unit's own MemoryMax= where control groups of today have the controller, else a group of the first kind.
    if "memory" in Path("/sys/fs/cgroup/cgroup.controllers").read_text().split():
        return _out_of_memory(bed, None)
    with old_control_group("memory", Path("/sys/fs/cgroup/memory")) as group:
        return _out_of_memory(bed, group)


def _out_of_memory(bed: Bed, group: Path | None) -> Provoked:
    url = serve(bed)
    main, child = bed.main_pid(NAME), bed.child_pid(NAME)
    if group is None:
        limit = resident_kib(main) * 1024 + MEMORY_LIMIT
        bed.ctl("set-property", "--runtime", UNIT, f"MemoryMax={limit}", "MemorySwapMax=0")
    else:
        (group / "memory.limit_in_bytes").write_text(str(MEMORY_LIMIT))
        put_into(group, main)
    since_s = time.monotonic()
    os.kill(child, signal.SIGKILL)
    try:
        died = wait_for(lambda: [r for r in bed.events(NAME, "child-exited") if "host" in r["LLAMAD_DEATH"]], "it", 20)
        assert died[0]["LLAMAD_DEATH"] == "host-out-of-memory"
        after_s = int(died[0]["__MONOTONIC_TIMESTAMP"]) / 1e6 - since_s
    finally:
        freed_s = time.monotonic()
        if group is None:
            bed.ctl("set-property", "--runtime", UNIT, "MemoryMax=infinity")
        else:
            (group / "memory.limit_in_bytes").write_text("-1")
    served_s = served_within(url, freed_s, 20.0)
    assert bed.main_pid(NAME) == main, "llamad lives"
    return Provoked(after_s, served_s, f"{oom_kills()} kills" if group is None else "served: after the limit was lifted")


@provokes("fork-bomb", "a fork bomb beside llama-server, up to the limit on tasks")
def fork_bomb(bed: Bed) -> Provoked:
    with old_control_group("pids") as group, engine("(sleep 2; while :; do sleep 600 & done) &"):
        url = serve(bed)
        main = bed.main_pid(NAME)
        (group / "pids.max").write_text(str(MOST_TASKS))
        put_into(group, main)
        TRIGGER.touch()
        os.kill(bed.child_pid(NAME), signal.SIGKILL)
        wait_for(lambda: int((group / "pids.current").read_text()) >= MOST_TASKS - 1, "the bomb", 30)
        slowest_s = max(health_s(url) for _ in range(10))
        assert slowest_s < 1.0, "llamad answers"
        TRIGGER.unlink()
        since_s = time.monotonic()
        os.kill(bed.child_pid(NAME), signal.SIGKILL)
        wait_for(lambda: int((group / "pids.current").read_text()) < 60, "the group is killed", 10)
        swept_s = time.monotonic() - since_s
        served_s = served_within(url, since_s, 15.0)
        assert bed.main_pid(NAME) == main
        return Provoked(swept_s, served_s, f"{MOST_TASKS} tasks; health within {slowest_s:.2f} s")


FLOOD = (
    f"(sleep 1; seq 1 {FLOOD_LINES} | sed 's/^/0.00.200.000 W flood: line of a child that talks: /';"
    " head -c 200000 /dev/zero | tr '\\0' x; echo; head -c 65536 /dev/urandom; echo; printf 'no end') >&2 &"
)


@provokes("log-flood", "1,000,000 warnings, a line of 200 kB, binary, a line without end", long=True)
def log_flood(bed: Bed) -> Provoked:
    with engine(FLOOD):
        url = serve(bed)
        main = bed.main_pid(NAME)
        answers(url)
        before_kib = resident_kib(main)
        TRIGGER.touch()
        os.kill(bed.child_pid(NAME), signal.SIGKILL)
        wait_for(lambda: bed.child_pid(NAME) and len(bed.events(NAME, "ready")) == 2, "served again", 20)
        seen = _watched(main, url, lambda: run("pgrep", "-f", str(TOOLS), check=False).stdout != "")
        largest_kib, slowest_s = max(row[0] for row in seen), max(row[1] for row in seen)
        assert largest_kib - before_kib <= FLOOD_GROWTH_KIB, f"{largest_kib - before_kib} KiB grown"
        assert slowest_s < 1.0, f"stood still for {slowest_s:.1f} s"
        since_s = time.monotonic()
        TRIGGER.unlink()
        os.kill(bed.child_pid(NAME), signal.SIGKILL)
        died = event_within(bed, "child-exited", since_s, 5.0)
        served_s = served_within(url, since_s, 10.0)
        assert bed.events(NAME, "lines-suppressed")
        grown = f"{largest_kib - before_kib} KiB more; health within {slowest_s:.2f} s; {len(seen)} looks"
        return Provoked(died["after_s"], served_s, grown)


def _watched(main: int, url: str, goes_on: object) -> list[tuple[int, float]]:
    """Memory and answering time while it lasts, at most two minutes."""
    assert callable(goes_on)
    seen = []
    end_s = time.monotonic() + 120
    time.sleep(1.0)
    while goes_on() and time.monotonic() < end_s:
        seen.append((resident_kib(main), health_s(url)))
        time.sleep(0.05)
    assert time.monotonic() < end_s, "the flood is not read"
    seen.append((resident_kib(main), health_s(url)))
    return seen


@provokes("cpu-fallback", "the engine has no device, and the definition does not allow the CPU")
def no_device(bed: Bed) -> Provoked:
    bed.define(NAME)  # for its address
    bed.define(NAME, vulkan=False)
    since_s = time.monotonic()
    assert bed.ctl("start", UNIT, check=False).returncode != 0
    told = event_within(bed, "no-device", since_s, 10.0)
    wait_for(lambda: bed.show(UNIT, "ExecMainStatus") == "69", "exit status 69", 10)
    assert not bed.events(NAME, "ready")
    bed.define(NAME)
    there_s = time.monotonic()
    wait_for(lambda: bed.show(UNIT, "ActiveState") == "active", "ready by itself", 60)
    return Provoked(told["after_s"], time.monotonic() - there_s, "served: after the device was there")


@provokes("late-device", "the device is there three seconds after the boot", long=True)
def late_device(bed: Bed) -> Provoked:
    hidden = 'test -e /run/llamad-faults/device || export GGML_VK_VISIBLE_DEVICES=""'
    with engine(":"):
        script = Path("/run/llamad-faults/llama-server")
        script.write_text(f'#!/bin/sh\n{hidden}\nexec /usr/bin/llama-server "$@"\n')
        bed.define(NAME)
        since_s = time.monotonic()
        bed.ctl("start", "--no-block", UNIT)
        told = event_within(bed, "no-device", since_s, 20.0)
        wait_for(lambda: int(bed.show(UNIT, "NRestarts")) >= 2, "tried again", 30)
        assert not bed.events(NAME, "ready")
        wait_for(lambda: "device" in bed.show(UNIT, "StatusText"), "the status says what is missing", 30)
        time.sleep(max(0.0, since_s + 3.0 - time.monotonic()))
        Path("/run/llamad-faults/device").touch()
        there_s = time.monotonic()
        wait_for(lambda: bed.show(UNIT, "ActiveState") == "active", "ready after the device appeared", 60)
        assert "Vulkan0" in bed.show(UNIT, "StatusText")
        return Provoked(told["after_s"], time.monotonic() - there_s, "served: after the device was there")


