"""A GPU, its driver and llama-server change under a model that is served: everything but the card is real."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.gpu_host import GpuHost, Served, available
from tests.support.models import LLAMA32_3B, build_hollow

pytestmark = [
    pytest.mark.skipif(not available(), reason="needs gcc and nvidia-ml-py"),
    pytest.mark.timeout(120),
]
LOST = "fail nvmlDeviceGetMemoryInfo_v2 15 0"


class Machine:
    """One GPU, one model."""

    def __init__(self, folder: Path) -> None:
        self.host = GpuHost(folder / "host", gpus=1)
        self.ledger = folder / "ledger"
        self.ledger.mkdir()
        self.model = build_hollow(self.host.folder / "small.gguf", LLAMA32_3B)
        self.models: list[Served] = []

    def serve(self, **keys: object) -> Served:
        served = Served(self.host, self.ledger, "phi4", self.model, **keys)
        self.models.append(served)
        until(lambda: served.state == "ready", "ready", served)
        return served

    def close(self) -> None:
        for served in self.models:
            if served.process.poll() is None:
                served.process.kill()
                served.process.wait()
        self.host.close()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.close()


def until(condition: Callable[[], object], what: str, served: Served, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}; {served.states} {served.messages}"
        time.sleep(0.01)


def child_of(served: Served) -> int:
    children = Path(f"/proc/{served.process.pid}/task/{served.process.pid}/children").read_text().split()
    assert len(children) == 1, children
    return int(children[0])


def look(served: Served) -> None:
    served.process.send_signal(signal.SIGUSR1)


def test_a_replaced_engine_is_told_and_the_next_child_is_the_new_one(machine: Machine) -> None:
    served = machine.serve()
    child = child_of(served)
    newer = machine.host.server.with_name("newer")
    newer.write_text(
        machine.host.server.read_text().replace(
            "--version) ", "--version) echo 'version: 0.8.0 (build 11702, commit Debian)' >&2; exit;; --none) "
        )
    )
    newer.chmod(0o755)
    newer.replace(machine.host.server)
    look(served)
    until(lambda: "installed b11702" in served.states[-1][1], "the status says so", served)
    assert served.states[-1][1].endswith("; running b11669, installed b11702")
    assert served.events.count("engine-replaced") == 1
    assert child_of(served) == child, "nothing is restarted for it"
    planned = served.events.count("planned")
    os.kill(child, signal.SIGKILL)
    until(lambda: served.events.count("planned") == planned + 1, "a plan of the new engine", served)
    until(lambda: served.state == "ready", "ready again", served)
    until(lambda: "installed" not in served.states[-1][1], "the new child is of what is installed", served)
    assert served.end(signal.SIGTERM) == 0


def test_an_upgraded_driver_leaves_the_child_alone_until_it_dies(machine: Machine) -> None:
    machine.host.installed("550.54", "550.54")
    served = machine.serve()
    child = child_of(served)
    machine.host.installed("550.54", "560.35.3")
    look(served)
    until(lambda: "driver-upgraded" in served.events, "a record", served)
    until(lambda: served.states[-1][1].endswith("; NVIDIA driver was upgraded: reboot (or reload the module)"), "status", served)
    look(served)
    assert child_of(served) == child
    os.kill(child, signal.SIGKILL)
    assert served.process.wait(30) == 69, "for systemd to try again"
    assert served.events.count("driver-upgraded") == 1
    text = served.states[-1][1]
    assert "NVIDIA driver was upgraded" in text and "560.35.3" in text and "reboot" in text
    assert served.events.count("planned") == 1, "no plan, and none for the CPU"


def test_a_start_under_an_upgraded_driver_says_so(machine: Machine) -> None:
    machine.host.have("fail nvmlInitWithFlags 18 -1")
    served = Served(machine.host, machine.ledger, "phi4", machine.model)
    machine.models.append(served)
    assert served.process.wait(60) == 69
    until(lambda: "refused" in served.events, "the refusal is read", served)
    assert "NVIDIA driver was upgraded" in served.messages[-1] and "reboot" in served.messages[-1]


def test_a_card_that_falls_off_the_bus_ends_the_child_and_the_service_with_69(machine: Machine) -> None:
    served = machine.serve()
    until(lambda: len(served.states) > 3, "it settles", served)
    machine.host.have("xid 1 0 31")
    look(served)
    machine.host.have(LOST, "xid 1 0 31", "xid 2 0 79")
    assert served.process.wait(60) == 69
    assert "device-fault" in served.events and served.events.count("child-exited") == 1
    assert any("Xid 79 (it has fallen off the bus)" in message for message in served.messages)
    assert not any("Xid 31" in message for message in served.messages), "a program's own fault"
    text = served.states[-1][1]
    assert "is lost" in text and "reboot" in text, "which, and what to do"
    machine.host.have()
    assert machine.serve().end(signal.SIGTERM) == 0, "the next start has it back"


def test_without_systemd_the_card_is_waited_for(machine: Machine) -> None:
    served = machine.serve(parks=True)
    machine.host.have(LOST, "xid 1 0 79")
    until(lambda: served.state == "waiting" and "waiting for a device" in served.states[-1][1], "parked", served)
    assert served.events.count("waiting-for-device") == 1
    machine.host.have()
    until(lambda: served.state == "ready", "serves again by itself", served)
    assert not {"gave-up", "no-device"} & set(served.events)
    assert served.end(signal.SIGTERM) == 0
