"""A unit that is stopped for a measurement is started again, however the measurement ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llamad.cli.bench import write_output
from llamad.errors import LlamadError

ROOT = Path(__file__).parents[2]
_CODE = """
import signal, sys
if "ignored" in sys.argv:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
from llamad.measure.stopped import stopped
try:
    with stopped("phi4", "unit"):
        print("stopped", flush=True)
        sys.stdin.read()
except KeyboardInterrupt:
    sys.exit(130)
"""


def systemctl(folder: Path, stopping: str = "exit 0") -> Path:
    """One that writes down what it is asked, and may take its time to stop something."""
    program = folder / "systemctl"
    program.write_text(f'#!/bin/sh\necho "$1" >>"{folder}/asked"\n[ "$1" = stop ] && {{ {stopping}; }}\nexit 0\n')
    program.chmod(0o755)
    return folder / "asked"


def begin(folder: Path, *words: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    return subprocess.Popen([sys.executable, "-c", _CODE, *words], cwd=ROOT, env=env, text=True,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_whatever_ends_the_measurement_the_unit_is_started_again(sign: signal.Signals, tmp_path: Path) -> None:
    asked = systemctl(tmp_path)
    with begin(tmp_path) as process:
        assert process.stdout is not None and process.stdout.readline() == "stopped\n"
        process.send_signal(sign)
        assert process.wait(20) == 130
    assert asked.read_text().split() == ["is-active", "stop", "start"]


def test_an_interrupt_while_it_stops_starts_it_again(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "stops")
    asked = systemctl(tmp_path, f'echo >"{tmp_path}/stops"; exec sleep 60')
    with begin(tmp_path) as process:
        (tmp_path / "stops").read_text()  # it is at it
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    assert asked.read_text().split() == ["is-active", "stop", "start"]


def test_a_hangup_that_is_ignored_ends_nothing(tmp_path: Path) -> None:
    asked = systemctl(tmp_path)
    with begin(tmp_path, "ignored") as process:
        assert process.stdout is not None and process.stdout.readline() == "stopped\n"
        process.send_signal(signal.SIGHUP)
        process.communicate("", timeout=20)
    assert process.returncode == 0 and asked.read_text().split() == ["is-active", "stop", "start"]


def test_a_result_is_written_through_no_link_of_others(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    (tmp_path / f".before.json.{os.getpid()}").symlink_to(precious)
    write_output(tmp_path / "before.json", "{}\n")
    assert precious.read_text() == "kept" and (tmp_path / "before.json").read_text() == "{}\n"
    with pytest.raises(LlamadError):
        write_output(tmp_path / "none" / "x.json", "{}")
