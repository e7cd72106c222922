"""A model from a hub on this machine to a served one, as root, and the disks and files that are in the way."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamad.models.recipes import RECIPES
from tests.support.catalogue_files import build_shape, shape_named
from tests.support.hub_server import HubServer
from tests.system.conftest import ETC, MODELS, Bed, get, post, run

REPO = "bed/Tiny-GGUF"
FILE = "Tiny-Q4_K_M.gguf"
FOLDER = MODELS / "bed" / "Tiny-GGUF"


@pytest.fixture
def hub(bed: Bed) -> Iterator[HubServer]:
    data = bed.tiny.read_bytes()
    with HubServer({REPO: {FILE: data, "Tiny-Q8_0.gguf": data}, "plain": {FILE: data}}) as made:
        try:
            yield made
        finally:
            shutil.rmtree(MODELS / "bed", ignore_errors=True)


def environment(hub: HubServer) -> dict[str, str]:
    return dict(os.environ, HF_ENDPOINT=hub.url)


def pull(hub: HubServer, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return run("llamad", "pull", *words, env=environment(hub), check=check)


def test_from_the_hub_to_an_answer(bed: Bed, hub: HubServer) -> None:
    hub.faults.drops, hub.faults.drop_after_bytes = 5, 200_000
    done = pull(hub, REPO)
    path = FOLDER / FILE
    assert done.stdout.splitlines() == [
        str(path),
        done.stdout.splitlines()[1],
        f"serve it: llamad add tiny {path}",
    ]
    assert path.read_bytes() == bed.tiny.read_bytes() and hub.faults.drops == 0
    status, folder = path.stat(), FOLDER.stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o644)
    assert folder.st_uid == 0 and folder.st_mode & 0o005 == 0o005
    assert sorted(one.name for one in FOLDER.iterdir()) == [FILE, f"{FILE}.sha256"]
    run("sha256sum", "--check", f"{FILE}.sha256", cwd=FOLDER)
    add = done.stdout.splitlines()[-1].removeprefix("serve it: ").split()
    run(*add, "--no-plan", "--allow-cpu")
    text = (ETC / "tiny.toml").read_text()
    assert "every byte as" in run("llamad", "verify", "tiny", "--full").stdout
    bed.ctl("start", "llamad@tiny")
    port = re.search(r"127\.0\.0\.1:(\d+)", text)
    assert port
    code, answer = post(f"http://127.0.0.1:{port[1]}/v1/completions", {"prompt": "a", "max_tokens": 4})
    assert code == 200 and answer["usage"]["completion_tokens"] == 4
    assert get(f"http://127.0.0.1:{port[1]}/v1/models")[1]["data"][0]["id"] == "tiny"


def test_stopped_and_gone_on_with(bed: Bed, hub: HubServer) -> None:
    hub.faults.stall_after_bytes = 1_000_000
    words = ["llamad", "pull", REPO, "--connections", "2"]
    with subprocess.Popen(words, env=environment(hub), stderr=subprocess.PIPE, text=True) as child:
        part = FOLDER / f"{FILE}.part"
        end = time.monotonic() + 20
        while not (part.exists() and part.stat().st_size >= 1_000_000):
            assert time.monotonic() < end
            time.sleep(0.02)
        second = pull(hub, REPO, check=False)
        assert second.returncode == 75 and "is being fetched already" in second.stderr
        child.send_signal(signal.SIGTERM)  # a shell may have had SIGINT ignored
        _, err = child.communicate(timeout=20)
    assert child.returncode == 130 and "the same command goes on from there" in err
    assert stat.S_IMODE(part.stat().st_mode) == 0o600 and not (FOLDER / FILE).exists()
    assert str(FOLDER) not in run("llamad", "list").stdout
    hub.faults.stall_after_bytes = 0
    assert "goes on after" in pull(hub, REPO).stderr
    assert (FOLDER / FILE).read_bytes() == bed.tiny.read_bytes()


def test_a_small_disk_is_told_before_and_a_full_one_while_it_is_fetched(hub: HubServer, tmp_path: Path) -> None:
    run("mount", "-t", "tmpfs", "-o", "size=2M", "none", str(tmp_path))
    try:
        done = pull(hub, REPO, "--to", str(tmp_path), check=False)
        assert done.returncode == 75 and "no room for the model" in done.stderr
        assert not hub.asked("/resolve/") and list(tmp_path.iterdir()) == []
        plain = pull(hub, f"{hub.url}/plain/{FILE}", "--to", str(tmp_path), check=False)
        assert plain.returncode == 75 and "no room for" in plain.stderr
        assert list(tmp_path.iterdir()) == []
    finally:
        run("umount", str(tmp_path))


def test_damage_is_found_by_everybody(bed: Bed, hub: HubServer) -> None:
    pull(hub, f"{REPO}:Q8_0")
    path = FOLDER / "Tiny-Q8_0.gguf"
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 4
    path.write_bytes(raw)
    as_nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]
    assert run(*as_nobody, "llamad", "verify", str(path)).returncode == 0
    done = run(*as_nobody, "llamad", "verify", "--full", "--json", str(path), check=False)
    assert done.returncode == 65 and "SHA-256" in json.loads(done.stdout)["models"][0]["problem"]
    again = pull(hub, f"{REPO}:Q8_0")  # the sum beside it still says what was fetched
    assert "is there already" in again.stderr


@pytest.mark.parametrize(
    ("name", "recipe"), [("qwen3-0.6b", "Q4_K_M"), ("qwen3.5-0.8b", "Q5_K_M"), ("granite4-h-tiny", "IQ4_XS"), ("gemma4-e2b", "Q3_K_M")]
)
def test_recipes_are_those_of_llama_quantize(name: str, recipe: str, tmp_path: Path) -> None:
    shape = shape_named(name)
    path = build_shape(tmp_path / "x.gguf", shape, "BF16")
    done = run("llama-quantize", "--dry-run", str(path), recipe)
    path.unlink()
    told = re.search(r"quant size *= *([\d.]+) MiB", done.stdout + done.stderr)
    assert told, done.stdout + done.stderr
    assert float(told[1]) == pytest.approx(sum(t.size_bytes for t in shape.header(recipe).tensors) / 2**20, abs=0.01)
    assert recipe in RECIPES


def test_recommend_as_root_looks_at_devices_in_the_sandbox(bed: Bed, tmp_path: Path) -> None:
    trace = tmp_path / "exec"
    words = ["strace", "-f", "-qq", "-e", "trace=execve", "-o", str(trace), "llamad", "recommend", "--json"]
    found = json.loads(run(*words).stdout)
    assert found["machine"]["devices"] == []  # llvmpipe is none unless a definition asks for it
    best = found["models"][0]
    assert best["fits"] and best["why"].startswith("on the CPU") and best["tokens_s"] > 0
    assert "llama-server" not in trace.read_text()  # not as root: systemd-run starts it elsewhere
    as_a_unit = ["systemd-run", "--pipe", "--wait", "--collect", "--quiet", "-p", "MemoryDenyWriteExecute=yes", "-p", "User=_llamad"]
    inside = json.loads(run(*as_a_unit, "llamad", "recommend", "--cpu", "--json").stdout)
    assert inside["machine"]["host"]["bytes_s_source"] == "measured"


def test_list_says_what_fits(bed: Bed) -> None:
    shown = json.loads(run("llamad", "list", "--fit", "--json").stdout)
    tiny = next(file for file in shown["files"] if file["path"] == str(bed.tiny))
    assert (tiny["fits_here_tokens"], tiny["fits_here"]) == (8192, "CPU")
    assert "8192 on CPU" in run("llamad", "list", "--fit").stdout
