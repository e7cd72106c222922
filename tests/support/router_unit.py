"""`llamad.service` in a booted machine, as tests and benches act on it."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.system.conftest import ETC, Bed, free_port, get, post, run, wait_for

DROP_IN = Path("/etc/systemd/system/llamad.service.d/bed.conf")
PUBLIC_LEDGER = Path("/run/llamad/public/ledger.json")
ON_CPU = "[placement]\nallow_cpu = true\ngpu_layers = 0\ncontext = 2048\nparallel = 2\nthreads = 1\n"


class Router:
    """llamad.service on a port of its own."""

    def __init__(self, bed: Bed) -> None:
        self.bed = bed
        self.url = f"http://127.0.0.1:{free_port()}"
        self._settings = ETC / "llamad.toml"

    def start(self, host: str = "") -> None:
        address = self.url.removeprefix("http://")
        self._settings.write_text(f'[host]\nlisten = "{address}"\n{host}\n')
        self.bed.ctl("start", "llamad")

    def ask(self, model: str, tokens: int = 4, timeout: float = 60, **more: Any) -> tuple[int, Any]:
        body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": tokens, "model": model, **more}
        return post(f"{self.url}/v1/chat/completions", body, timeout)

    def states(self) -> dict[str, str]:
        _, answer = get(f"{self.url}/v1/models")
        return {entry["id"]: entry["meta"]["state"] for entry in answer["data"]}

    def until(self, name: str, state: str, timeout_s: float = 60.0) -> None:
        wait_for(lambda: self.states().get(name) == state, f"{name} is {state}", timeout_s)

    def events(self, event: str) -> list[dict[str, Any]]:
        return self.bed.journal("_SYSTEMD_UNIT=llamad.service", f"LLAMAD_EVENT={event}")


@contextlib.contextmanager
def routing(bed: Bed) -> Iterator[Router]:
    """A router that may be started; the host's settings are as before afterwards."""
    settings = ETC / "llamad.toml"
    saved = settings.read_text()
    DROP_IN.parent.mkdir(parents=True, exist_ok=True)
    DROP_IN.write_text("[Service]\nMemoryDenyWriteExecute=no\n")
    run("systemctl", "daemon-reload")
    try:
        yield Router(bed)
    finally:
        bed.ctl("stop", "llamad", check=False)
        bed.ctl("reset-failed", check=False)
        settings.write_text(saved)
        DROP_IN.unlink()
        run("systemctl", "daemon-reload")


def define(bed: Bed, name: str, *, head: str = "", placement: str = ON_CPU, extra: str = "", **more: Any) -> str:
    """A model for the router, on the CPU unless told otherwise."""
    return bed.define(name, head=head, extra=placement + extra, **more)


@contextlib.contextmanager
def host_memory_of(mib: int) -> Iterator[None]:
    """All units believe that the host has so much memory, all of it free: whatever else this machine does, what they
    may promise each other is known to the byte.
    """
    shown = Path("/run/llamad-test-meminfo")
    lines = Path("/proc/meminfo").read_text().splitlines()
    others = [line for line in lines if not line.startswith(("MemTotal:", "MemAvailable:"))]
    shown.write_text("\n".join([f"MemTotal: {mib << 10} kB", f"MemAvailable: {mib << 10} kB", *others, ""]))
    shown.chmod(0o644)
    folders = [Path(f"/run/systemd/system/{unit}.service.d") for unit in ("llamad", "llamad@")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "memory.conf").write_text(f"[Service]\nBindReadOnlyPaths={shown}:/proc/meminfo\n")
    run("systemctl", "daemon-reload")
    try:
        yield
    finally:
        for folder in folders:
            shutil.rmtree(folder)
        run("systemctl", "daemon-reload")


class Promises(threading.Thread):
    """Looks at the ledger's public copy, which is renewed with every change, for as long as it is not told to stop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most_bytes = 0
        """The most host memory that was promised at one moment, to all together."""
        self.copies = 0
        self.together: set[tuple[str, ...]] = set()
        """Who had promises at the same time."""
        self._enough = threading.Event()

    def run(self) -> None:
        before = ""
        while not self._enough.wait(0.001):
            try:
                text = PUBLIC_LEDGER.read_text()
            except FileNotFoundError:  # nobody has had a lease yet
                continue
            if text != before:
                before = text
                self._take(json.loads(text))

    def _take(self, leases: list[dict[str, Any]]) -> None:
        held = [lease for lease in leases if lease["promised"]]
        self.copies += 1
        self.together.add(tuple(lease["name"] for lease in held))
        self.most_bytes = max(self.most_bytes, sum(lease["promised"]["host"] for lease in held))

    def stop(self) -> None:
        self._enough.set()
        self.join(10)
        assert not self.is_alive()


def more_than_half_mib() -> int:
    """Of the host's memory that is free now."""
    rows = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(rows["MemAvailable"].split()[0]) * 6 // 10 // 1024


def large(bed: Bed, name: str, *, head: str = "", extra: str = "", **more: Any) -> str:
    """A model beside which there is no room for another one like it: its prompt cache is promised in host memory."""
    cache = f'[server]\ncache_ram = "{more_than_half_mib()}MiB"\n'
    return define(bed, name, head=head, extra=f"{cache}{extra}", **more)
