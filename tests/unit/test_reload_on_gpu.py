"""Reloads with llamad's own planner, ledger and supervisor on a card that gives out bytes as a driver does."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.gpu_host import GIB, GpuHost, Served, available
from tests.support.models import LLAMA32_3B, build_hollow

pytestmark = [
    pytest.mark.skipif(not available(), reason="needs gcc and nvidia-ml-py"),
    pytest.mark.timeout(120),
]


class Machine:
    """One GPU, and a model that is served on it."""

    def __init__(self, folder: Path) -> None:
        self.host = GpuHost(folder / "host", gpus=1)
        self.gpu = self.host.gpus["GPU-0"]
        self.ledger = folder / "ledger"
        self.ledger.mkdir()
        self.model = build_hollow(self.host.folder / "small.gguf", LLAMA32_3B)
        self.served: Served | None = None

    def serve(self, *contexts: int) -> Served:
        self.served = Served(self.host, self.ledger, "phi4", self.model, contexts=list(contexts))
        self.until(lambda: self.one.state == "ready", "ready")
        return self.served

    @property
    def one(self) -> Served:
        assert self.served is not None
        return self.served

    def until(self, condition: Callable[[], object], what: str, timeout_s: float = 40.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}; {self.one.states} {self.one.messages}"
            time.sleep(0.005)

    def children(self) -> list[int]:
        pid = self.one.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def reload(self) -> None:
        """Ask for the next context, and wait until it serves alone."""
        applied, old = self.one.events.count("reload-applied"), self.children()
        self.one.process.send_signal(signal.SIGUSR2)
        self.until(lambda: self.one.events.count("reload-applied") > applied, "applied")
        self.until(lambda: len(self.children()) == 1 and self.children() != old, "the former one is gone")

    def lease(self, name: str = "phi4") -> dict[str, Any]:
        path = self.ledger / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def close(self) -> None:
        if self.served is not None and self.served.process.poll() is None:
            self.served.process.kill()
            self.served.process.wait()
        self.host.close()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.close()


def test_with_room_for_both_nobody_waits_and_both_are_booked(machine: Machine) -> None:
    served = machine.serve(16384)
    before = machine.lease()["promised"]["GPU-0"]
    served.process.send_signal(signal.SIGUSR2)
    machine.until(lambda: machine.lease("phi4+1"), "a second lease")
    both = machine.lease("phi4+1")["promised"]["GPU-0"]
    assert both > before and machine.lease()["promised"]["GPU-0"] == before
    machine.until(lambda: len(machine.children()) == 1 and "reload-applied" in served.events, "the new one alone")
    machine.until(lambda: machine.lease()["promised"]["GPU-0"] == both and not machine.lease("phi4+1"), "one lease")
    machine.until(lambda: not machine.gpu.returning.get("phi4"), "bytes are back")
    assert machine.gpu.held["phi4"] <= both
    assert {state for state, _ in served.states[served.states.index(("ready", served.states[3][1])) :]} == {"ready"}
    assert machine.host.refused == [] and "no room" not in served.messages
    assert served.end(signal.SIGTERM) == 0


def test_without_room_it_is_swapped(machine: Machine) -> None:
    """What is free beside the first one is less than the second one needs."""
    served = machine.serve(16384)
    machine.host.take_foreign("GPU-0", machine.gpu.free - GIB)
    machine.reload()
    assert "no room" in served.messages and "room" not in served.messages
    assert "swapping" in [state for state, _ in served.states]
    assert machine.host.refused == [] and not machine.lease("phi4+1")
    assert served.end(signal.SIGTERM) == 0


def test_reloads_in_a_row_leave_nothing_behind(machine: Machine) -> None:
    served = machine.serve(*([4096, 16384] * 4))
    machine.reload()
    fds = len(list(Path(f"/proc/{served.process.pid}/fd").iterdir()))
    for _ in range(7):
        machine.reload()
    machine.until(lambda: not machine.gpu.returning.get("phi4"), "bytes are back")
    assert len(list(Path(f"/proc/{served.process.pid}/fd").iterdir())) <= fds + 1
    assert served.messages.count("room") == 8 and machine.host.refused == []
    assert machine.gpu.held["phi4"] <= machine.lease()["promised"]["GPU-0"]
    assert [path.name for path in machine.ledger.iterdir() if path.suffix == ".json"] == ["phi4.json"]
    assert served.end(signal.SIGTERM) == 0
    assert [path.name for path in machine.ledger.glob("phi4*")] == []


def test_a_killed_llamad_leaves_no_child_of_either_kind(machine: Machine) -> None:
    served = machine.serve(16384)
    served.process.send_signal(signal.SIGUSR2)
    machine.until(lambda: len(machine.children()) == 2, "two children")
    children = machine.children()
    served.process.kill()
    served.process.wait()
    machine.until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), "both are gone", 10)
