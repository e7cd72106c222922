"""The booted test bed with the installed package: real systemd, real journald, real llama-server.

Run as root by `packaging/test`. Nothing here is skipped: what is missing fails.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.models import build_tiny

ETC = Path("/etc/llamad")
MODELS = Path("/var/lib/llamad/models")
DROP_IN = Path("/etc/systemd/system/llamad@.service.d/bed.conf")
KEEP = {"llamad.toml"}
VULKAN = '[environment]\nGGML_VK_VISIBLE_DEVICES = "0"\n'


def run(*argv: str, check: bool = True, timeout: float = 120, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Run a command; its output is part of a failure's message."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False, **kwargs)
    if check and done.returncode != 0:
        raise AssertionError(f"{argv} ended {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 60.0, every_s: float = 0.05) -> Any:
    """Poll until the condition is true; its value. Fails naming `what` past the time."""
    deadline = time.monotonic() + timeout_s
    while True:
        if value := condition():
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(every_s)


def free_port() -> int:
    """Not one of those that the kernel gives to outgoing connections: one of them would have it before its user."""
    while True:
        with socket.socket() as sock, suppress(OSError):  # another one is tried
            sock.bind(("127.0.0.1", secrets.choice(range(10_000, 30_000))))
            return int(sock.getsockname()[1])


class Bed:
    """What a test does to the machine."""

    def __init__(self, tiny: Path) -> None:
        self.tiny = tiny
        self.ports: dict[str, int] = {}
        self.forget_events()

    def forget_events(self) -> None:
        """Have `journal` and `events` begin now."""
        shown = run("journalctl", "-n", "0", "--show-cursor", "--no-pager").stdout
        self._cursor = shown.rpartition("-- cursor: ")[2].strip()

    def define(self, name: str, *, model: Path | str | None = None, extra: str = "", vulkan: bool = True,
               head: str = "") -> str:  # fmt: skip
        """Write /etc/llamad/NAME.toml on a free port; returns the base URL."""
        port = self.ports.setdefault(name, free_port())
        text = f'model = "{model or self.tiny}"\nlisten = "127.0.0.1:{port}"\n{head}\n{extra}\n'
        (ETC / f"{name}.toml").write_text(text + (VULKAN if vulkan else ""))
        return f"http://127.0.0.1:{port}"

    def ctl(self, *args: str, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return run("systemctl", *args, check=check, timeout=timeout)

    def show(self, unit: str, key: str) -> str:
        return run("systemctl", "show", "-P", key, unit).stdout.strip()

    def main_pid(self, name: str) -> int:
        return int(self.show(f"llamad@{name}", "MainPID"))

    def child_pid(self, name: str) -> int:
        """The llama-server of a unit; 0 if none runs."""
        found = run("pgrep", "-P", str(self.main_pid(name)), "-f", "llama-server", check=False).stdout.split()
        return int(found[0]) if found else 0

    def journal(self, *match: str, **kwargs: Any) -> list[dict[str, Any]]:
        """Records since this test began as objects, oldest first."""
        run("journalctl", "--sync")
        out = run("journalctl", "-o", "json", "--no-pager", f"--after-cursor={self._cursor}", *match).stdout
        return [json.loads(line) for line in out.splitlines()]

    def events(self, name: str, event: str | None = None) -> list[dict[str, Any]]:
        match = [f"LLAMAD_MODEL={name}"] + ([f"LLAMAD_EVENT={event}"] if event else [])
        return [r for r in self.journal(*match) if "LLAMAD_EVENT" in r]


def get(url: str, timeout: float = 60, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    """GET: status and decoded JSON (or text)."""
    return _open(urllib.request.Request(url, headers=headers or {}), timeout)


def post(url: str, body: object, timeout: float = 60, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    """POST JSON: status and decoded JSON (or text)."""
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json", **(headers or {})})
    return _open(request, timeout)


def _open(request: urllib.request.Request, timeout: float) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            status, text = response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    try:
        return status, json.loads(text)
    except ValueError:
        return status, text


def chat(url: str, tokens: int = 8, timeout: float = 60) -> tuple[int, Any]:
    body = {"model": "any", "messages": [{"role": "user", "content": "hello"}], "max_tokens": tokens}
    return post(f"{url}/v1/chat/completions", body, timeout)


def tiny_model() -> Path:
    """Built where it is not there yet."""
    path = MODELS / "tiny.gguf"
    if not path.exists():
        build_tiny(path)
        path.chmod(0o644)
    return path


@pytest.fixture(scope="session")
def tiny() -> Path:
    return tiny_model()


@contextmanager
def settings() -> Iterator[None]:
    """llvmpipe compiles code at run time: it cannot live under MemoryDenyWriteExecute."""
    assert os.geteuid() == 0, "the system tests run as root in the test bed: sudo packaging/test"
    assert shutil.which("llamad"), "the package is not installed: sudo packaging/test"
    if DROP_IN.exists():  # of the tests that run a bench
        yield
        return
    DROP_IN.parent.mkdir(parents=True, exist_ok=True)
    DROP_IN.write_text("[Service]\nMemoryDenyWriteExecute=no\n")
    run("systemctl", "daemon-reload")
    try:
        yield
    finally:
        DROP_IN.unlink()
        run("systemctl", "daemon-reload")


@pytest.fixture(scope="session", autouse=True)
def _bed_settings() -> Iterator[None]:
    with settings():
        yield


@contextmanager
def in_bed() -> Iterator[Bed]:
    """As the fixtures give it, for who is no test. Fails where there are definitions already: its end forgets all."""
    others = [path.name for path in ETC.iterdir() if path.name not in KEEP]
    assert not others, f"{ETC} has definitions that are in use: {', '.join(others)}"
    with settings():
        try:
            yield Bed(tiny_model())
        finally:
            _clean()


@pytest.fixture
def bed(tiny: Path) -> Iterator[Bed]:
    yield Bed(tiny)
    _clean()


def _clean() -> None:
    """Stop and forget every model, so that a test sees only its own."""
    run("systemctl", "stop", "llamad.target", "llamad@*", check=False)
    run("systemctl", "reset-failed", check=False)
    names = [path for path in ETC.iterdir() if path.name not in KEEP]
    for path in names:
        run("systemctl", "disable", f"llamad@{path.name.removesuffix('.toml')}", check=False)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
