"""Faults of the list (tests/support/faults.py) on stand-ins, each with a deadline."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamad.errors import BusyError, ChildError, ExitCode
from llamad.service.daemon import Service
from llamad.service.journal import NativeJournal
from llamad.service.notify import NoNotifier
from llamad.service.paths import Paths
from llamad.service.reporter import DaemonReporter
from llamad.service.start import Start
from llamad.service.status import StatusFile
from llamad.supervision.child import Child, ProcessSpawner
from llamad.supervision.host import oom_kills
from llamad.supervision.intake import Intake
from llamad.supervision.launch import Launch
from llamad.supervision.machine import State
from llamad.threads import in_thread
from tests.support.fakes import a_plan, loaded_of
from tests.unit.test_reloads import TEXT
from tests.unit.test_reloads import Rig as ReloadRig
from tests.unit.test_supervisor import Rig, play

ROOT = Path(__file__).parents[2]


# -- llama-server --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "death"), [("SIGKILL", "killed"), ("SIGSEGV", "without-a-word"), (1, "exit")])
def test_every_way_to_die_is_answered_and_named(tmp_path: Path, how: str | int, death: str) -> None:
    """In real time: the next one is started after the back-off of half a second, and not a second later."""
    rig = Rig(tmp_path, {"die_after": 1, "exit_after": how}, {}, factor=1.0)
    took_s: list[float] = []

    async def scene(rig: Rig) -> None:
        await rig.until_ready()
        assert rig.supervisor.launch
        _, writer = await asyncio.open_unix_connection(rig.supervisor.launch.socket_path)
        began_s = time.monotonic()
        writer.write(b"POST /x HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
        await rig.reporter.until(lambda: len(rig.planner.spawns) == 2)
        took_s.append(time.monotonic() - began_s)
        writer.close()
        rig.supervisor.stop()

    assert play(rig, scene) is ExitCode.OK
    assert [fields["DEATH"] for name, _, fields in rig.reporter.events if name == "child-exited"] == [death]
    assert 0.5 <= took_s[0] <= 1.5


def test_a_child_that_ignores_term_is_gone_in_time(tmp_path: Path) -> None:
    rig = Rig(tmp_path, {"ignore_term": True}, factor=1.0, stop_s=0.5)
    stopped_s: list[float] = []

    async def scene(rig: Rig) -> None:
        await rig.until_ready()
        stopped_s.append(time.monotonic())
        rig.supervisor.stop()

    assert play(rig, scene) is ExitCode.OK
    assert time.monotonic() - stopped_s[0] <= 2 * 0.5 + 1.0


class InTheKernel:
    """A child that takes no signal until it is let go."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self.pid, self.wait, self.progress, self.unread_bytes = child.pid, child.wait, child.progress, child.unread_bytes

    def send(self, number: signal.Signals) -> None:
        """It waits."""

    def kill_group(self) -> None:
        """It waits."""

    def let_go(self) -> None:
        self._child.kill_group()


class KernelSpawner:
    """The first child is not to be killed."""

    def __init__(self) -> None:
        self.first: InTheKernel | None = None

    async def spawn(self, argv: Sequence[str], env: Mapping[str, str], on_bytes: Callable[[int, bytes], None]) -> Child:
        child = await ProcessSpawner().spawn(argv, env, on_bytes)
        if self.first is None:
            self.first = InTheKernel(child)
            return self.first
        return child


