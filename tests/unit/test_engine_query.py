"""Queries of real (small) programs: deadlines, bounds, leftovers, and the errors an admin sees."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llamad.engine.find import find_server
from llamad.engine.query import OUTPUT_LIMIT_BYTES, run_query, run_until
from llamad.errors import AccessError, ConfigError

ENV = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}


def script(folder: Path, text: str, name: str = "server") -> str:
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def wait_gone(pid: int) -> None:
    end_s = time.monotonic() + 10
    while not gone(pid):
        assert time.monotonic() < end_s, f"process {pid} is still there"
        os.sched_yield()


def test_both_streams_status_and_environment(tmp_path: Path) -> None:
    server = script(tmp_path, "#!/bin/sh\necho out $1 $MINE $HOME\necho err >&2\nexit 3\n")
    result = run_query([server, "--help"], {**ENV, "MINE": "x"}, 10)
    assert (result.stdout, result.stderr, result.returncode) == ("out --help x\n", "err\n", 3)
    assert not result.timed_out and result.first_error == "err"


def test_a_signal_is_told_as_one(tmp_path: Path) -> None:
    assert run_query([script(tmp_path, "#!/bin/sh\nkill -ABRT $$\n")], ENV, 10).returncode == -signal.SIGABRT


def test_past_the_deadline_the_whole_group_is_killed(tmp_path: Path) -> None:
    server = script(tmp_path, "#!/bin/sh\nsleep 1000 &\necho $!\nsleep 1000\n")
    result = run_query([server], ENV, 0.5)
    assert result.timed_out and result.returncode == -signal.SIGKILL
    wait_gone(int(result.stdout))


def test_a_grandchild_that_holds_the_pipes_delays_nothing(tmp_path: Path) -> None:
    server = script(tmp_path, "#!/bin/sh\nsleep 1000 &\necho $!\n")
    started = time.monotonic()
    result = run_query([server], ENV, 60)
    assert time.monotonic() - started < 30 and not result.timed_out and result.returncode == 0
    wait_gone(int(result.stdout))


def test_output_is_bounded_and_still_drained(tmp_path: Path) -> None:
    server = script(tmp_path, "#!/bin/sh\nhead -c 9000000 /dev/zero\necho end >&2\n")
    result = run_query([server], ENV, 60)
    assert len(result.stdout) == OUTPUT_LIMIT_BYTES
    assert result.stderr == "end\n" and result.returncode == 0


def test_the_deadline_holds_against_one_who_never_stops_writing(tmp_path: Path) -> None:
    started = time.monotonic()
    result = run_query([script(tmp_path, "#!/bin/sh\nexec yes\n")], ENV, 0.5)
    assert result.timed_out and time.monotonic() - started < 30
    left_behind = script(tmp_path, "#!/bin/sh\nyes &\nexit 5\n")
    ended = run_query([left_behind], ENV, 60)
    assert ended.returncode == 5 and time.monotonic() - started < 30


def test_a_last_line_without_an_end_is_a_line(tmp_path: Path) -> None:
    result = run_until(
        [script(tmp_path, "#!/bin/sh\nprintf 'one\\ntwo'\n")], ENV, 60, lambda line: line == b"two"
    )
    assert result.stopped and result.returncode in (0, -signal.SIGKILL)


def test_the_wanted_line_ends_the_run(tmp_path: Path) -> None:
    server = script(tmp_path, "#!/bin/sh\necho one >&2\necho $$\necho two >&2\nexec sleep 1000\n")
    result = run_until([server], ENV, 60, lambda line: line == b"two")
    assert result.stopped and not result.timed_out
    assert result.stderr == "one\ntwo\n"


def test_killed_with_the_one_who_asked(tmp_path: Path) -> None:
    """A llamad killed with SIGKILL in the middle of a query leaves nothing behind."""
    server = script(tmp_path, "#!/bin/sh\necho $$ >$1\nexec sleep 1000\n")
    fifo = tmp_path / "pid"
    os.mkfifo(fifo)
    fifo.chmod(0o666)
    code = (
        f"from llamad.engine.query import run_query\nrun_query([{server!r}, {str(fifo)!r}], {ENV!r}, 1000)\n"
    )
    asker = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    pid = int(fifo.read_text())
    assert not gone(pid)
    asker.kill()
    asker.wait()
    wait_gone(pid)


def test_a_missing_server_names_the_package() -> None:
    with pytest.raises(ConfigError) as caught:
        run_query(["llama-server-that-is-not-there", "--help"], ENV, 5)
    assert "apt install llama.cpp-tools" in str(caught.value)
    assert caught.value.exit_code == 78


def test_not_executable_and_not_a_program(tmp_path: Path) -> None:
    path = tmp_path / "server"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o644)
    if os.geteuid() == 0:  # root may execute nothing without one x bit either
        assert not os.access(path, os.X_OK)
    with pytest.raises(AccessError):
        find_server(str(path), "")
    with pytest.raises(AccessError):
        find_server("server", f"/nowhere:{tmp_path}")


def test_found_in_path_order(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    (first / "server").write_text("not executable")
    script(second, "#!/bin/sh\n")
    assert find_server("server", f"{first}:{second}") == str(second / "server")
