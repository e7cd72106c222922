"""`llamad bench` and `llamad tune` on the real llama-server: against llama-bench, and as they are used.

One thread each: several wait for each other at every step, and a neighbour of the machine then decides the speed.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.models import build_tiny
from tests.system.conftest import ETC, MODELS, Bed, run, wait_for

ONE_THREAD = "[placement]\nallow_cpu = true\nthreads = 1\nthreads_batch = 1\nparallel = 1\nflash_attention = true\n"
TURNS = 21
CLOSE = 0.10
GENERATE = 32


def bench(name: str, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("llamad", "bench", name, "--json", *words, timeout=300).stdout)
    return found


def llama_bench(model: Path, kind: str, prompt_tokens: int) -> list[float]:
    """Tokens a second of reading (`-p`) or generating (`-n`) with llama.cpp's own program of the same build."""
    sizes = ["-p", str(prompt_tokens), "-n", "0"] if kind == "prompt" else ["-p", "0", "-n", str(GENERATE), "-d", str(prompt_tokens)]
    words = ["llama-bench", "-m", str(model), *sizes, "-t", "1", "-ngl", "0", "-fa", "1", "-r", "3", "-o", "json"]
    (found,) = json.loads(run(*words).stdout)
    return [float(value) for value in found["samples_ts"]]


