"""Faults of llamad itself and of what is around it: disk, descriptors, clock, signals, journal, address, package."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support.provoke import (
    NAME,
    UNIT,
    Provoked,
    alive,
    define,
    drop_in,
    event_within,
    health_s,
    provokes,
    serve,
    served_within,
    start_quietly,
    tools,
    url_of,
)
from tests.system.conftest import ETC, Bed, get, run, wait_for

STATE = Path("/var/lib/llamad/state") / NAME
SOURCES = Path(__file__).parents[2]
HANG_UPS = 10_000
DAY_S = 86_400
WATCHDOG_S = 3
QUIET_S = 5.0
JOURNALD = ("systemd-journald.socket", "systemd-journald-dev-log.socket", "systemd-journald.service")


@contextlib.contextmanager
def small_state(options: str) -> Iterator[None]:
    """The model's state on a file system of 64 KiB, full, with what it had before."""
    before = {file.name: file.read_bytes() for file in STATE.iterdir() if file.is_file()}
    owner = STATE.stat()
    run("mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "none", str(STATE))
    try:
        for name, data in before.items():
            (STATE / name).write_bytes(data)
            os.chown(STATE / name, owner.st_uid, owner.st_gid)
        os.chown(STATE, owner.st_uid, owner.st_gid)
        with contextlib.suppress(OSError), (STATE / "FULL").open("wb", buffering=0) as file:
            while file.write(b"x" * 4096):
                pass
        run("mount", "-o", f"remount,{options}", str(STATE))
        yield
        kept = {file.name: file.read_bytes() for file in STATE.iterdir() if file.name != "FULL"}
        assert kept == before, "what was there is intact, and nothing is left beside it"
    finally:
        run("systemctl", "stop", UNIT, check=False)
        run("umount", str(STATE))


def without_room(bed: Bed, options: str) -> Provoked:
    serve(bed)
    wait_for(lambda: (STATE / "learned.toml").exists(), "something was learned", 20)
    bed.ctl("stop", UNIT)
    with small_state(options):
        url = serve(bed, placement="context = 1024")  # another plan: there is something to write
        since_s = time.monotonic()
        os.kill(bed.child_pid(NAME), signal.SIGKILL)
        served_s = served_within(url, since_s, 8.0)
        warned = [r for r in bed.events(NAME) if r["LLAMAD_EVENT"] in ("learned-lost", "ledger-problem")]
        assert len(warned) == 1, [r["MESSAGE"] for r in warned]
        return Provoked(None, served_s, warned[0]["LLAMAD_EVENT"])


@provokes("disk-full", "state on a full file system of 64 KiB, then SIGKILL to llama-server")
def disk_full(bed: Bed) -> Provoked:
    return without_room(bed, "rw")


@provokes("disk-full", "state on a read-only file system, then SIGKILL to llama-server")
def disk_read_only(bed: Bed) -> Provoked:
    return without_room(bed, "ro")


WATCH = "anon_inode:inotify"  # the last descriptor that a daemon opens, after it is ready
UPSTREAM_IDLE_S = 4.0  # an idle connection to llama-server is closed then


@provokes("no-descriptors", "no file descriptor is left when llama-server is killed")
def no_descriptors(bed: Bed) -> Provoked:
    url = serve(bed)
    main = bed.main_pid(NAME)
    wait_for(lambda: WATCH in descriptors(main).values(), "the definition is watched")
    before = descriptors(main)
    soft, hard = resource.prlimit(main, resource.RLIMIT_NOFILE)
    since_s = time.monotonic()
    resource.prlimit(main, resource.RLIMIT_NOFILE, (max(map(int, before)) + 1, hard))
    try:
        os.kill(bed.child_pid(NAME), signal.SIGKILL)
        failed = [r for r in wait_for(lambda: restarted(bed, 2), "tried again and again", 20) if "start" in r["MESSAGE"]]
        assert any("Too many open files" in r["LLAMAD_CAUSE"] for r in failed), [r["MESSAGE"] for r in failed]
    finally:
        freed_s = time.monotonic()
        resource.prlimit(main, resource.RLIMIT_NOFILE, (soft, hard))
    died = event_within(bed, "child-exited", since_s, 1.0)
    served_s = served_within(url, freed_s, 15.0)
    assert bed.main_pid(NAME) == main
    wait_for(lambda: len(descriptors(main)) <= len(before), f"no descriptor lost of {before}", 3 * UPSTREAM_IDLE_S)
    return Provoked(died["after_s"], served_s, "served: after there were some again")


def descriptors(pid: int) -> dict[str, str]:
    """What each file descriptor of a process is, clients' connections left out."""
    found = {}
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found[fd] = os.readlink(f"/proc/{pid}/fd/{fd}")
    return found


def restarted(bed: Bed, times: int) -> list[dict[str, str]]:
    records = bed.events(NAME, "restarting")
    return records if len(records) >= times else []


@provokes("clock-jump", "the wall clock jumps a day ahead, then a day back", long=True)
def clock_jumps(bed: Bed) -> Provoked:
    with tools() as folder:
        clock, shim = folder / "offset", folder / "clock.so"
        clock.write_text("0")
        source = SOURCES / "tests/support/clock_shim.c"
        run("gcc", "-shared", "-fPIC", "-O1", "-o", str(shim), str(source), "-ldl")
        with drop_in(f"Environment=LD_PRELOAD={shim} CLOCK_SHIM={clock}"):
            url = serve(bed)
            main, child = bed.main_pid(NAME), bed.child_pid(NAME)
            known = len(bed.events(NAME))
            slowest_s = 0.0
            for offset_s in (DAY_S, -DAY_S, 0):
                clock.write_text(str(offset_s))
                for _ in range(10):
                    slowest_s = max(slowest_s, health_s(url))
                    time.sleep(0.2)
            assert (bed.main_pid(NAME), bed.child_pid(NAME)) == (main, child), "a restart"
            assert len(bed.events(NAME)) == known and slowest_s < 1.0
            os.kill(child, signal.SIGKILL)
            since_s = time.monotonic()
            time.sleep(0.2)  # in the middle of the back-off
            clock.write_text(str(-DAY_S))
            served_s = served_within(url, since_s, 6.0)
            since = int(json.loads((Path("/run/llamad/model") / NAME / "status.json").read_text())["since"])
            assert abs(since + DAY_S - time.time()) < 60, "the shim reached it"
            return Provoked(None, served_s, f"health within {slowest_s:.2f} s")


@provokes("signal-storm", f"{HANG_UPS:,} SIGHUPs while the definition changes")
def hang_up_storm(bed: Bed) -> Provoked:
    url = serve(bed)
    main, child = bed.main_pid(NAME), bed.child_pid(NAME)
    for number in range(HANG_UPS):
        if number % 1000 == 0:
            define(bed, head=f'aliases = ["alias-{number}"]')
        os.kill(main, signal.SIGHUP)
    define(bed, head='aliases = ["the-last"]')
    os.kill(main, signal.SIGHUP)
    since_s = time.monotonic()
    wait_for(lambda: "the-last" in str(get(f"{url}/v1/models")[1]), "the last content is in force", 10.0, 0.02)
    took_s = time.monotonic() - since_s
    assert (bed.main_pid(NAME), bed.child_pid(NAME)) == (main, child)
    assert not bed.events(NAME, "reload-refused")
    served_within(url, since_s, 10.0)
    return Provoked(None, None, f"the last content applied after {took_s:.2f} s")


def _broken() -> dict[str, Callable[[Path], object]]:
    def replaced(file: Path, make: Callable[[], object]) -> None:
        file.unlink()
        make()

    return {
        "empty": lambda file: file.write_text(""),
        "half-written": lambda file: file.write_text(file.read_text()[:-20] + "["),
        "deleted": lambda file: file.unlink(),
        "a folder": lambda file: replaced(file, file.mkdir),
        "a symlink loop": lambda file: replaced(file, lambda: file.symlink_to(file)),
        "10 MB": lambda file: file.write_text(file.read_text() + "#" * 10_000_000),
        "not UTF-8": lambda file: file.write_bytes(file.read_bytes() + b"# \xff\xfe\n"),
    }


@provokes("broken-definition", "reload of an empty, half-written, deleted, looping, huge, non-UTF-8 definition")
def broken_definitions(bed: Bed) -> Provoked:
    url = serve(bed)
    main, child = bed.main_pid(NAME), bed.child_pid(NAME)
    file = ETC / f"{NAME}.toml"
    slowest_s = 0.0
    for what, spoil in _broken().items():
        spoil(file)
        began_s = time.monotonic()
        assert bed.ctl("reload", UNIT, check=False, timeout=20).returncode != 0, f"{what} was taken"
        os.kill(main, signal.SIGHUP)  # and where nobody has checked before
        event = "definition-removed" if what == "deleted" else "reload-refused"
        wait_for(lambda event=event: bed.events(NAME, event), f"{what} is refused", 10)  # type: ignore[misc]
        slowest_s = max(slowest_s, time.monotonic() - began_s)
        assert (bed.main_pid(NAME), bed.child_pid(NAME)) == (main, child), what
        served_within(url, began_s, 20.0)
        file.rmdir() if file.is_dir() and not file.is_symlink() else file.unlink(missing_ok=True)
        define(bed)
        bed.ctl("reload", UNIT)
        bed.forget_events()
    return Provoked(slowest_s, 0.0, f"{len(_broken())} ways; the slowest")


@provokes("daemon-killed", "SIGKILL to llamad")
def daemon_killed(bed: Bed) -> Provoked:
    url = serve(bed)
    main, child = bed.main_pid(NAME), bed.child_pid(NAME)
    since_s = time.monotonic()
    os.kill(main, signal.SIGKILL)
    wait_for(lambda: not alive(child), "no orphan", 5.0, 0.005)
    orphan_s = time.monotonic() - since_s
    return Provoked(orphan_s, served_within(url, since_s, 10.0), "detected: llama-server is gone")


@provokes("daemon-stopped", f"SIGSTOP to llamad, WatchdogSec={WATCHDOG_S}s")
def daemon_stopped(bed: Bed) -> Provoked:
    with drop_in(f"WatchdogSec={WATCHDOG_S}s"):
        url = serve(bed)
        main, child = bed.main_pid(NAME), bed.child_pid(NAME)
        since_s = time.monotonic()
        os.kill(main, signal.SIGSTOP)
        wait_for(lambda: not alive(main), "ended by the watchdog", WATCHDOG_S + 5.0, 0.01)
        ended_s = time.monotonic() - since_s
        wait_for(lambda: bed.main_pid(NAME) not in (0, main), "replaced", since_s + WATCHDOG_S + 5 - time.monotonic(), 0.02)
        served_s = served_within(url, since_s, WATCHDOG_S + 15.0)
        assert not alive(child)
        return Provoked(ended_s, served_s, f"WatchdogSec={WATCHDOG_S}s")


@provokes("double-start", "`llamad serve` beside its unit")
def double_start(bed: Bed) -> Provoked:
    url = serve(bed)
    main = bed.main_pid(NAME)
    began_s = time.monotonic()
    second = run("llamad", "serve", NAME, check=False)
    took_s = time.monotonic() - began_s
    assert second.returncode == 75 and str(main) in second.stderr, second.stderr
    assert bed.main_pid(NAME) == main
    served_within(url, began_s, 20.0)
    return Provoked(took_s, 0.0, "the whole command, with Python's start")


@provokes("pid-reuse", "a stranger has the process id of the llama-server that ended")
def pid_reused(bed: Bed) -> Provoked:
    words = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-m", "tests.support.pid_reuse"]
    assert run(*words, cwd=SOURCES, timeout=60).stdout == "held\n"
    return Provoked(None, None, "not signalled")


@provokes("port-taken", "another process listens on the address")
def port_taken(bed: Bed) -> Provoked:
    define(bed)
    script = "import socket, sys; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); print('up', flush=True); sys.stdin.read()"
    words = [sys.executable, "-c", script, str(bed.ports[NAME])]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout and owner.stdout.readline() == "up\n"
        since_s = time.monotonic()
        assert bed.ctl("start", UNIT, check=False, timeout=30).returncode != 0
        told = event_within(bed, "held-by-another", since_s, 10.0)
        assert "another process" in told["MESSAGE"] and "ss -ltnp" in told["LLAMAD_FIX"]
        assert bed.show(UNIT, "ActiveState") == "activating", "tried again, more and more slowly"
        time.sleep(3.0)
        assert int(bed.show(UNIT, "NRestarts")) < 10, "a restart loop"
        owner.kill()
    freed_s = time.monotonic()
    wait_for(lambda: bed.show(UNIT, "ActiveState") == "active", "served when it is free", 60)
    return Provoked(told["after_s"], served_within(url_of(bed), freed_s, 60.0), "served: after it was free")


@provokes("two-models", "eight units at once on one device that has room for a few", long=True)
def race_for_memory(bed: Bed) -> Provoked:
    names = [f"race{number}" for number in range(8)]
    device_mib = int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) // 1024
    for name in names:
        bed.define(name, extra=f'[placement]\nvram_margin = "{device_mib // 4}MiB"\n[limits]\nstart_wait_s = 300\n')
    began_s = last_s = time.monotonic()
    serving = 0
    try:
        bed.ctl("start", "--no-block", *(f"llamad@{name}" for name in names))
        found = leases()
        while time.monotonic() - last_s < QUIET_S or serving == 0:
            assert time.monotonic() - began_s < 120, found
            time.sleep(0.2)
            found = leases()
            for place in {place for lease in found.values() for place in lease["promised_mib"]}:
                promised_mib = sum(lease["promised_mib"].get(place, 0) for lease in found.values())
                assert promised_mib <= device_mib, f"{promised_mib} of {device_mib} MiB on {place}"
            now = [lease["phase"] for lease in found.values()].count("settled")
            if now != serving or "loading" in {lease["phase"] for lease in found.values()}:
                serving, last_s = now, time.monotonic()
        assert len(found) == len(names) and 1 <= serving < len(names), found
        return Provoked(None, last_s - began_s, f"{serving} of {len(names)} serve, the others wait")
    finally:
        run("systemctl", "stop", "llamad@race*", check=False)


