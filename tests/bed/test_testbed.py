"""The test bed itself, seen from the host: packaging/testbed selftest. As root; standard library only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
import unittest
from collections.abc import Callable
from pathlib import Path

TESTBED = str(Path(__file__).resolve().parents[2] / "packaging/testbed")
STATE = Path("/run/llamad-testbed")
ENOUGH_S = 60.0


def testbed(*words: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run packaging/testbed to its end."""
    return subprocess.run(
        [TESTBED, *words], input=given, capture_output=True, text=True, timeout=180, check=False
    )


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + ENOUGH_S
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {ENOUGH_S:.0f} s: {what}")
        time.sleep(0.02)  # other processes' ends have no event here: they are not our children


def namespaces_of(pid: int) -> set[str]:
    """Its pid and mount namespace; none for a process that is gone or may not be looked at, as none of a bed is."""
    try:
        return {os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("pid", "mnt")}
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return set()


def all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def members(namespaces: set[str]) -> list[int]:
    """The processes that live in any of these namespaces."""
    return [pid for pid in all_pids() if namespaces_of(pid) & namespaces]


def below(pid: int) -> set[int]:
    """Every descendant of a process."""
    found = {pid}
    while True:
        more = {child for child in all_pids() if _parent(child) in found} - found
        if not more:
            return found - {pid}
        found |= more


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return -1


def leftovers() -> list[str]:
    """State files, mounts and control groups of beds on this host."""
    mounts = [
        line for line in Path("/proc/self/mounts").read_text().splitlines() if "llamad-testbed" in line
    ]
    groups = [str(path) for path in Path("/sys/fs/cgroup").glob("**/llamad-testbed-run-*")]
    return [*mounts, *groups, *(str(path) for path in STATE.glob("run-*"))]


