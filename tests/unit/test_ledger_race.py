"""Many models at once on two GPUs that are not there: real planners, a real ledger, real deaths.

A checker looks all the time: with the ledger and the driver held still, what was promised and is not yet taken must
fit into what is free. Whatever the plans were, a driver that has to refuse bytes is a failure.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llamad.ledger.lease import Lease, Phase
from llamad.ledger.ledger import Ledger
from llamad.service.turn import RETRY_S
from tests.support.gpu_host import GIB, GpuHost, Served, available
from tests.support.models import LLAMA31_8B, LLAMA32_3B, build_hollow

pytestmark = [
    pytest.mark.skipif(not available(), reason="needs gcc and nvidia-ml-py"),
    pytest.mark.timeout(300),
]


class Bench:
    """A host, its ledger, the models, and the checker beside them."""

    def __init__(self, folder: Path) -> None:
        self.host = GpuHost(folder / "host")
        self.folder = folder / "ledger"
        self.folder.mkdir()
        self.small = build_hollow(self.host.folder / "small.gguf", LLAMA32_3B)
        self.large = build_hollow(self.host.folder / "large.gguf", LLAMA31_8B)
        self.models: dict[str, Served] = {}
        self.faults: list[str] = []
        self.looks = 0
        self.most_loading = 0
        self._observer = Ledger(self.folder, "checker")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._check, daemon=True)
        self._thread.start()

    def serve(self, name: str, model: Path | None = None, **keys: object) -> Served:
        self.models[name] = Served(self.host, self.folder, name, model or self.small, **keys)
        return self.models[name]

    def leases(self) -> dict[str, Lease]:
        with self._observer.transaction(20.0) as transaction:
            return {lease.name: lease for lease in transaction.others}

    def _check(self) -> None:
        while not self._stop.wait(0.01):
            try:
                with self._observer.transaction(20.0) as transaction, self.host.lock:
                    self._look(transaction.others)
            except Exception as error:
                self.faults.append(repr(error))
                raise

    def _look(self, leases: list[Lease]) -> None:
        self.looks += 1
        open_ones = [lease for lease in leases if lease.phase in (Phase.PROMISED, Phase.LOADING)]
        self.most_loading = max(self.most_loading, len(open_ones))
        for uuid, gpu in self.host.gpus.items():
            # What a model's own llama-server, that was only asked, gives back in a moment is its own as well.
            own = {lease.name: gpu.held.get(lease.name, 0) + gpu.returning.get(lease.name, 0) for lease in open_ones}
            left = sum(max(0, lease.promised.get(uuid, 0) - own[lease.name]) for lease in open_ones)
            if left > gpu.free:
                self.faults.append(f"{left} promised, {gpu.free} free on {uuid}: {open_ones}")

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
        end_s = time.monotonic() + timeout_s
        while not condition():
            states = {name: model.states[-1:] or model.messages for name, model in self.models.items()}
            assert time.monotonic() < end_s, f"not within {timeout_s} s: {what}; {states}; {self.faults}"
            time.sleep(0.02)

    def those(self, state: str) -> list[str]:
        return [name for name, model in self.models.items() if model.state == state]

    def states_told(self) -> list[str]:
        return [name for name, model in self.models.items() if model.states]

    def settled(self) -> bool:
        """Every model is ready, or waits for memory."""
        living = [model for model in self.models.values() if model.process.poll() is None]
        return all(
            model.state == "ready" or (model.state == "waiting" and "waiting for" in model.states[-1][1]) for model in living
        ) and all(lease.phase in (Phase.SETTLED, Phase.WAITING) for lease in self.leases().values())

    def close(self) -> None:
        self._stop.set()
        self._thread.join(30)
        for model in self.models.values():
            model.process.kill()
        for model in self.models.values():
            model.process.wait(30)
            if model.process.stdout:
                model._reader.join(30)
                model.process.stdout.close()
        self.host.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()
    assert not made.faults and made.looks > 10
    assert not made.host.refused, "a driver had to refuse what was promised"


def _after_a_retry(bench: Bench) -> list[str]:
    time.sleep(RETRY_S + 1.0)
    return bench.those("ready")


def test_twenty_at_once_share_two_cards_and_all_get_their_turn(bench: Bench) -> None:
    choose = random.Random(20)
    bench.host.take_foreign("GPU-1", 3 * GIB)
    names = [f"model{n}" for n in range(20)]
    for name in names:
        bench.serve(name, choose.choice([bench.small, bench.small, bench.large]), start_wait_s=200.0)
    bench.until(lambda: len(bench.states_told()) == 20 and bench.settled(), "the first ones", 120.0)
    ready = bench.those("ready")
    assert len(ready) >= 6 and bench.those("waiting"), "or nobody was in anybody's way"
    for _ in range(6):  # one that had looked a moment before may still find room at its next look
        before, ready = ready, _after_a_retry(bench)
        if before == ready:
            break
    assert before == ready, "they never come to rest"
    served = set(ready)
    while len(served) < 20:
        victim = bench.models.pop(choose.choice(bench.those("ready")))
        if choose.random() < 0.5:
            victim.end(signal.SIGKILL)
            bench.until(lambda gone=victim.name: gone not in bench.leases(), "the end of a killed lease", 1.0)
        else:
            assert victim.end(signal.SIGTERM) == 0
            assert victim.name not in bench.leases()
        bench.until(bench.settled, "the next ones")
        served |= set(bench.those("ready"))
        if not bench.those("waiting"):
            break
    lost = [(model.states, model.messages) for name, model in bench.models.items() if name not in served]
    assert not lost and len(served) == 20


def test_owners_that_are_killed_at_any_moment_leave_nothing(bench: Bench) -> None:
    """While they take the name, ask, are promised, load, or are ready."""
    choose = random.Random(3)
    for _ in range(12):
        models = [bench.serve(f"m{n}", pause_s=0.02) for n in range(2)]
        time.sleep(choose.uniform(0.1, 1.5))
        for model in models:
            model.process.kill()
        for model in models:
            model.process.wait(10)
        bench.until(lambda: not bench.leases(), "the end of the leases", 1.0)
    assert {path.name for path in bench.folder.iterdir()} <= {".ledger", ".departed"}


def test_models_of_one_file_system_load_one_after_another(bench: Bench) -> None:
    for n in range(4):
        bench.serve(f"m{n}", parallel_loads=1, pause_s=0.03)
    bench.until(lambda: len(bench.those("ready")) == 4, "all four")
    assert bench.most_loading == 1
    texts = [text for model in bench.models.values() for _, text in model.states]
    assert any("waiting for its turn to load, after m" in text for text in texts)


def test_a_model_whose_server_is_killed_gets_its_own_memory_back(bench: Bench) -> None:
    """Though another one has been waiting for it."""
    models = [bench.serve(f"m{n}", bench.large, split_mode="none") for n in range(6)]
    bench.until(lambda: len(bench.those("ready")) == 6, "six on two cards")
    late = bench.serve("late", bench.large, split_mode="none")
    bench.until(lambda: late.state == "waiting" and "held by" in late.states[-1][1], "one too many")
    pid = bench.leases()["m3"].pids[1]
    os.kill(pid, signal.SIGKILL)
    bench.until(lambda: len([s for s, _ in models[3].states if s == "ready"]) == 2,
                "m3 again")  # fmt: skip
    assert late.state == "waiting"
    began_s = time.monotonic()
    assert late.end(signal.SIGTERM) == 0, "a stop ends the wait"
    assert time.monotonic() - began_s < 2.0


def test_a_wait_that_is_too_long_ends_with_75(bench: Bench) -> None:
    for n in range(6):
        bench.serve(f"m{n}", bench.large, split_mode="none")
    bench.until(lambda: len(bench.those("ready")) == 6, "six on two cards")
    late = bench.serve("late", bench.large, split_mode="none", start_wait_s=1.0)
    assert late.process.wait(30) == 75, late.messages
    bench.until(lambda: "gave-up-waiting" in late.events, "the event")
    assert late.events.count("waiting-for-memory") == 1
