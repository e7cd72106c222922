"""A llama-server that answers health checks and computes nothing is found, ended and replaced; a slow one is not."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.models import build_tiny
from tests.system.conftest import MODELS, Bed, chat, wait_for

HANG_S = 3

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def slow() -> Path:
    """A model that a CPU computes some hundred tokens of a second."""
    path = MODELS / "slow.gguf"
    if not path.exists():
        build_tiny(path, layers=4, embd=1024, heads=16, kv_heads=16, ff=1024)
        path.chmod(0o644)
    return path


def serve(bed: Bed, model: Path, hang_s: float = HANG_S) -> str:
    """Small batches, so that ten of them are soon over."""
    placement = "allow_cpu = true\nthreads = 2\nbatch = 64\nubatch = 64"
    extra = f"[limits]\nhang_s = {hang_s}\n[placement]\n{placement}"
    url = bed.define("slow", model=model, vulkan=False, extra=extra)
    bed.ctl("start", "llamad@slow")
    return url


class Stream(threading.Thread):
    """A long streamed answer; `events` grows, `done` when it has ended, however that was."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.events: list[str] = []
        self._address = url.removeprefix("http://")

    def run(self) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=120)
        body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 7900, "stream": True}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        for line in connection.getresponse():
            if line.startswith(b"data: "):
                self.events.append(line[6:].decode().strip())


@contextmanager
def frozen_compute(pid: int) -> Iterator[None]:
    words = [sys.executable, "-m", "tests.support.freeze", str(pid), "2"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as tracer:
        assert tracer.stdout is not None
        assert tracer.stdout.readline().startswith("frozen"), "threads could not be stopped"
        try:
            yield
        finally:
            tracer.kill()


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    yield


@pytest.mark.parametrize(("how", "health"), [(frozen_compute, "health good"), (stopped, "health not answered")])
def test_a_server_that_hangs_is_replaced_and_its_stream_says_why(
    bed: Bed, tiny: Path, how: Callable[[int], contextmanager[None]], health: str  # type: ignore[type-arg]
) -> None:
    url = serve(bed, tiny)
    child = bed.child_pid("slow")
    stream = Stream(url)
    stream.start()
    wait_for(lambda: len(stream.events) > 20, "the stream runs", 60, 0.005)
    since = time.monotonic()
    with how(child):
        assert stream.is_alive(), "it was in the middle of its answer"
        wait_for(lambda: bed.events("slow", "child-exited"), "the hang is found", 240, 0.2)
        found_s = time.monotonic() - since
        stream.join(20)
    bound_s = float(bed.events("slow", "no-progress")[0]["MESSAGE"].partition("bound ")[2].partition(" s")[0])
    assert bound_s >= HANG_S and bound_s - 2 <= found_s <= 2 * bound_s + 5
    assert health in bed.events("slow", "no-progress")[0]["MESSAGE"]
    died = bed.events("slow", "child-exited")
    assert [record["LLAMAD_DEATH"] for record in died] == ["hang"]
    assert json.loads(stream.events[-1])["error"]["code"] == "hang"
    wait_for(lambda: len(bed.events("slow", "ready")) == 2, "served again", 120)
    assert chat(url)[0] == 200
    assert bed.child_pid("slow") != child


def test_work_that_is_only_slow_is_left_alone(bed: Bed, slow: Path) -> None:
    """A long prompt, then a long answer that comes in one piece at its end."""
    url = serve(bed, slow, hang_s=1)
    since = time.monotonic()
    words = "word " * 400
    address = url.removeprefix("http://")
    body = {"messages": [{"role": "user", "content": words}], "max_tokens": 150}
    connection = http.client.HTTPConnection(address, timeout=600)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 200
    usage = json.loads(answer.read())["usage"]
    assert usage["prompt_tokens"] > 2000 and usage["completion_tokens"] == 150
    assert time.monotonic() - since > 1, "slower than the bound that is written"
    assert not bed.events("slow", "no-progress") and not bed.events("slow", "child-exited")