class Running:
    """A `packaging/testbed run` in the background."""

    def __init__(self, test: unittest.TestCase, command: str) -> None:
        test.addCleanup(self.kill)
        self.process = subprocess.Popen(
            [TESTBED, "run", "--", "sh", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self.state = STATE / f"run-{self.process.pid}.json"

    def wait_until_up(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line != "up\n":
            raise AssertionError(f"the run said {line!r} instead of up")

    def wait_until_started(self) -> None:
        wait_for(self.state.exists, f"{self.state} is there")

    def namespaces(self) -> set[str]:
        """The namespaces that are the bed's own."""
        own = namespaces_of(os.getpid())
        owner = json.loads(self.state.read_text())["pid"]
        return {link for pid in below(owner) for link in namespaces_of(pid)} - own

    def kill(self) -> None:
        """End it as SIGKILL does, if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.close()

    def end(self, number: int) -> int:
        """Send a signal to the whole process group, as a terminal does; the exit status."""
        os.killpg(self.process.pid, number)
        return self.close()

    def close(self) -> int:
        """Wait for its end; the exit status."""
        status = self.process.wait(ENOUGH_S)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status


class EndsWithItsRunner(unittest.TestCase):
    """No way of ending a run leaves anything behind."""

    def setUp(self) -> None:
        self.before = set(leftovers())  # beds of other people
        self.addCleanup(self.assert_nothing_stays)  # cleanups run last first: after those that end the runs

    def assert_nothing_stays(self) -> None:
        testbed("down", "--name", "none")  # removes what killed runs left in the file system
        self.assert_nothing_new()

    def assert_nothing_new(self) -> None:
        self.assertEqual(set(leftovers()) - self.before, set())

    def assert_gone(self, namespaces: set[str]) -> None:
        self.assertTrue(namespaces)
        wait_for(lambda: not members(namespaces), f"no process is left in {sorted(namespaces)}")

    def test_sigkill_of_a_run(self) -> None:
        run = Running(self, "echo up; sleep 1000 & exec sleep 1000")
        run.wait_until_up()
        namespaces = run.namespaces()
        self.assertGreaterEqual(len(members(namespaces)), 5)  # keeper, nspawn, systemd, the shell, its sleep
        run.process.kill()
        self.assertEqual(run.close(), -signal.SIGKILL)
        self.assert_gone(namespaces)
        self.assertFalse([line for line in set(leftovers()) - self.before if " overlay " in line])

    def test_sigkill_while_it_boots(self) -> None:
        run = Running(self, "echo up")
        run.wait_until_started()
        namespaces = run.namespaces()
        run.process.kill()
        run.close()
        wait_for(lambda: not members(namespaces), "no process is left")
        owner = json.loads(run.state.read_text())["pid"]
        wait_for(lambda: owner not in all_pids(), "the process that owned the bed is gone")

    def test_the_next_run_removes_what_a_killed_one_left(self) -> None:
        run = Running(self, "echo up; exec sleep 1000")
        run.wait_until_up()
        namespaces = run.namespaces()
        run.process.kill()
        run.close()
        self.assert_gone(namespaces)
        self.assertTrue(run.state.exists())
        self.assertEqual(testbed("run", "--", "true").returncode, 0)
        self.assertFalse(run.state.exists())
        self.assert_nothing_new()

    def test_ctrl_c_and_sigterm_clean_up_at_once(self) -> None:
        for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 128 + signal.SIGTERM)):
            with self.subTest(signal=number):
                run = Running(self, "echo up; exec sleep 1000")
                run.wait_until_up()
                namespaces = run.namespaces()
                self.assertEqual(run.end(number), status)
                self.assertEqual(members(namespaces), [])
                self.assert_nothing_new()

    def test_a_run_that_ends_by_itself(self) -> None:
        self.assertEqual(testbed("run", "--", "sh", "-c", "exit 9").returncode, 9)
        self.assert_nothing_new()

    def test_two_runs_at_once_do_not_meet(self) -> None:
        server = 'python3 -c \'import socket; s = socket.create_server(("127.0.0.1", 8081)); print("up", flush=True);'
        runs = [Running(self, f"{server} input()' </dev/zero") for _ in range(2)]
        try:
            for run in runs:
                run.wait_until_up()
        finally:
            for run in runs:
                run.end(signal.SIGTERM)


class IsABed(unittest.TestCase):
    """One bed for all of these: what goes in, what comes out."""

    NAME = "selftest"

    @classmethod
    def setUpClass(cls) -> None:
        done = testbed("boot", "--name", cls.NAME)
        if done.returncode != 0:
            raise AssertionError(done.stderr)

    @classmethod
    def tearDownClass(cls) -> None:
        if testbed("down", "--name", cls.NAME).returncode != 0:
            raise AssertionError("the bed does not go down")
        if testbed("exec", "--name", cls.NAME, "--", "true").returncode != 3:
            raise AssertionError("the bed is still up")

    def inside(self, *command: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
        return testbed("exec", "--name", self.NAME, "--", *command, given=given)

    def test_exit_status_input_and_output_pass_through(self) -> None:
        done = self.inside("sh", "-c", "cat; echo oops >&2; exit 42", given="words")
        self.assertEqual((done.returncode, done.stdout, done.stderr), (42, "words", "oops\n"))
        self.assertEqual(self.inside("sh", "-c", "kill -KILL $$").returncode, 137)

    def test_a_user_of_the_bed_has_no_rights_of_root(self) -> None:
        done = testbed(
            "exec", "--name", self.NAME, "--user", "builder", "--", "sh", "-c", "id -un; touch /etc/x"
        )
        self.assertEqual(done.stdout, "builder\n")
        self.assertNotEqual(done.returncode, 0)

    def test_the_environment_of_the_host_stays_outside(self) -> None:
        os.environ["PIP_SECRET_OF_THE_HOST"] = "1"
        self.addCleanup(os.environ.pop, "PIP_SECRET_OF_THE_HOST")
        self.assertNotIn("PIP_", self.inside("env").stdout)

    def test_the_build_left_nothing_of_the_host_in_it(self) -> None:
        done = self.inside(
            "sh", "-c", "ls /etc/pip.conf /root/.config/pip /run/llamad-build /etc/apt/apt.conf.d/99*"
        )
        self.assertEqual(done.stdout, "")

    def test_the_checkout_can_be_read_and_not_written(self) -> None:
        self.assertIn("test_testbed.py", self.inside("ls", "/src/tests/bed").stdout)
        self.assertIn("Read-only", self.inside("touch", "/src/x").stderr)

    def test_what_is_written_is_gone_with_the_bed(self) -> None:
        self.assertEqual(self.inside("touch", "/etc/written").returncode, 0)
        self.assertNotEqual(testbed("run", "--", "test", "-e", "/etc/written").returncode, 0)

    def test_push_and_pull_keep_content_mode_and_holes(self) -> None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "tree").mkdir()
            (folder / "tree/script").write_bytes(bytes(range(256)))
            (folder / "tree/script").chmod(0o750)
            with (folder / "tree/hollow").open("wb") as file:
                file.truncate(1 << 33)
            pushed = testbed("push", "--name", self.NAME, str(folder / "tree"), "/srv/deep/copy")
            self.assertEqual(pushed.returncode, 0, pushed.stderr)
            self.assertEqual(self.inside("stat", "-c", "%a %s", "/srv/deep/copy/script").stdout, "750 256\n")
            pulled = testbed("pull", "--name", self.NAME, "/srv/deep/copy", str(folder / "back"))
            self.assertEqual(pulled.returncode, 0, pulled.stderr)
            self.assertEqual((folder / "back/script").read_bytes(), bytes(range(256)))
            hollow = (folder / "back/hollow").stat()
            self.assertEqual(hollow.st_size, 1 << 33)
            self.assertLess(hollow.st_blocks, 100)

    def test_a_killed_exec_ends_its_command(self) -> None:
        command = [TESTBED, "exec", "--name", self.NAME, "--", "sh", "-c", "echo up; exec sleep 4242"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            self.assertEqual(child.stdout.readline(), "up\n")
            child.kill()
        wait_for(lambda: self.inside("pgrep", "-f", "sleep 4242").returncode == 1, "the command is gone")

    def test_a_second_bed_of_the_same_name_is_refused(self) -> None:
        done = testbed("boot", "--name", self.NAME)
        self.assertEqual(done.returncode, 1)
        self.assertIn("up already", done.stderr)

    def test_status_names_it(self) -> None:
        done = testbed("status")
        self.assertEqual(done.returncode, 0)
        self.assertIn(f"up: {self.NAME}, running", done.stdout)


if __name__ == "__main__":
    unittest.main()