def leases() -> dict[str, dict[str, Any]]:
    """Of the racing models, by name, as anybody may read them."""
    shown = json.loads(run("llamad", "status", "--json").stdout)
    return {lease["name"]: lease for lease in shown["leases"] if lease["name"].startswith("race")}


@provokes("journal-gone", "journald is stopped, then SIGKILL to llama-server")
def journal_stopped(bed: Bed) -> Provoked:
    url = serve(bed)
    main = bed.main_pid(NAME)
    bed.ctl("stop", *JOURNALD)
    try:
        since_s = time.monotonic()
        os.kill(bed.child_pid(NAME), signal.SIGKILL)
        served_s = served_within(url, since_s, 6.0)
        assert health_s(url) < 1.0
    finally:
        bed.ctl("start", *JOURNALD)
    assert bed.main_pid(NAME) == main
    return Provoked(None, served_s)


@provokes("journal-gone", "journald reads nothing (SIGSTOP), then SIGKILL to llama-server")
def journal_frozen(bed: Bed) -> Provoked:
    url = serve(bed)
    main, journald = bed.main_pid(NAME), int(bed.show("systemd-journald.service", "MainPID"))
    os.kill(journald, signal.SIGSTOP)
    try:
        since_s = time.monotonic()
        for _ in range(3):
            os.kill(child_of(main), signal.SIGKILL)
            served_s = served_within(url, since_s, 20.0)
        assert health_s(url) < 1.0
    finally:
        os.kill(journald, signal.SIGCONT)
    assert bed.main_pid(NAME) == main
    return Provoked(None, served_s, "served: after three deaths")


