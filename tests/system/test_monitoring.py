"""The dashboard, the rules and the recipes over what real daemons say: a unit with a played NVIDIA driver, the router."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.router_unit import Router, routing
from tests.system.conftest import Bed, free_port, get, post, run, wait_for

ROOT = Path(__file__).parents[2]
DASHBOARD = Path("/usr/share/llamad/grafana/llamad.json")
UNIT_DROP_IN = Path("/etc/systemd/system/llamad@mon.service.d/nvml.conf")
DRIVER = Path("/opt/played-driver")
NODE = Path("/dev/nvidiactl")
MODULE = Path("/usr/lib/python3/dist-packages/pynvml.py")
GRAFANA = {"$__rate_interval": "3m", "$__range": "10m", "$model": ".*"}
LENT_PORT = 50071
"""A device for the router's model: the software Vulkan device would compile its shaders first."""
NOT_OF_THE_ROUTER = {"Real", "Free"}
"""Panels of what drivers and buffers say."""


@contextmanager
def played_driver() -> Iterator[None]:
    """An NVML library that shows the software Vulkan device as a card, to the unit `mon`."""
    DRIVER.mkdir(mode=0o755)
    source = ROOT / "tests/support/nvml_shim.c"
    run("gcc", "-shared", "-fPIC", "-o", str(DRIVER / "libnvidia-ml.so.1"), str(source))
    shown = run("llama-server", "--list-devices", env={**os.environ, "GGML_VK_VISIBLE_DEVICES": "0"}).stdout
    match = re.search(r"Vulkan0: (.*) \((\d+) MiB, (\d+) MiB free\)", shown)
    assert match, shown
    total, free = (int(match[n]) << 20 for n in (2, 3))
    (DRIVER / "state").write_text(f"driver 550.54\ngpu GPU-played 0:10 {total} 0 {free} 0 0 {match[1]}\n")
    (library,) = Path("/opt/testenv/lib").glob("python3*/site-packages/pynvml.py")
    shutil.copy(library, MODULE)
    NODE.touch()
    UNIT_DROP_IN.parent.mkdir(parents=True)
    UNIT_DROP_IN.write_text(f"[Service]\nEnvironment=LD_LIBRARY_PATH={DRIVER} NVML_SHIM_STATE={DRIVER}/state\n")
    run("systemctl", "daemon-reload")
    try:
        yield
    finally:
        for path in (UNIT_DROP_IN, NODE, MODULE):
            path.unlink()
        shutil.rmtree(DRIVER)
        run("systemctl", "daemon-reload")


class Prometheus:
    """A real one, with the configuration that `llamad export` prints, but looking every second."""

    def __init__(self, folder: Path, hosts: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        text = run("llamad", "export", "prometheus", "--hosts", hosts).stdout
        assert text.count("scrape_interval: 15s") == text.count("scrape_timeout: 10s") == 1
        text = text.replace("scrape_interval: 15s", "scrape_interval: 1s").replace("scrape_timeout: 10s", "scrape_timeout: 1s")
        config = folder / "prometheus.yml"
        config.write_text(f"global: {{evaluation_interval: 1s}}\n{text}")
        run("promtool", "check", "config", str(config))
        argv = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
        argv += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
        self._process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)

    def api(self, path: str, **query: str) -> Any:
        try:
            status, answer = get(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}")
        except OSError:
            return None
        assert status == 200 or status == 503, (query, answer)
        return answer["data"] if status == 200 else None

    def values(self, expression: str) -> list[float]:
        """Those that are numbers."""
        found = self.api("query", query=expression)
        values = [float(one["value"][1]) for one in found["result"]] if found else []
        return [value for value in values if value == value]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)


def queries(instance: str) -> list[tuple[str, str]]:
    """Panel and query of the dashboard as installed, for one address."""
    found = []
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"].replace("$instance", re.escape(instance).replace("\\", "\\\\"))
            for variable, value in GRAFANA.items():
                expression = expression.replace(variable, value)
            assert "$" not in expression
            found.append((panel["title"], expression))
    return found


def load(url: str, model: str, count: int) -> None:
    """Requests with and without a stream, the same ones again, so that answers and prompts are found kept."""
    for number in range(count):
        body = {"model": model, "messages": [{"role": "user", "content": "hello " * 8}], "max_tokens": 3}
        repeated = {"temperature": 0} if number % 2 else {"stream": True}
        assert post(f"{url}/v1/chat/completions", {**body, **repeated})[0] == 200


def child_of_router(bed: Bed) -> int:
    found = run("pgrep", "-P", bed.show("llamad", "MainPID"), "-f", "llama-server", check=False).stdout.split()
    return int(found[0]) if found else 0


