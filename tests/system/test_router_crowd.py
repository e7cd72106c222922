"""The router's promises under a crowd: memory for fewer models than are asked for, a unit that takes its model and gives
it back, a llama-server that dies under many streams."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.models import build_tiny
from tests.support.router_unit import Promises, Router, define, host_memory_of, routing
from tests.support.streams import Streams, stream
from tests.system.conftest import MODELS, Bed, post, run, wait_for

MEMORY_MIB = 4096
HALF = 'cache_ram = "1400MiB"\n'
"""Two such models fit into the memory, with their margins of 256 MiB; three do not."""
WHOLE = 'cache_ram = "2400MiB"\n'
"""One does."""


@pytest.fixture
def router(bed: Bed) -> Iterator[Router]:
    with host_memory_of(MEMORY_MIB), routing(bed) as made:
        yield made


@pytest.fixture(scope="module")
def small() -> Path:
    """A tenth of the other one: what is tested is not how fast the machine computes."""
    path = MODELS / "crowd.gguf"
    build_tiny(path, layers=2, embd=64)
    path.chmod(0o644)
    return path


@pytest.fixture
def promises() -> Iterator[Promises]:
    made = Promises()
    made.start()
    yield made
    made.stop()


def at_s(record: dict[str, Any]) -> float:
    """When it was written, on the clock of time.monotonic."""
    return int(record["_SOURCE_MONOTONIC_TIMESTAMP"] if "_SOURCE_MONOTONIC_TIMESTAMP" in record else record["__MONOTONIC_TIMESTAMP"]) / 1e6


def loads_s(router: Router) -> list[float]:
    """How long each load took, from its start to ready."""
    since: dict[str, float] = {}
    found = []
    for record in router.bed.journal("_SYSTEMD_UNIT=llamad.service"):
        event, name = record.get("LLAMAD_EVENT"), record.get("LLAMAD_MODEL", "")
        if event == "loading":
            since[name] = at_s(record)
        elif event == "ready":
            found.append(at_s(record) - since.pop(name))
    return found


@pytest.mark.timeout(300)
def test_a_hundred_clients_of_three_models_where_memory_holds_two(
    router: Router, promises: Promises, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each client asks one model after the other, so that each model is wanted again when it has gone."""
    drain_s = 5.0
    names = ("one", "two", "three")
    for name in names:
        limits = f"[limits]\ndrain_s = {drain_s}\n"
        define(router.bed, name, model=small, vulkan=False, extra=f"[server]\n{HALF}{limits}")
    router.start("resident_s = 0")
    address = urlsplit(router.url).netloc
    waits_s: list[float] = []

    def client(number: int) -> list[str]:
        ends = []
        for turn in range(len(names)):
            began_s = time.monotonic()
            ended = stream(address, 4, lambda: waits_s.append(time.monotonic() - began_s), model=names[(number + turn) % 3])  # noqa: B023
            ends.append(ended)
        return ends

    with ThreadPoolExecutor(100) as pool:
        outcomes = Counter(end for ends in pool.map(client, range(100)) for end in ends)
    loads = loads_s(router)
    bound_s = 2 * (drain_s + max(loads))
    promises.stop()
    with capsys.disabled():
        print(
            f"\n100 clients, 3 models, memory for 2: {outcomes.total()} answers, {len(loads)} loads of {min(loads):.2f} to "
            f"{max(loads):.2f} s; longest wait {max(waits_s):.2f} s of {bound_s:.2f} s; at most "
            f"{promises.most_bytes >> 20} of {MEMORY_MIB} MiB promised, {promises.copies} looks"
        )
    assert outcomes == {"done": 300}, outcomes
    assert max(waits_s) <= bound_s
    assert MEMORY_MIB * 3 // 4 << 20 < promises.most_bytes <= MEMORY_MIB << 20
    assert max(map(len, promises.together)) == 2
    assert len(loads) > len(names), "one that had gone came back"


