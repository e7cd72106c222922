"""Two hosts behind HAProxy, as `llamad export` sets it up: each request finds its model, also when a host dies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.netns import far_host
from tests.support.router_unit import ON_CPU
from tests.system.conftest import ETC, Bed, free_port, get, post, run, wait_for

KEY = {"Authorization": "Bearer fleet-key"}
UNIT_DROP_IN = Path("/etc/systemd/system/llamad.service.d/far.conf")
FAR_ETC, FAR_RUN = Path("/etc/far-host"), Path("/run/far-host")
MODELS = {"one": 'aliases = ["gpt-4o-mini"]', "two": ""}


def define_all(folder: Path, bed: Bed, address: str, owner: str) -> None:
    """The same two models, and keys, on a host."""
    for name, head in MODELS.items():
        (folder / f"{name}.toml").write_text(f'model = "{bed.tiny}"\n{head}\n{ON_CPU}')
    keys = folder / "all.keys"
    keys.write_text("fleet-key\n")
    run("chown", owner, str(keys))
    (folder / "llamad.toml").write_text(f'[host]\nlisten = "{address}:8080"\napi_keys_file = "{keys}"\n')


@contextmanager
def near(bed: Bed, namespace: str, address: str) -> Iterator[None]:
    """A host that runs the shipped unit."""
    settings = ETC / "llamad.toml"
    saved = settings.read_text()
    UNIT_DROP_IN.parent.mkdir(parents=True, exist_ok=True)
    UNIT_DROP_IN.write_text(f"[Service]\nNetworkNamespacePath=/run/netns/{namespace}\n")
    run("systemctl", "daemon-reload")
    try:
        define_all(ETC, bed, address, "_llamad")
        bed.ctl("start", "llamad")
        yield
    finally:
        bed.ctl("stop", "llamad", check=False)
        UNIT_DROP_IN.unlink()
        run("systemctl", "daemon-reload")
        settings.write_text(saved)


@contextmanager
def far(bed: Bed, namespace: str, address: str) -> Iterator[subprocess.Popen[bytes]]:
    """A host with files of its own, where a user runs `llamad serve`."""
    for folder in (FAR_ETC, FAR_RUN):
        folder.mkdir(mode=0o700)
        run("chown", "builder", str(folder))
    define_all(FAR_ETC, bed, address, "builder")
    run("chown", "-R", "builder", str(FAR_ETC))
    argv = ["ip", "netns", "exec", namespace, "runuser", "-u", "builder", "--"]
    argv += ["env", f"XDG_RUNTIME_DIR={FAR_RUN}", f"HOME={FAR_RUN}", "llamad", "--config", str(FAR_ETC), "serve"]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process
    finally:
        kill(namespace)
        process.wait(30)
        shutil.rmtree(FAR_ETC)
        shutil.rmtree(FAR_RUN)


def kill(namespace: str) -> None:
    """Everything on a host at once."""
    for pid in run("ip", "netns", "pids", namespace).stdout.split():
        try:
            os.kill(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            continue


class Haproxy:
    """The balancer, from what `llamad export` prints beside a configuration that is there."""

    def __init__(self, folder: Path, *hosts: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._admin = folder / "admin.sock"
        own, made = folder / "haproxy.cfg", folder / "llamad.cfg"
        own.write_text(f"global\n    stats socket {self._admin} mode 600\n    log 127.0.0.1:514 local0\n")
        words = ("--hosts", ",".join(hosts), "--listen", f"127.0.0.1:{port}")
        made.write_text(run("llamad", "export", "haproxy", *words).stdout)
        argv = ["/usr/sbin/haproxy", "-f", str(own), "-f", str(made)]
        checked = run(*argv, "-c")
        assert "[WARNING]" not in checked.stdout + checked.stderr
        self._process = subprocess.Popen(argv)

    def servers(self, backend: str) -> dict[str, bool]:
        """Which servers of a backend are up."""
        with socket.socket(socket.AF_UNIX) as sock:
            try:
                sock.connect(str(self._admin))
            except OSError:
                return {}
            sock.sendall(b"show stat\n")
            text = b"".join(iter(lambda: sock.recv(65536), b"")).decode()
        head, *rows = (line.split(",") for line in text.removeprefix("# ").splitlines() if line)
        status = head.index("status")
        return {row[1]: row[status].startswith("UP") for row in rows if row[0] == backend and row[1] not in ("BACKEND", "FRONTEND")}

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)


def ask(url: str, model: str, timeout: float = 30, tokens: int = 4) -> tuple[int, Any]:
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": tokens, "model": model}
    return post(f"{url}/v1/chat/completions", body, timeout, KEY)


def states(host: str) -> dict[str, str]:
    return {entry["id"]: entry["meta"]["state"] for entry in get(f"{host}/v1/models", headers=KEY)[1]["data"]}


class Client(threading.Thread):
    """Asks for a model again and again; notes when each request began, when it was over, and how."""

    def __init__(self, url: str, model: str) -> None:
        super().__init__(daemon=True)
        self.answers: list[tuple[float, float, int]] = []
        self._url, self._model = url, model
        self._enough = threading.Event()

    def run(self) -> None:
        while not self._enough.wait(0.02):
            began_s = time.monotonic()
            try:
                status = ask(self._url, self._model)[0]
            except OSError:
                status = 0
            self.answers.append((began_s, time.monotonic(), status))

    def stop(self) -> list[tuple[float, float, int]]:
        self._enough.set()
        self.join(60)
        return self.answers


def answering(url: str) -> bool:
    try:
        return get(f"{url}/health", timeout=2)[0] == 200
    except OSError:
        return False


@pytest.fixture
def hosts(bed: Bed) -> Iterator[tuple[str, str]]:
    """The addresses of two hosts."""
    with ExitStack() as stack:
        first = stack.enter_context(far_host("host-a", 1))
        second = stack.enter_context(far_host("host-b", 2))
        stack.enter_context(near(bed, "host-a", first))
        stack.enter_context(far(bed, "host-b", second))
        wait_for(lambda: answering(f"http://{second}:8080"), "the second host answers", 30)
        yield first, second


def test_requests_go_where_their_model_is_ready_and_none_is_lost_once_a_dead_host_is_known(
    bed: Bed, hosts: tuple[str, str], tmp_path: Path
) -> None:
    a, b = (f"http://{host}:8080" for host in hosts)
    assert ask(a, "one")[0] == ask(b, "two")[0] == 200
    health = {host: {name: get(f"{host}/health?model={name}")[0] for name in (*MODELS, "none")} for host in (a, b)}
    assert health == {a: {"one": 200, "two": 503, "none": 404}, b: {"one": 503, "two": 200, "none": 404}}
    haproxy = Haproxy(tmp_path, *hosts)
    clients: list[Client] = []
    try:
        only_a = {f"{hosts[0]}_8080": True, f"{hosts[1]}_8080": False}
        only_b = {name: not up for name, up in only_a.items()}
        wait_for(lambda: haproxy.servers("llamad:one") == only_a, "the balancer knows where `one` is", 30)
        wait_for(lambda: haproxy.servers("llamad:two") == only_b, "and `two`", 30)
        assert all(haproxy.servers("llamad:one:held").values()), "both hosts could load it"
        assert [ask(haproxy.url, name)[0] for name in ("one", "two", "gpt-4o-mini") * 5] == [200] * 15
        assert states(a) == {"one": "ready", "gpt-4o-mini": "ready", "two": "unloaded"}
        assert states(b) == {"one": "unloaded", "gpt-4o-mini": "unloaded", "two": "ready"}
        guarded(haproxy.url)
        streamed(haproxy.url)
        clients = [Client(haproxy.url, "two") for _ in range(3)]
        for client in clients:
            client.start()
        wait_for(lambda: all(len(client.answers) > 5 for client in clients), "requests are answered", 30)
        killed_s = time.monotonic()
        kill("host-b")
        known_s = wait_for(lambda: not any(haproxy.servers("llamad:two").values()) and time.monotonic(), "the death is known", 30)
        print(f"the death was known after {known_s - killed_s:.1f} s")
        wait_for(lambda: states(a)["two"] == "ready", "the other host has it", 30)
        wait_for(lambda: haproxy.servers("llamad:two") == only_a, "and is known to", 30)
        count = sum(len(client.answers) for client in clients)
        wait_for(lambda: sum(len(client.answers) for client in clients) > count + 20, "it answers", 30)
        answers = [answer for client in clients for answer in client.stop()]
        lost = [(round(began - killed_s, 2), round(over - killed_s, 2), status) for began, over, status in answers if status != 200]
        print(f"{len(answers)} requests; lost, with begin and end in seconds after the death: {lost}")
        assert [one for one in lost if one[1] < 0] == [], "none before the death"
        assert [one for one in lost if one[0] > known_s - killed_s + 0.2] == [], "none once it was known"
        assert known_s - killed_s < 20 and len(answers) > len(lost) + 30
    finally:
        for client in clients:
            client.stop()
        haproxy.close()


def guarded(url: str) -> None:
    """Keys are the hosts' to check; orders and figures are not passed on; names are found everywhere, or told missing."""
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2, "model": "one"}
    assert post(f"{url}/v1/chat/completions", body)[0] == 401
    for path in ("/metrics", "/%6detrics", "/upstream/two/metrics", "/upstream/two/m%65trics", "/admin/status"):
        assert get(f"{url}{path}", headers=KEY)[0] == 404, path
    assert get(f"{url}/upstream/two/props", headers=KEY)[0] == get(f"{url}/props?model=one", headers=KEY)[0] == 200
    long = {**body, "messages": [{"role": "user", "content": "x" * 300_000}]}
    del long["model"]
    status, answer = post(f"{url}/v1/chat/completions", {**long, "model": "one"}, headers=KEY)
    assert status == 413 and "X-Model" in answer["error"]["message"]
    status, answer = post(f"{url}/v1/chat/completions", {"model": "one", **long}, headers=KEY)
    assert (status, answer["error"]["code"]) != (413, "model_not_found") and "context" in json.dumps(answer), answer
    status, _ = post(f"{url}/v1/chat/completions", {**long, "model": "one"}, headers={**KEY, "X-Model": "one"})
    assert status == 400
    assert post(f"{url}/v1/chat/completions", {**body, "model": "gpt-5"}, headers=KEY)[0] == 404


def streamed(url: str) -> None:
    """Events come one by one, not all at the end."""
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 400, "model": "one", "stream": True}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json", **KEY}
    )
    began_s = time.monotonic()
    with urllib.request.urlopen(request, timeout=60) as response:
        at_s = [time.monotonic() - began_s for line in response if line.startswith(b"data:")]
    assert len(at_s) > 50 and at_s[0] < 0.5 * at_s[-1], (at_s[0], at_s[-1], len(at_s))
