"""The address of a model on a real system: admission by tokens, records, metrics for a real Prometheus, orders."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.conftest import Bed, chat, free_port, get, post, run, wait_for

POOL = "context = 4096\nparallel = 4\nallow_cpu = true\nthreads = 1\n"  # on the CPU: a software Vulkan device takes minutes
PROMPT = "word " * 192  # 960 tokens: of this model every byte is one
CREDENTIALS = Path("/etc/credstore")


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=120)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(120)
        self.sock.connect(self._path)


def directly(path: str, body: object) -> int:
    connection = UnixConnection(path)
    try:
        connection.request("POST", "/v1/completions", json.dumps(body))
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.fixture
def admin_key() -> Iterator[str]:
    """A key for the orders to the model `addr`."""
    CREDENTIALS.mkdir(mode=0o700, exist_ok=True)
    path = CREDENTIALS / "llamad.admin-key.addr"
    path.write_text("boss\n")
    path.chmod(0o600)
    yield "boss"
    path.unlink()


def start(bed: Bed, extra: str = f"[placement]\n{POOL}", head: str = "") -> str:
    url = bed.define("addr", extra=extra, head=head, vulkan=False)
    bed.ctl("start", "llamad@addr")
    return url


def samples(url: str) -> dict[str, float]:
    status, text = get(f"{url}/metrics")
    assert status == 200
    lines = [line.rpartition(" ") for line in str(text).splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


@pytest.mark.timeout(400)
def test_sixteen_clients_that_would_overfill_the_cache_are_all_answered(bed: Bed) -> None:
    url = start(bed)
    body = {"prompt": PROMPT, "max_tokens": 96}
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        child = "/run/llamad/model/addr/engine/llama.sock"
        found = run("find", "/run/llamad/model/addr/engine", "-name", "*.sock").stdout.split()
        child = found[0] if found else child
        bare = list(pool.map(lambda _: directly(child, body), range(4)))
        assert 500 in bare, "without admission it would not fail either: the test says nothing"
        statuses = list(pool.map(lambda _: post(f"{url}/v1/completions", body, timeout=300)[0], range(16)))
    assert statuses == [200] * 16
    figures = samples(url)
    assert figures['llamad_pool_tokens{model="addr"}'] == 4096
    assert figures['llamad_admitted_tokens{model="addr"}'] == 0
    assert figures['llamad_requests_total{model="addr",outcome="answered"}'] == 16
    assert figures['llamad_tokens_total{model="addr",kind="output"}'] == 16 * 96


def test_limits_of_tokens_and_the_default_length(bed: Bed) -> None:
    limits = "[limits]\nmax_input_tokens = 100\nmax_output_tokens = 20\n"
    url = start(bed, f"{limits}[placement]\n{POOL}")
    status, answer = chat(url, tokens=21)
    assert (status, answer["error"]["code"]) == (400, "max_tokens_too_large")
    long = [{"role": "user", "content": "x" * 101}]
    status, answer = post(f"{url}/v1/chat/completions", {"messages": long})
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    fits = [{"role": "user", "content": "x" * 60}]  # with what the template adds; its JSON is longer than 100 bytes
    status, answer = post(f"{url}/v1/chat/completions", {"messages": fits, "user": "y" * 80})
    assert status == 200 and answer["usage"]["completion_tokens"] == 20


def test_a_request_is_recorded_without_its_content(bed: Bed) -> None:
    url = start(bed)
    secret = "Xyzzy-never-to-be-seen"
    message = [{"role": "user", "content": secret}]
    body = {"messages": message, "max_tokens": 12, "stream": True}
    status, _ = post(f"{url}/v1/chat/completions", body, headers={"X-Request-Id": "my-own-id"})
    assert status == 200
    [record] = bed.events("addr", "request")
    assert record["MESSAGE"].startswith("Generated 12 tokens in ") and "tokens/s), prompt of " in record["MESSAGE"]
    assert (record["LLAMAD_REQUEST_ID"], record["LLAMAD_OUTPUT_TOKENS"]) == ("my-own-id", "12")
    assert int(record["LLAMAD_PROMPT_TOKENS"]) >= len(secret) and record["PRIORITY"] == "6"
    assert secret not in json.dumps(bed.journal())


def test_metrics_are_valid_and_a_real_prometheus_takes_them(bed: Bed, tmp_path: Path) -> None:
    url = start(bed)
    assert chat(url)[0] == 200
    with urllib.request.urlopen(f"{url}/metrics") as response:
        text = response.read().decode()
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, ""), checked
    child = [name for name in samples(url) if name.startswith("llamacpp_")]
    assert 'llamacpp_tokens_predicted_total{model="addr"}' in child
    port = free_port()
    target = urllib.parse.urlsplit(url).netloc
    config = tmp_path / "prometheus.yml"
    config.write_text(
        f"scrape_configs:\n- job_name: llamad\n  scrape_interval: 1s\n  static_configs:\n  - targets: ['{target}']\n"
    )
    argv = [
        "prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
    ]  # fmt: skip
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            def value(query: str) -> str:
                _, answer = get(f"http://127.0.0.1:{port}/api/v1/query?query={urllib.parse.quote(query)}")
                found = answer["data"]["result"]
                return str(found[0]["value"][1]) if found else ""

            wait_for(lambda: _answers(port), "Prometheus answers")
            wait_for(lambda: value('llamad_state{model="addr",state="ready"}') == "1", "the state was scraped")
            assert value("up") == "1"
            assert float(value('llamacpp_tokens_predicted_total{model="addr"}')) >= 8
            assert float(value('histogram_quantile(0.5, llamad_request_seconds_bucket)')) > 0
        finally:
            process.terminate()


def _answers(port: int) -> bool:
    try:
        return get(f"http://127.0.0.1:{port}/-/ready")[0] == 200
    except OSError:
        return False


def test_orders_of_the_admin(bed: Bed, admin_key: str) -> None:
    url = start(bed, head="[cache]\nresponses = 10\n[limits]\nwait_s = 30\n")
    boss = {"Authorization": f"Bearer {admin_key}"}
    assert get(f"{url}/admin/status")[0] == 401
    assert post(f"{url}/slots/0?action=erase", {})[0] == 401
    status, told = get(f"{url}/admin/status", headers=boss)
    assert (status, told["state"], told["model"]) == (200, "ready", "addr")
    body = {"prompt": "again", "temperature": 0, "max_tokens": 4}
    first = post(f"{url}/v1/completions", body)
    assert post(f"{url}/v1/completions", body) == first
    assert post(f"{url}/admin/clear-cache", {}, headers=boss)[1]["cleared"] == 1
    status, told = post(f"{url}/admin/drain", {"deadline_s": 5}, headers=boss)
    assert (status, told["left"], told["drained"]) == (200, 0, True)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        held = pool.submit(chat, url)
        wait_for(lambda: get(f"{url}/admin/status", headers=boss)[1]["waiting_requests"] == 1, "a request is held")
        time.sleep(0.2)
        assert not held.done()
        assert post(f"{url}/admin/resume", {}, headers=boss)[0] == 200
        assert held.result()[0] == 200
    definition = Path("/etc/llamad/addr.toml")
    definition.write_text(definition.read_text().replace("wait_s", "wait_seconds"))
    status, refused = post(f"{url}/admin/reload", {}, headers=boss)
    assert (status, refused["error"]["code"]) == (409, "reload_refused")
    definition.write_text(definition.read_text().replace("wait_seconds", "wait_s"))
    assert post(f"{url}/admin/reload", {}, headers=boss)[0] == 200
    assert chat(url)[0] == 200


def test_root_gives_orders_through_the_unix_socket_and_others_do_not(bed: Bed) -> None:
    bed.define("addr", extra=f"[placement]\n{POOL}", vulkan=False)
    definition = Path("/etc/llamad/addr.toml")
    lines: list[Any] = definition.read_text().splitlines()
    lines = [line for line in lines if not line.startswith("listen")]
    definition.write_text("\n".join(['listen = "unix:addr.sock"', 'listen_mode = "0666"', *lines]) + "\n")
    bed.ctl("start", "llamad@addr")
    ask = ("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--unix-socket", "/run/llamad/api/addr.sock")
    assert run(*ask, "http://localhost/admin/status").stdout == "200"
    assert run("runuser", "-u", "nobody", "--", *ask, "http://localhost/admin/status").stdout == "403"
    assert run("runuser", "-u", "nobody", "--", *ask, "http://localhost/v1/models").stdout == "200"