def child_of(main: int) -> int:
    return int(wait_for(lambda: run("pgrep", "-P", str(main), "-f", "llama-server", check=False).stdout.split(), "it", 20)[0])


@provokes("journal-gone", "the service manager's socket is gone or never read, in the foreground")
def notify_socket_gone(bed: Bed) -> Provoked:
    define(bed)
    with tools() as folder:
        ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        ear.bind(str(folder / "notify"))
        (folder / "notify").chmod(0o666)
        fill(str(folder / "notify"))
        words = ["env", f"NOTIFY_SOCKET={folder}/notify", "WATCHDOG_USEC=1000000", "llamad", "serve", NAME]
        with start_quietly(*words) as server:
            try:
                url = url_of(bed)
                wait_for(lambda: _up(url), "ready", 30)  # nobody reads what it tells
                served_within(url, time.monotonic(), 20.0)
                ear.close()
                (folder / "notify").unlink()
                os.kill(child_of(server.pid), signal.SIGKILL)
                served_s = served_within(url, time.monotonic(), 20.0)
                assert server.poll() is None
                server.terminate()
                assert server.wait(20) == 0
            finally:
                server.kill()
    return Provoked(None, served_s)


def fill(path: str) -> None:
    """Have a socket's queue hold all that it can."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                sender.sendto(b"X=1", path)


def _up(url: str) -> bool:
    try:
        return get(f"{url}/health", timeout=2)[0] == 200
    except OSError:
        return False


@provokes("package-changes", "the package is installed again while a model is served", long=True)
def package_again(bed: Bed) -> Provoked:
    package = next(Path("/build").glob("llamad_*.deb"))
    url = serve(bed)
    main, child = bed.main_pid(NAME), bed.child_pid(NAME)
    since_s = time.monotonic()
    run("dpkg", "-i", str(package), timeout=120)
    wait_for(lambda: bed.main_pid(NAME) not in (0, main), "restarted", 30)
    served_s = served_within(url, since_s, 60.0)
    assert not alive(child)
    return Provoked(None, served_s, "with dpkg's own time")


@provokes("package-changes", "the package is removed while a model is served, and installed again", long=True)
def package_removed(bed: Bed) -> Provoked:
    package = next(Path("/build").glob("llamad_*.deb"))
    url = serve(bed)
    main, child = bed.main_pid(NAME), bed.child_pid(NAME)
    run("dpkg", "-r", "llamad", timeout=120)
    try:
        wait_for(lambda: not alive(main) and not alive(child), "nothing runs", 10)
        assert (ETC / f"{NAME}.toml").exists(), "what the admin wrote stays"
    finally:
        run("dpkg", "-i", str(package), timeout=120)
    since_s = time.monotonic()
    bed.ctl("start", UNIT)
    return Provoked(None, served_within(url, since_s, 30.0))


