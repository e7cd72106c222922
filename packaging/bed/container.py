"""Boots beds, enters them and ends them.

A bed is alive as long as somebody holds the flock of /run/llamad-testbed/NAME.lock: the processes that own it
inherit the lock, so a file without a holder belongs to a bed that is gone, and the next command removes it.

    runner -> (setpriv, systemd-run, unshare: one process after the other) -> keeper -> systemd-nspawn -> systemd
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bed import groups, processes
from bed.build import CACHE, locked
from bed.report import BedError, say

STATE = Path("/run/llamad-testbed")
DEFAULT_NAME = "bed"
_KEEPER = Path(__file__).parent / "keeper.py"
_BOOT_S = 120.0
_END_S = 20.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Bed:
    """One bed by its name, running or not."""

    name: str = DEFAULT_NAME

    @property
    def log(self) -> Path:
        """What systemd-nspawn and the boot wrote."""
        return STATE / f"{self.name}.log"

    @property
    def _state(self) -> Path:
        return STATE / f"{self.name}.json"

    def is_up(self) -> bool:
        """Whether its processes live."""
        return self._state.exists() and not _is_free(STATE / f"{self.name}.lock")

    def facts(self) -> dict[str, Any]:
        """What was written down at the boot. Raises BedError if the bed is not up."""
        if not self.is_up():
            msg = f"no bed named {self.name} is up: packaging/testbed boot"
            raise BedError(msg, exit_status=3)
        facts: dict[str, Any] = json.loads(self._state.read_text())
        return facts

    def init_pid(self) -> int:
        """The host's number of the bed's systemd. Raises BedError if there is none (yet)."""
        keeper = self._keeper_pid()
        depth = len(processes.namespace_pids(keeper)) + 1 if keeper else 0
        for pid in processes.descendants(keeper) if keeper else ():
            numbers = processes.namespace_pids(pid)
            if len(numbers) == depth and numbers[-1] == 1 and processes.name(pid) == "systemd":
                return pid
        msg = f"the bed {self.name} has no systemd; its log: {self.log}"
        raise BedError(msg)

    def _keeper_pid(self) -> int | None:
        facts = self.facts()
        if processes.start_ticks(facts["pid"]) != facts["start_ticks"]:
            return None
        return next(iter(processes.descendants(facts["pid"])), None)

    def command(
        self,
        command: Sequence[str],
        *,
        user: str = "root",
        folder: str = "/",
        environment: Mapping[str, str] | None = None,
    ) -> list[str]:
        """The host's command line that runs `command` inside, in a clean environment, and dies with its caller."""
        home = "/root" if user == "root" else f"/home/{user}"
        variables = {"PATH": _PATH, "HOME": home, "USER": user, "LOGNAME": user, "SHELL": "/bin/bash"}
        variables["LANG"] = "C.UTF-8"
        variables.update(
            {name: os.environ[name] for name in ("TERM", "CI", "NO_COLOR") if name in os.environ}
        )
        variables.update(environment or {})
        become = [] if user == "root" else [f"--reuid={user}", f"--regid={user}", "--init-groups"]
        init = self.init_pid()
        return [
            *processes.DIES_WITH_US,
            *("sh", "-ec", 'echo 0 > "$0/cgroup.procs"; exec "$@"', groups.for_visitors(init)),
            *("nsenter", f"--target={init}", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"),
            *("--root", "--", "setpriv", *become, "--pdeathsig", "KILL", "--"),
            *("env", "--ignore-environment", f"--chdir={folder}"),
            *(f"{name}={value}" for name, value in variables.items()),
            *command,
        ]

    def call(
        self,
        command: Sequence[str],
        *,
        user: str = "root",
        folder: str = "/",
        environment: Mapping[str, str] | None = None,
        stdin: IO[Any] | None = None,
        into: IO[bytes] | None = None,
    ) -> int:
        """Run inside on this terminal, or writing `into` a file; the exit status as a shell would give it."""
        inside = self.command(command, user=user, folder=folder, environment=environment)
        child = subprocess.Popen(inside, stdin=stdin, stdout=into, stderr=subprocess.STDOUT if into else None)
        try:
            status = child.wait()
        except KeyboardInterrupt:
            # Ctrl-C went to the command as well: let it say its last words.
            _wait_bounded(child, 5.0)
            raise
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        return status if status >= 0 else 128 - status

    def output(self, command: Sequence[str], *, timeout_s: float = 60.0) -> tuple[int, str]:
        """Run inside as root, at most `timeout_s`; exit status (124 past the time) and all that it wrote."""
        try:
            done = subprocess.run(
                self.command(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=timeout_s,
                text=True,
                errors="replace",
                check=False,
            )
        except subprocess.TimeoutExpired:
            return 124, ""
        return done.returncode, done.stdout

    def end(self) -> bool:
        """Kill every process of the bed, and so its mounts; False if it was not up.

        Nothing in a bed is worth a slow goodbye: what it wrote is in memory and goes with it.
        """
        if not self.is_up():
            return False
        facts = self.facts()
        if processes.start_ticks(facts["pid"]) == facts["start_ticks"]:
            for pid in (*processes.descendants(facts["pid"])[:1], facts["pid"]):
                _kill(pid)
        deadline = time.monotonic() + _END_S
        while not _is_free(STATE / f"{self.name}.lock"):
            if time.monotonic() > deadline:
                msg = f"the bed {self.name} does not end: process {facts['pid']} is still there after {_END_S:.0f} s"
                raise BedError(msg)
            time.sleep(0.02)  # a lock can be waited for, but not with a deadline
        remove_stale()
        return True


def boot(name: str, *, root: Path, source: Path, dies_with_us: bool) -> Bed:
    """Boot a bed on `root` with `source` to be read at /src, and return it when systemd says that it is up.

    With `dies_with_us` it ends with this process, however this process ends. Raises BedError when a bed of that
    name is up already or when it does not come up in time.
    """
    STATE.mkdir(mode=0o755, exist_ok=True)
    (CACHE / "mnt").mkdir(mode=0o755, exist_ok=True)
    remove_stale()
    bed = Bed(name)
    with locked(STATE / "state.lock", waiting_for="another command of the test bed"):
        if bed.is_up():
            msg = f"a bed named {name} is up already: packaging/testbed down (or --name another)"
            raise BedError(msg)
        runner = _start(bed, root=root, source=source, dies_with_us=dies_with_us)
    try:
        _wait_until_up(bed, runner)
    except BaseException:
        bed.end()
        runner.wait()
        raise
    return bed


@contextmanager
def booted(*, root: Path, source: Path, number: int = 0) -> Iterator[Bed]:
    """A bed of this process alone, gone at the end of the block; `number` tells several apart."""
    name = f"run-{os.getpid()}" + (f"-{number}" if number else "")
    bed = boot(name, root=root, source=source, dies_with_us=True)
    try:
        yield bed
    finally:
        bed.end()


def remove_stale() -> None:
    """Remove what beds left behind that are gone: state files and empty control groups."""
    with locked(STATE / "state.lock", waiting_for="another command of the test bed"):
        for lock in STATE.glob("*.lock"):
            if lock.name == "state.lock" or not _is_free(lock):
                continue
            state = lock.with_suffix(".json")
            if state.exists():
                groups.remove(lock.stem, json.loads(state.read_text())["cgroup"])
            for path in (state, lock.with_suffix(".log"), lock):
                path.unlink(missing_ok=True)


def names() -> list[str]:
    """The beds that are up."""
    return [path.stem for path in sorted(STATE.glob("*.json")) if Bed(path.stem).is_up()]


def _start(bed: Bed, *, root: Path, source: Path, dies_with_us: bool) -> subprocess.Popen[bytes]:
    group = groups.make(bed.name)
    spec = {
        "mount_point": str(CACHE / "mnt"),
        "lower": str(root),
        "cgroup": group,
        "watch_stdin": dies_with_us,
        # Hosts with the old control groups: give the bed the new ones all the same.
        "environment": {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1", "SYSTEMD_NSPAWN_TMPFS_TMP": "0"},
        "nspawn": _nspawn(bed.name, source),
    }
    keeper = [sys.executable, "-B", str(_KEEPER), json.dumps(spec)]
    command = [*groups.enter(bed.name, group), *processes.OWN_NAMESPACES, *keeper]
    with (STATE / f"{bed.name}.lock").open("w") as own, (root.parent / "in-use.lock").open() as used:
        fcntl.flock(own, fcntl.LOCK_EX)
        fcntl.flock(used, fcntl.LOCK_SH)
        with bed.log.open("wb") as log:
            runner = subprocess.Popen(
                [*processes.DIES_WITH_US, *command] if dies_with_us else command,
                stdin=subprocess.PIPE if dies_with_us else subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(own.fileno(), used.fileno()),
                start_new_session=True,
            )
    began = {"pid": runner.pid, "start_ticks": processes.start_ticks(runner.pid), "began": time.time()}
    (STATE / f"{bed.name}.json").write_text(json.dumps({**began, "cgroup": group}))
    return runner


def _nspawn(name: str, source: Path) -> list[str]:
    return [
        *("systemd-nspawn", "--quiet", "--boot", "--console=pipe", "--settings=no"),
        *("--register=no", "--keep-unit", f"--machine=llamad-{name}", "--hostname=bed"),
        # Own loopback: ports cannot clash with the host's or another bed's, and nothing inside can be reached.
        *("--private-network", "--resolv-conf=off", "--timezone=off", "--link-journal=no"),
        "--system-call-filter=landlock_create_ruleset landlock_add_rule landlock_restrict_self",
        f"--bind-ro={str(source).replace(':', chr(92) + ':')}:/src",
    ]


def _wait_until_up(bed: Bed, runner: subprocess.Popen[bytes]) -> None:
    """Wait for systemd to finish its boot. Raises BedError with the log's end when it does not."""
    deadline = time.monotonic() + _BOOT_S
    answer = ""
    while runner.poll() is None and time.monotonic() < deadline:
        try:
            # Fails at once until systemd listens, waits for the end of the boot from then on.
            _, answer = bed.output(["systemctl", "is-system-running", "--wait"], timeout_s=_BOOT_S)
        except BedError:
            answer = ""
        if answer.strip() in ("running", "degraded"):
            _tell_failures(bed, answer.strip())
            return
        time.sleep(0.1)
    tail = "\n".join(bed.log.read_text(errors="replace").splitlines()[-25:])
    ended = runner.poll() is not None
    what = "ended while it booted" if ended else f"did not come up within {_BOOT_S:.0f} s ({answer.strip()})"
    msg = f"the bed {what}; its log:\n{tail}"
    raise BedError(msg)


def _tell_failures(bed: Bed, state: str) -> None:
    if state == "degraded":
        _, failed = bed.output(["systemctl", "list-units", "--failed", "--plain", "--no-legend"])
        say(f"  the bed is up, but some units failed in it: {' '.join(failed.split()[::5])}")


def _is_free(lock: Path) -> bool:
    """Whether nobody holds the flock of `lock` (True as well if there is no such file)."""
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    return True


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # it went by itself


def _wait_bounded(child: subprocess.Popen[Any], seconds: float) -> None:
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        return  # the caller kills it