def test_a_child_that_cannot_be_killed_is_told_and_has_no_second_beside_it(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    spawner = KernelSpawner()
    rig.supervisor._spawner = spawner
    rig.engine.fail = ChildError("NaN")

    async def scene(rig: Rig) -> None:
        await rig.reporter.until(lambda: rig.supervisor.state is State.STUCK)
        rig.engine.fail = None
        (told,) = [(text, fields) for name, text, fields in rig.reporter.events if name == "unkillable"]
        assert "cannot be killed" in told[0] and "journalctl -k" in told[1]["FIX"]
        assert "cannot be killed" in rig.supervisor.status_text()
        with pytest.raises(BusyError, match="cannot be killed"):
            await rig.supervisor.reload(loaded_of(digest="2", context=1024, **rig.limits))
        assert len(rig.planner.spawns) == 1 and rig.front.calls[-1] == "hold"
        assert spawner.first
        spawner.first.let_go()
        await rig.until_ready()
        assert len(rig.planner.spawns) == 2
        rig.supervisor.stop()

    assert play(rig, scene) is ExitCode.OK


def test_a_stop_of_a_child_that_cannot_be_killed_ends(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    spawner = KernelSpawner()
    rig.supervisor._spawner = spawner

    async def go() -> ExitCode:
        run = asyncio.create_task(rig.supervisor.run())
        await rig.until_ready()
        rig.supervisor.stop()
        code = await asyncio.wait_for(run, 60)
        assert rig.supervisor.child_pid, "it is not said to be gone"
        assert spawner.first
        spawner.first.let_go()
        await spawner.first.wait()
        return code

    assert asyncio.run(go()) is ExitCode.OK
    assert rig.reporter.names()[-1] == "unkillable"


def test_kills_for_lack_of_memory_are_counted_in_both_kinds_of_control_groups(tmp_path: Path) -> None:
    cgroup = tmp_path / "proc/self/cgroup"
    cgroup.parent.mkdir(parents=True)
    cgroup.write_text("0::/system.slice/llamad@x.service\n")
    assert oom_kills(tmp_path) == 0
    today = tmp_path / "sys/fs/cgroup/system.slice/llamad@x.service"
    today.mkdir(parents=True)
    (today / "memory.events").write_text("low 0\noom 2\noom_kill 3\noom_group_kill 0\n")
    assert oom_kills(tmp_path) == 3
    cgroup.write_text("9:name=systemd:/x\n4:cpu,memory:/docker/1\n0::/elsewhere\n")
    old = tmp_path / "sys/fs/cgroup/memory/docker/1"
    old.mkdir(parents=True)
    (old / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 5\n")
    assert oom_kills(tmp_path) == 5
    cgroup.unlink()
    assert oom_kills(tmp_path) == 0


def test_a_first_death_waits_for_no_import() -> None:
    script = """
import asyncio, sys
from tests.support.fakes import ScaledClock
from llamad.supervision.prepared import prepare
import llamad.supervision.supervisor
before = "llamad.supervision.signatures" in sys.modules
asyncio.run(prepare(ScaledClock(1000.0)))
print(before, "llamad.supervision.inquest" in sys.modules, "llamad.supervision.signatures" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "False True True\n", done.stderr


# -- the limits of the host ----------------------------------------------------------------------------------


def test_no_thread_to_be_had_is_told_and_ends_nothing() -> None:
    """Without room for a thread's stack; in a process of its own, for the limit is one of the process."""
    script = """
import asyncio, resource
from llamad.errors import BusyError
from llamad.threads import in_thread
async def go():
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 20), hard))
    try:
        await in_thread(int, "1")
    except BusyError as error:
        print(int(error.exit_code), error.what)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    print(await in_thread(int, "2"))
    try:
        await in_thread(int, "x")
    except ValueError:
        print("its own errors")
asyncio.run(go())
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["75 no thread can be started", "2", "its own errors"], done.stderr


def test_what_work_raises_in_a_thread_is_raised() -> None:
    def fails() -> None:
        raise RuntimeError("of its own")

    with pytest.raises(RuntimeError, match="of its own"):
        asyncio.run(in_thread(fails))


@contextmanager
def no_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.open("/dev/null", os.O_RDONLY)
    os.close(spare)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_first_start_without_a_process_is_tried_again(tmp_path: Path) -> None:
    """Exit status 70 would leave the unit failed for good; the supervisor has a back-off."""
    (tmp_path / "ledger").mkdir()
    paths = Paths(tmp_path, tmp_path, tmp_path, tmp_path / "ledger", tmp_path, None)
    start = Start("tiny", tmp_path, {}, NativeJournal("/nonexistent"), NoNotifier(), paths)
    start.__dict__["first"] = Launch(loaded_of(), a_plan(), ("true",), {}, "/x", 300, "completion", "fake")
    with no_descriptors():
        assert start.process is None


def test_thirty_two_descriptors_are_told_tried_again_and_none_is_lost(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tests.support.few_descriptors", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    before, after, told, code = done.stdout.split() or [done.stderr] * 4
    assert before == after and told == "True" and code == "0"


def test_a_stranger_with_the_id_of_a_child_is_never_signalled() -> None:
    space = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    words = ["unshare", *space, "--pid", "--fork", "--mount-proc", sys.executable, "-m", "tests.support.pid_reuse"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    if "unshare" in done.stderr:
        pytest.skip("no namespaces here")
    assert done.stdout == "held\n", done.stderr


@pytest.fixture(scope="session")
def clock_shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shim = tmp_path_factory.mktemp("clock") / "clock.so"
    source = ROOT / "tests/support/clock_shim.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", shim, source, "-ldl"], check=True, timeout=60)
    return shim


def test_a_wall_clock_that_jumps_changes_no_delay(tmp_path: Path, clock_shim: Path) -> None:
    """A day ahead and a day back, in the middle of a back-off."""
    (tmp_path / "offset").write_text("0")
    env = {**os.environ, "LD_PRELOAD": str(clock_shim), "CLOCK_SHIM": str(tmp_path / "offset")}
    words = [sys.executable, "-m", "tests.support.wrong_clock", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == ["24", "-24", "0"], done.stderr
    assert 0.5 <= float(rows[0][1]) <= 1.5 and 1.0 <= float(rows[1][1]) <= 2.0  # half a second, doubled


def test_ten_thousand_real_hang_ups_are_two_reloads(tmp_path: Path) -> None:
    rig = ReloadRig(tmp_path)
    keys = tmp_path / "keys"
    keys.write_text("one\n")
    rig.file.write_text(f'{TEXT}api_keys_file = "{keys}"\n')
    all_came, began, stopped = threading.Event(), threading.Event(), threading.Event()
    running, most = 0, 0
    read = rig.load

    def load() -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        began.set()
        assert all_came.wait(30)
        running -= 1
        return read()

    rig.load = load  # type: ignore[method-assign]
    service: Any = Service(SimpleNamespace(hung_up=False))  # type: ignore[arg-type]
    service.reloads, service._stop = rig.reloads, stopped.set
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]

    def storm() -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        assert began.wait(30)
        for _ in range(10_000):
            os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        keys.write_text("one\ntwo\n")
        all_came.set()

    async def go() -> None:
        service._install_signals(asyncio.get_running_loop())
        sender = threading.Thread(target=storm)
        sender.start()
        await asyncio.to_thread(sender.join, 30)
        await asyncio.sleep(0.1)  # the last signals are still on their way into the loop
        await rig.rest()

    try:
        asyncio.run(go())
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    assert rig.loads == 2 and most == 1
    assert stopped.is_set(), "another signal was lost among them"
    assert rig.model.keys is not None and len(rig.model.keys) == 2, "the last content is in force"


# -- the journal ---------------------------------------------------------------------------------------------


def test_a_flood_of_lines_never_costs_an_event_of_ours(tmp_path: Path) -> None:
    """journald reads nothing while a child pours out lines and dies; then all of our own records come, in order."""
    path = tmp_path / "journal"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.bind(str(path))
        journald.settimeout(10)
        journal = NativeJournal(str(path))
        reporter = DaemonReporter("tiny", journal, NoNotifier(), StatusFile(tmp_path, "tiny"))
        intake = Intake(reporter, 200)
        block = b"0.00.200.000 E a line of a child that will not stop talking about itself\n" * 1000
        slowest_s = 0.0
        for number in range(200):
            began_s = time.monotonic()
            intake.feed(2, block)
            if number % 2 == 0:
                reporter.event("restarting", f"own {number}", CAUSE="-")
            slowest_s = max(slowest_s, time.monotonic() - began_s)
        assert intake.line_count == 200_000 and journal.dropped > 0
        assert slowest_s < 1.0, "it stood still"
        own: list[str] = []
        while len(own) < 100:
            record = journald.recv(1 << 16)
            if b"MESSAGE=own " in record:
                own.append(record.partition(b"MESSAGE=own ")[2].partition(b"\n")[0].decode())
        journal.flush(5.0)
    assert own == [str(number) for number in range(0, 200, 2)]
    assert len(intake.recent()) <= 200 and len(intake.evidence()) <= 200


def test_a_journal_that_is_gone_keeps_nobody_from_ending(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.bind(str(path))
        journal = NativeJournal(str(path))
        for number in range(2000):
            journal.record(f"{number}", "info", "llamad")
        began_s = time.monotonic()
        journal.flush(0.2)
        assert time.monotonic() - began_s < 1.0
        assert journal.dropped > 0, "what waits is bounded"
    journal.flush(10.0)  # its socket is closed: what waited is given up at once
    assert time.monotonic() - began_s < 10.0