@pytest.fixture
def router(bed: Bed) -> Iterator[Router]:
    with routing(bed) as one:
        yield one


@pytest.mark.timeout(240)
def test_every_query_of_the_dashboard_has_data_of_a_unit_and_of_the_router(
    bed: Bed, router: Router, tmp_path: Path
) -> None:
    kept = "[cache]\nresponses = 10\n"
    with played_driver():
        url = bed.define("mon", head=kept, extra="[placement]\ncontext = 4096\nparallel = 4\n")
        lent = f'rpc = ["127.0.0.1:{LENT_PORT}"]\n'
        bed.define("routed", head=kept, extra=f"[placement]\ncontext = 2048\nparallel = 4\n{lent}", vulkan=False)
        bed.ctl("start", f"llamad-rpc@{LENT_PORT}")
        bed.ctl("start", "llamad@mon")
        router.start()
        unit_address, router_address = (one.removeprefix("http://") for one in (url, router.url))
        prometheus = Prometheus(tmp_path, f"{unit_address},{router_address}")
        try:
            load(url, "mon", 2)
            load(router.url, "routed", 2)
            wait_for(lambda: len(prometheus.values("llamad_info")) == 3, "both addresses were scraped", 60)
            children = bed.child_pid("mon"), child_of_router(bed)
            for pid in children:
                os.kill(pid, signal.SIGKILL)
            wait_for(lambda: bed.child_pid("mon") not in (0, children[0]), "the unit's is started again")
            wait_for(lambda: child_of_router(bed) not in (0, children[1]), "and the router's")
            lacking: set[tuple[str, str]] = set()

            def complete() -> bool:
                load(url, "mon", 2)
                load(router.url, "routed", 2)
                lacking.clear()
                for address in (unit_address, router_address):
                    lacking.update(
                        (panel, query) for panel, query in queries(address)
                        if not prometheus.values(query) and not (address == router_address and panel in NOT_OF_THE_ROUTER)
                    )  # fmt: skip
                return not lacking

            try:
                wait_for(complete, "every query has data", 90, 1)
            except AssertionError:
                raise AssertionError(lacking) from None
            agrees(prometheus, unit_address)
            recorded(prometheus)
            recipes()
        finally:
            prometheus.close()
            bed.ctl("stop", f"llamad-rpc@{LENT_PORT}")


def agrees(prometheus: Prometheus, address: str) -> None:
    """What was planted is what is shown."""
    cause = f'sum by (cause) (llamad_restarts_total{{instance="{address}"}} > 0)'
    (restarted,) = prometheus.api("query", query=cause)["result"]
    assert (restarted["metric"]["cause"], restarted["value"][1]) == ("killed", "1")
    (increased,) = prometheus.values(f'increase(llamad_restarts_total{{instance="{address}",cause="killed"}}[10m])')
    assert 0.9 < increased < 2, "a first death is seen"
    planned, real, free = (
        prometheus.values(f'llamad_device_{one}_bytes{{instance="{address}"}}')[0] for one in ("planned", "buffer", "free")
    )
    assert 0 < real <= planned < free


def recorded(prometheus: Prometheus) -> None:
    """The rules that are installed are evaluated, each without a fault, and those that record do."""
    groups = prometheus.api("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) >= 17 and {rule["health"] for rule in rules} == {"ok"}, rules
    for rule in rules:
        assert rule["type"] == "alerting" or prometheus.values(rule["name"]), rule["name"]
    assert "LlamadSteppedDown" not in {rule["name"] for rule in rules if rule.get("state") == "firing"}


def recipes() -> None:
    """Each line of the document runs, and finds something wherever this test did something."""
    text = (ROOT / "docs/journal.md").read_text()
    lines = [line.removeprefix("# ").partition("  #")[0].strip() for line in text.splitlines() if line.startswith("# journalctl ")]
    assert len(lines) >= 15
    (request,) = run(
        "journalctl", "LLAMAD_EVENT=request", "LLAMAD_MODEL=mon", "-n", "1", "-o", "cat", "--output-fields=LLAMAD_REQUEST_ID"
    ).stdout.split()
    run("journalctl", "--sync")
    nothing_to_find = ("stepped-down", "memory-granted", "reload-applied", "STATUS=503", "OUTCOME=lost", "journalctl -k", "> phi4.journal")
    for line in lines:
        words = line.replace("phi4.journal", "/dev/null").replace("phi4", "mon").replace("4f1c9a2e-7", request)
        done = run("sh", "-c", words, check=False)
        assert (done.returncode == 0 or "No entries" in done.stdout) and "Failed" not in done.stderr and "Invalid" not in done.stderr, (words, done.stderr)
        if not any(part in line for part in nothing_to_find):
            assert done.stdout.strip() and "No entries" not in done.stdout, words