@pytest.mark.alone
@pytest.mark.timeout(600)
@pytest.mark.parametrize("size", ["tiny", "mid"])
def test_it_agrees_with_llama_bench(bed: Bed, size: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Medians of runs in turns, until they are close: what else happens on the machine moves each by a third.

    Not the generation of the tiny model, which fits into a core's cache: there a token takes half a millisecond, and what
    llama-server itself adds for a streamed token, which llama-bench does not measure, is a third of that. Somewhat larger
    ones are at the mercy of who shares the last cache with us. `mid` (77 MB) comes from memory.
    """
    model = bed.tiny if size == "tiny" else build_tiny(MODELS / "mid.gguf", layers=4, embd=1024, heads=16)
    prompt_tokens, kinds = (512, ["prompt"]) if size == "tiny" else (128, ["prompt", "generated"])
    bed.define("phi4", model=model, vulkan=False, extra=ONE_THREAD + "context = 1024\n")
    bed.ctl("start", "llamad@phi4")
    words = ("--prompt", str(prompt_tokens), "--generate", str(GENERATE), "--repeats", "3", "--concurrency", "1")
    ratios: dict[str, list[float]] = {kind: [] for kind in kinds}
    medians: dict[str, float] = {}
    for turn in range(TURNS):
        point = bench("phi4", *words)["points"][0]
        for kind, found in ratios.items():
            theirs = statistics.median(llama_bench(model, kind, prompt_tokens))
            found.append(point[f"{kind}_tokens_s"]["median"] / theirs)
            if turn >= 2 and abs(statistics.median(found) - 1) <= CLOSE:
                medians.setdefault(kind, statistics.median(found))
        if len(medians) == len(ratios):
            break
    with capsys.disabled():
        print(f"\n{size}: llamad bench / llama-bench:", {kind: f"{median:.3f}" for kind, median in medians.items()})
    assert medians.keys() == ratios.keys(), ratios


def test_a_stopped_model_is_measured_in_an_instance_that_leaves_nothing(bed: Bed, tmp_path: Path) -> None:
    bed.define("phi4", vulkan=False, extra=ONE_THREAD + "context = 1024\n")
    out = tmp_path / "result.json"
    words = ("--prompt", "128", "--generate", "16", "--repeats", "2", "--concurrency", "1")
    first = run("llamad", "bench", "phi4", *words, "-o", str(out))
    assert "in an instance of its own" in first.stdout
    assert json.loads(out.read_text())["served_by"] == "temporary"
    assert bed.show("llamad@phi4", "ActiveState") == "inactive"
    assert run("pgrep", "-f", "llama-server", check=False).stdout == ""
    assert json.loads(run("llamad", "status", "--json").stdout)["leases"] == []
    second = bench("phi4", *words)
    assert second["previous"]["measured_at"] == json.loads(out.read_text())["measured_at"]
    assert second["previous"]["differs"] == []


def test_a_running_model_is_measured_with_its_key_and_others_are_noticed(bed: Bed) -> None:
    keys = ETC / "phi4.keys"
    keys.write_text("sesame\n")
    keys.chmod(0o640)
    run("chgrp", "_llamad", str(keys))
    url = bed.define("phi4", vulkan=False, head=f'api_keys_file = "{keys}"', extra=ONE_THREAD + "context = 1024\n")
    bed.ctl("start", "llamad@phi4")
    words = ("--prompt", "128", "--generate", "16", "--repeats", "3", "--concurrency", "1")
    alone = bench("phi4", *words)
    assert (alone["served_by"], alone["remarks"]) == ("unit", [])
    body = '{"prompt": "x", "n_predict": 900}'
    ask = ["curl", "-sf", "-o", "/dev/null", "-H", "Authorization: Bearer sesame", "-d", body, f"{url}/completion"]
    others = subprocess.Popen(["sh", "-c", 'while "$@"; do :; done', "sh", *ask], start_new_session=True)
    try:
        (remark,) = bench("phi4", *words)["remarks"]
        assert "requests of others" in remark
        assert others.poll() is None, "they were answered all the time"
    finally:
        os.killpg(others.pid, signal.SIGKILL)
        others.wait()
    keys.unlink()


@pytest.fixture
def slow_batches(bed: Bed) -> Iterator[None]:
    """The real llama-server, every batch of which costs 60 ms more, as over a slow link to a device."""
    folder = Path("/opt/slow-batches")
    folder.mkdir(exist_ok=True)
    source = Path(__file__).parents[1] / "support" / "slow_batches.c"
    run("gcc", "-shared", "-fPIC", "-o", str(folder / "slow.so"), str(source), "-ldl")
    server = folder / "llama-server"
    server.write_text(f'#!/bin/sh\nLD_PRELOAD={folder}/slow.so SLOW_BATCH_MS=60 exec /usr/bin/llama-server "$@"\n')
    server.chmod(0o755)
    settings = ETC / "llamad.toml"
    before = settings.read_text()
    settings.write_text(f'[host]\nserver = "{server}"\n')
    yield
    settings.write_text(before)


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("slow_batches")
def test_a_planted_bad_setting_is_found_written_and_taken_by_the_service(bed: Bed) -> None:
    model = build_tiny(Path("/var/lib/llamad/models/smallest.gguf"), layers=2, embd=64)
    bed.define("slow", model=model, vulkan=False, extra=ONE_THREAD + "context = 256\nubatch = 8\n")
    words = ("--for", "prompt", "--may-change", "ubatch")
    done = run("llamad", "tune", "slow", *words, "--apply", timeout=600)
    file = ETC / "slow.toml.d/50-tune.toml"
    assert f"wrote {file}" in done.stdout, done.stdout
    assert "better: ubatch = " in done.stdout
    assert "threads_batch: written in /etc/llamad/slow.toml:" in done.stdout
    shown = run("llamad", "show", "slow").stdout
    (line,) = [line for line in shown.splitlines() if line.startswith("placement.ubatch = ")]
    assert line.endswith(f"# {file}:{line_of(file, 'ubatch')}:1"), line
    bed.ctl("start", "llamad@slow")
    status = json.loads(run("llamad", "status", "slow", "--json").stdout)["models"][0]
    assert status["ubatch_tokens"] >= 64
    file.write_text(file.read_text() + "# mine\n")
    refused = run("llamad", "tune", "slow", *words, "--apply", check=False)
    assert (refused.returncode, "by hand" in refused.stderr) == (78, True)


def line_of(file: Path, key: str) -> int:
    """The number of the line that a key is written in."""
    return next(n for n, line in enumerate(file.read_text().splitlines(), 1) if line.startswith(f"{key} = "))


def test_ctrl_c_leaves_nothing_and_a_stopped_unit_is_started_again(bed: Bed) -> None:
    bed.define("phi4", vulkan=False, extra=ONE_THREAD + "context = 1024\n")
    bed.ctl("start", "llamad@phi4")
    tune = subprocess.Popen(["llamad", "tune", "phi4", "--stop"], stderr=subprocess.PIPE, text=True)
    assert tune.stderr is not None
    wait_for(lambda: run("pgrep", "-f", "serve phi4.bench", check=False).stdout, "an instance runs")
    tune.send_signal(signal.SIGINT)
    assert tune.wait(60) == 130
    wait_for(lambda: run("pgrep", "-f", "phi4.bench", check=False).stdout == "", "the instance is gone")
    wait_for(lambda: bed.show("llamad@phi4", "ActiveState") == "active", "the unit is started again")
