"""The bed is what the other system tests take it for."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.models import (
    LLAMA31_8B,
    PHI4_14B,
    QWEN3_8B,
    QWEN25_32B,
    HollowShape,
    build_hollow,
    build_tiny,
)
from tests.system.conftest import free_port, run

SHADERS = Path("/usr/local/lib/bed/shaders/mesa_shader_cache")


def test_systemd_is_the_first_process_and_nothing_has_failed() -> None:
    assert Path("/proc/1/comm").read_text() == "systemd\n"
    assert run("systemctl", "is-system-running", check=False).stdout.strip() == "running"


def test_the_software_device_is_there_when_it_is_asked_for_and_only_then() -> None:
    bare = {key: value for key, value in os.environ.items() if key != "GGML_VK_VISIBLE_DEVICES"}
    hidden = run("llama-server", "--list-devices", env=bare)
    assert "Vulkan" not in hidden.stdout
    one = run("llama-server", "--list-devices", env={**bare, "GGML_VK_VISIBLE_DEVICES": "0"})
    assert "Vulkan0: llvmpipe" in one.stdout
    two = run("llama-server", "--list-devices", env={**bare, "GGML_VK_VISIBLE_DEVICES": "0,0"})
    assert "Vulkan1: llvmpipe" in two.stdout


def test_landlock_is_not_filtered_away() -> None:
    probe = "import ctypes; print(ctypes.CDLL(None).syscall(444, None, 0, 1))"  # landlock_create_ruleset: its version
    assert int(run("python3", "-c", probe).stdout) >= 1


@contextmanager
def _served(model: Path, port: int, *words: str, env: dict[str, str]) -> Iterator[str]:
    url = f"http://127.0.0.1:{port}"
    command = [
        "llama-server",
        "-m",
        str(model),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--no-ui",
        "--offline",
        *words,
    ]
    child = subprocess.Popen(
        command, env={**os.environ, **env}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while run("curl", "-sf", f"{url}/health", check=False).returncode:
            assert child.poll() is None, f"llama-server ended with {child.returncode}"
            assert time.monotonic() < deadline, "llama-server is not ready within 60 s"
            time.sleep(0.05)
        yield url
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("device", ["cpu", "vulkan"])
def test_the_tiny_model_answers_with_as_many_tokens_of_text_as_asked(tmp_path: Path, device: str) -> None:
    model = build_tiny(tmp_path / "tiny.gguf")
    env = (
        {"GGML_VK_VISIBLE_DEVICES": "0", "MESA_SHADER_CACHE_DIR": str(SHADERS.parent)}
        if device == "vulkan"
        else {}
    )
    with _served(model, free_port(), "-c", "4096", env=env) as url:
        body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 40}
        request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=100) as response:
            answer = json.load(response)
    assert answer["usage"]["completion_tokens"] == 40
    text = answer["choices"][0]["message"]["content"]
    assert text
    assert text.isascii()
    assert text.isprintable()


@pytest.mark.parametrize("shape", [PHI4_14B, LLAMA31_8B, QWEN25_32B, QWEN3_8B], ids=lambda shape: shape.arch)
def test_the_engine_accounts_for_hollow_models(tmp_path: Path, shape: HollowShape) -> None:
    model = build_hollow(tmp_path / "hollow.gguf", shape)
    command = ["llama-fit-params", "-m", str(model), "-c", "4096", "-ngl", "0", "-fitp", "on"]
    said = run(*command, timeout=60).stdout
    host = next(line.split() for line in said.splitlines() if line.startswith("Host "))
    assert int(host[1]) > 1000  # MiB of weights
    assert int(host[2]) == shape.layers * shape.kv_width * 2 * 2 * 4096 // 2**20


def test_the_shader_cache_of_the_build_is_there_to_seed_from() -> None:
    assert any(path.is_file() for path in SHADERS.rglob("*"))
