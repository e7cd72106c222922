"""Trying out how much a device gives: answered by the first line that tells, gently where the device is remote."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamad.engine.trial import holds

ENV = {"PATH": "/usr/bin:/bin"}
RESERVE = "0.00.100.000 I sched_reserve:      RPC0 compute buffer size =     5.00 MiB"
FAILED = "0.00.200.000 E ggml_backend_buft_alloc_buffer_n_default: failed to allocate RPC0[h:1] buffer of size 1073741824"
LISTENING = "0.00.200.000 I srv  llama_server: listening on unix:///s"


class Trial:
    """A llama-server that prints its lines with a pause after each, and leaves a mark if it gets past the last."""

    def __init__(self, folder: Path, *lines: str, then: str = "exit 1") -> None:
        self.mark = folder / "mark"
        said = "\n".join(f"echo '{line}' >&2; sleep 0.2" for line in lines)
        self.server = folder / "llama-server"
        self.server.write_text(f"#!/bin/sh\n{said}\ntouch {self.mark}\n{then}\n")
        self.server.chmod(0o755)
        self.socket = folder / "s"

    def holds(self, *args: str) -> bool | None:
        return holds(str(self.server), ["--host", str(self.socket), *args], ENV)


def test_a_local_one_is_ended_as_soon_as_it_tells(tmp_path: Path) -> None:
    trial = Trial(tmp_path, RESERVE, "more")
    assert trial.holds() is True and not trial.mark.exists()
    trial = Trial(tmp_path, FAILED, "more")
    assert trial.holds() is False and not trial.mark.exists()


def test_a_remote_one_may_end_its_commands_first(tmp_path: Path) -> None:
    trial = Trial(tmp_path, RESERVE, "still loading", LISTENING, then="exec sleep 60")
    assert trial.holds("--rpc", "h:1") is True
    trial = Trial(tmp_path, FAILED, "cleaning up")
    assert trial.holds("--rpc", "h:1") is False and trial.mark.exists(), "it ended by itself"
    trial.mark.unlink()
    assert Trial(tmp_path, RESERVE, FAILED).holds("--rpc", "h:1") is False, "the cache is not all of it"


@pytest.mark.parametrize("args", [(), ("--rpc", "h:1")])
def test_one_that_ends_without_telling_answers_nothing(tmp_path: Path, args: tuple[str, ...]) -> None:
    assert Trial(tmp_path, "hello").holds(*args) is None
