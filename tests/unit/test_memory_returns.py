"""A GPU that is not there: contexts grow when its memory comes back, and what the driver shows is learned.

Planner, ledger, NVML and supervisor are real; a minute takes a tenth of a second.
"""

from __future__ import annotations

import json
import signal
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llamad.units import MIB
from tests.support.gpu_host import GIB, GpuHost, Served, available
from tests.support.models import LLAMA32_3B, build_hollow

pytestmark = [
    pytest.mark.skipif(not available(), reason="needs gcc and nvidia-ml-py"),
    pytest.mark.timeout(300),
]
UUID = "GPU-0"
FASTER = 600.0


class Room:
    """One GPU, its ledger, and models on it."""

    def __init__(self, folder: Path) -> None:
        self.host = GpuHost(folder / "host", gpus=1)
        self.ledger = folder / "ledger"
        self.ledger.mkdir()
        self.model = build_hollow(self.host.folder / "small.gguf", LLAMA32_3B)
        self.served: list[Served] = []

    def serve(self, name: str, **words: object) -> Served:
        served = Served(self.host, self.ledger, name, self.model, context="auto", faster=FASTER, **words)
        self.served.append(served)
        return served

    def learned(self, name: str) -> dict[str, object]:
        file = self.host.folder / name / "state" / "learned.toml"
        return tomllib.loads(file.read_text()) if file.exists() else {"measured": []}

    def close(self) -> None:
        for served in self.served:
            served.process.kill()
            served.process.wait(30)
            if served.process.stdout:
                served._reader.join(30)
                served.process.stdout.close()
        self.host.close()


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    made = Room(tmp_path)
    yield made
    made.close()


def until(condition: Callable[[], object], served: Served, timeout_s: float = 60.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, f"{served.states} {served.messages}"
        time.sleep(0.02)


def figures(served: Served, event: str) -> list[str]:
    pairs = list(zip(served.events, served.messages, strict=False))
    return [message for name, message in pairs if name == event]


def told(served: Served) -> str:
    """For who looks into a failure."""
    return "\n".join(map(": ".join, zip(served.events, served.messages, strict=False)))


def contexts(served: Served) -> list[int]:
    return [int(text) for text in figures(served, "context")]


def readies(served: Served) -> int:
    return [state for state, _ in served.states].count("ready")


def test_a_context_comes_back_with_the_memory_and_stays_where_it_is_else(room: Room) -> None:
    room.host.take_foreign(UUID, 18 * GIB)
    served = room.serve("tiny")
    until(lambda: readies(served) == 1, served)
    assert len(contexts(served)) == 1, told(served)
    (small,) = contexts(served)
    assert 4096 < small < 40_000
    time.sleep(25 * 60 / FASTER)
    assert contexts(served) == [small], "nothing has changed"
    room.host.take_foreign(UUID, -GIB // 4)
    time.sleep(25 * 60 / FASTER)
    assert contexts(served) == [small], "too little for a restart"
    room.host.take_foreign(UUID, -10 * GIB)
    until(lambda: readies(served) == 2, served)
    assert contexts(served)[-1] > 2 * small
    assert served.events.count("context-grows") == 1
    assert any("growing the context from" in text for _, text in served.states)
    assert any(f"grown from {small}" in text for _, text in served.states)
    time.sleep(25 * 60 / FASTER)
    assert len(contexts(served)) == 2
    assert served.end(signal.SIGTERM) == 0 and not room.host.refused


def test_what_others_take_at_the_last_moment_gives_the_former_context_back_once(room: Room) -> None:
    """Between the decision and the new plan everything is taken that is free, and given back when it serves again."""
    room.host.take_foreign(UUID, 18 * GIB)
    served = room.serve("tiny")
    until(lambda: readies(served) == 1, served)
    room.host.take_foreign(UUID, -10 * GIB)
    spare_bytes = room.host.gpus[UUID].free  # beside what the model holds
    taken: list[int] = []

    def take_at_the_last_moment() -> None:
        if served.state == "replacing" and not taken:
            taken.append(spare_bytes - GIB // 8)
            room.host.take_foreign(UUID, taken[0])

    served.on_change = take_at_the_last_moment
    until(lambda: readies(served) == 2, served)
    room.host.take_foreign(UUID, -taken[0])
    time.sleep(25 * 60 / FASTER)
    small, again = contexts(served)
    assert again == small and served.events.count("context-grows") == 1, "it is not tried again and again"
    room.host.take_foreign(UUID, -6 * GIB)
    until(lambda: readies(served) == 3, served)
    assert contexts(served)[-1] > 2 * small, "a quarter more memory is another thing"
    assert served.end(signal.SIGTERM) == 0 and not room.host.refused


def test_the_driver_and_the_growth_with_use_are_measured_and_the_next_start_plans_with_them(room: Room) -> None:
    served = room.serve("tiny", overhead_bytes=300 * MIB, used=True)
    until(lambda: readies(served) == 1, served)
    until(lambda: room.learned("tiny")["measured"], served)
    (row,) = room.learned("tiny")["measured"]  # type: ignore[misc]
    assert (row["device"], row["used"]) == (UUID, False)  # type: ignore[index]
    assert row["loaded_bytes"] == pytest.approx(300 * MIB, abs=MIB)  # type: ignore[index]
    room.host.grow("tiny", UUID, 48 * MIB)
    until(lambda: room.learned("tiny")["measured"][0]["used"], served)  # type: ignore[index]
    (row,) = room.learned("tiny")["measured"]  # type: ignore[misc]
    assert row["peak_bytes"] - row["loaded_bytes"] == pytest.approx(48 * MIB, abs=MIB)  # type: ignore[index]
    assert served.end(signal.SIGTERM) == 0
    again = room.serve("tiny", overhead_bytes=300 * MIB)
    until(lambda: readies(again) == 1, again)
    before, after = (json.loads(figures(one, "overhead")[0])[0] for one in (served, again))
    assert after == row["peak_bytes"] < before  # type: ignore[index]
    assert again.end(signal.SIGTERM) == 0 and not room.host.refused


def test_nothing_grows_under_a_driver_that_was_upgraded(room: Room) -> None:
    """A new llama-server could not have the GPU: the one that runs is better than none."""
    room.host.take_foreign(UUID, 18 * GIB)
    served = room.serve("tiny")
    until(lambda: readies(served) == 1, served)
    room.host.installed("550.54", "560.10")
    room.host.take_foreign(UUID, -10 * GIB)
    time.sleep(25 * 60 / FASTER)
    assert len(contexts(served)) == 1 and served.state == "ready", told(served)
    room.host.installed("560.10", "560.10")
    until(lambda: readies(served) == 2, served)
    assert served.end(signal.SIGTERM) == 0


def test_nobody_grows_while_another_waits_for_memory(room: Room) -> None:
    room.host.take_foreign(UUID, 14 * GIB)
    served = room.serve("first")
    until(lambda: readies(served) == 1, served)
    waiting = Served(room.host, room.ledger, "second", room.model, context=40_960, start_wait_s=600.0)
    room.served.append(waiting)
    until(lambda: waiting.state == "waiting" and "waiting for" in waiting.states[-1][1], waiting)
    room.host.take_foreign(UUID, -4 * GIB)
    time.sleep(25 * 60 / FASTER)
    assert len(contexts(served)) == 1, "what comes back is for who waits"
    assert waiting.end(signal.SIGTERM) == 0
    until(lambda: readies(served) == 2, served)
    assert served.end(signal.SIGTERM) == 0 and not room.host.refused