@pytest.mark.timeout(200)
def test_a_unit_wins_and_gives_back_under_sixteen_clients_and_nothing_is_lost(
    router: Router, promises: Promises, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    define(router.bed, "phi4", model=small, vulkan=False, extra=f"[server]\n{WHOLE}")
    router.start("unit_grace_s = 30")
    assert router.ask("phi4")[0] == 200
    clients = Streams(router.url, 16, 4, model="phi4")
    clients.more(20)
    begun, ends = threading.Event(), []
    address = urlsplit(router.url).netloc
    long = threading.Thread(target=lambda: ends.append(stream(address, 1500, begun.set, model="phi4")), daemon=True)
    long.start()
    assert begun.wait(60)
    router.bed.ctl("start", "llamad@phi4")
    assert "llamad@phi4 takes it over" in router.events("unloading")[0]["LLAMAD_CAUSE"]
    long.join(60)
    assert ends == ["done"], "what was in flight is finished first"
    router.until("phi4", "forwarded")
    clients.more(40)
    assert not run("pgrep", "-f", "router/phi4/engine", check=False).stdout, "it has no llama-server of the router's"
    router.bed.ctl("restart", "llamad@phi4")
    clients.more(40)
    router.bed.ctl("enable", "llamad@phi4")
    router.bed.ctl("stop", "llamad@phi4")
    router.until("phi4", "awaited")
    router.bed.ctl("disable", "llamad@phi4")
    router.until("phi4", "ready")
    clients.more(40)
    outcomes = clients.end()
    promises.stop()
    with capsys.disabled():
        print(
            f"\n16 clients, a unit starts, restarts, stops, is disabled: {outcomes.total()} answers, longest wait "
            f"{max(clients.waits_s):.2f} s, at most {promises.most_bytes >> 20} MiB promised, {promises.copies} looks"
        )
    assert outcomes.keys() == {"done"}, outcomes
    assert promises.together == {(), ("phi4",)}
    assert 2400 << 20 < promises.most_bytes < 2800 << 20, "one model's worth"


ON_CPU = "[placement]\nallow_cpu = true\ngpu_layers = 0\nthreads = 1\nparallel = 32\n"
STREAMS, QUEUED, TOKENS = 32, 8, 120


@pytest.mark.timeout(300)
@pytest.mark.parametrize("through", ["router", "unit"])
def test_a_death_under_thirty_two_streams(router: Router, through: str) -> None:
    """By their bounds (a byte of the body may be a token) they take most of the cache: who comes then is held."""
    url = define(router.bed, "phi4", vulkan=False, placement=f"{ON_CPU}context = 8192\n")
    if through == "router":
        router.start()
        url = router.url
        assert router.ask("phi4")[0] == 200
    else:
        router.bed.ctl("start", "llamad@phi4")
    begun = threading.Semaphore(0)
    address = urlsplit(url).netloc
    child = int(run("pgrep", "-f", "llama-server.*--alias phi4").stdout.split()[-1])
    with ThreadPoolExecutor(STREAMS + QUEUED) as pool:
        os.kill(child, signal.SIGSTOP)  # all are to begin together, and none to be done before the end
        streams = [pool.submit(stream, address, TOKENS, begun.release, model="phi4") for _ in range(STREAMS)]
        wait_for(lambda: to_the_child() >= STREAMS, "all are with llama-server")
        os.kill(child, signal.SIGCONT)
        for _ in range(STREAMS):
            assert begun.acquire(timeout=60)
        os.kill(child, signal.SIGSTOP)
        body = {"model": "phi4", "prompt": [10, 11], "max_tokens": TOKENS}
        queued = [pool.submit(post, f"{url}/v1/completions", body, 120) for _ in range(QUEUED)]
        wait_for(lambda: connected(address) >= STREAMS + QUEUED, "more have come")
        os.kill(child, signal.SIGKILL)
        assert Counter(one.result(120) for one in streams) == {"error: killed server_error": STREAMS}
        assert [one.result(120)[0] for one in queued] == [200] * QUEUED


def to_the_child() -> int:
    """Connections at llama-server's end, those that it has not accepted yet among them."""
    return Path("/proc/net/unix").read_text().count("/phi4/engine/llama.sock") - 1


def connected(address: str) -> int:
    """Connections at llamad's end."""
    port = f":{int(address.rpartition(':')[2]):04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(port) and row[3] == "01" for row in rows)


@pytest.mark.timeout(300)
def test_sixteen_clients_that_would_overfill_the_cache_of_a_model_that_is_not_loaded(router: Router, small: Path) -> None:
    """They come before it is known what they will share."""
    define(router.bed, "phi4", model=small, vulkan=False, placement=f"{ON_CPU}context = 4096\n")
    router.start()
    body = {"model": "phi4", "prompt": "word " * 60, "max_tokens": 60}  # 300 tokens: all together 5,760
    with ThreadPoolExecutor(16) as pool:
        assert [*pool.map(lambda _: post(f"{router.url}/v1/completions", body)[0], range(16))] == [200] * 16


ALONE = "[placement]\nallow_cpu = true\ngpu_layers = 0\nthreads = 1\nparallel = 1\ncontext = 8192\n"
LONG_PROMPT, BATCHES = [10 + place % 200 for place in range(3072)], 3072 // 512
POLL_S = 1.0
"""So often llama-server looks whether a client is there still, where it has nothing to send to it."""


def event_s(router: Router, event: str, name: str) -> float:
    """When the latest such event of a model was."""
    return max(at_s(record) for record in router.events(event) if record["LLAMAD_MODEL"] == name)


@pytest.mark.timeout(300)
def test_a_busy_model_makes_room_within_its_bounds_and_a_pinned_one_never(router: Router, small: Path) -> None:
    resident_s, drain_s = 2.0, 1.0
    define(router.bed, "pinned", model=small, head='start = "always"', vulkan=False,
           extra=f'[server]\n{HALF}[idle]\nkeep_alive = "1s"\n')  # fmt: skip
    define(router.bed, "one", vulkan=False, placement=ALONE, extra=f"[server]\n{HALF}[limits]\ndrain_s = {drain_s}\n")
    define(router.bed, "two", model=small, vulkan=False, extra=f"[server]\n{HALF}")
    router.start(f"resident_s = {resident_s}")
    router.until("pinned", "ready")
    begun = threading.Event()
    address = urlsplit(router.url).netloc
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(stream, address, 8000, begun.set, model="one")
        assert begun.wait(60)
        began_s = time.monotonic()
        assert router.ask("two", timeout=120)[0] == 200
        waited_s = time.monotonic() - began_s
        assert busy.result(60) == "error: unloaded server_error"
    load_s = max(loads_s(router))
    ready_s, left_s = event_s(router, "ready", "one"), event_s(router, "unloading", "one")
    least_s = max(resident_s, 3 * load_s)
    assert max(resident_s, 2 * load_s) <= left_s - ready_s, "it stays for as long as it is to"
    assert waited_s <= least_s + 2 * (drain_s + load_s), f"two waited {waited_s:.1f} s; loads took {load_s:.1f} s"
    assert router.states() == {"pinned": "ready", "one": "unloaded", "two": "ready"}
    assert {record["LLAMAD_MODEL"] for record in router.events("unloading")} == {"one"}


@pytest.mark.timeout(300)
def test_a_long_prompt_keeps_its_model_to_the_first_byte_and_is_dropped_with_its_client(router: Router, small: Path) -> None:
    define(router.bed, "long", vulkan=False, placement=ALONE, extra=f"[server]\n{WHOLE}")
    define(router.bed, "other", model=small, vulkan=False, extra=f"[server]\n{WHOLE}")
    router.start("resident_s = 0")
    address = urlsplit(router.url).netloc
    first_s: list[float] = []
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(stream, address, 4, lambda: first_s.append(time.monotonic()), model="long", prompt=LONG_PROMPT)
        router.until("long", "ready")
        assert router.ask("other", timeout=200)[0] == 200
        assert read.result(60) == "done"
    ready_s, left_s = event_s(router, "ready", "long"), event_s(router, "unloading", "long")
    assert first_s[0] - ready_s > 3 * loads_s(router)[0], "it would have gone before, or the test says nothing"
    assert left_s > first_s[0] - 0.05

    assert router.ask("long", timeout=200)[0] == 200
    prompt_s = first_s[0] - ready_s
    body = {"model": "long", "prompt": LONG_PROMPT, "max_tokens": 4, "stream": True, "return_progress": True,
            "cache_prompt": False}  # fmt: skip
    client = http.client.HTTPConnection(address, timeout=120)
    client.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    with client.getresponse() as answer:
        line = answer.readline()
    client.close()
    left_s = time.monotonic()
    assert b"prompt_progress" in line, line
    assert router.ask("long", timeout=200)[0] == 200
    answered_s = time.monotonic()
    lines = router.bed.journal("SYSLOG_IDENTIFIER=llama-server@long")
    dropped_s = max(at_s(record) for record in lines if "cancel task" in str(record["MESSAGE"]))
    batch_s = prompt_s / BATCHES
    assert dropped_s - left_s <= POLL_S + 2 * batch_s, "llama-server hears of it with its next look"
    assert answered_s - dropped_s <= 2 * batch_s + 0.5, f"its slot is free after a micro-batch, of {batch_s:.2f} s"
