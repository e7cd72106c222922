"""Stop, restart, reload, kill: right states, nobody refused, nothing left."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.system.conftest import ETC, Bed, chat, get, run, wait_for

REQUESTS = 500
CPU = "[placement]\nallow_cpu = true\n"  # where the device is not the point: 500 requests take seconds there
CLIENTS = 8


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Load:
    """Sends many requests from a few clients, each on a connection of its own or kept alive, and counts outcomes."""

    def __init__(self, url: str) -> None:
        self.address = urlsplit(url).netloc
        self.outcomes: Counter[str] = Counter()
        self._left = REQUESTS
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._client, daemon=True) for _ in range(CLIENTS)]

    def during(self, act: Callable[[], None], at: int = 100) -> Counter[str]:
        """Run the load, and `act` once `at` requests were answered."""
        for thread in self._threads:
            thread.start()
        wait_for(lambda: sum(self.outcomes.values()) >= at, f"{at} answers", 60, 0.005)
        act()
        for thread in self._threads:
            thread.join(timeout=120)
            assert not thread.is_alive(), self.outcomes
        return self.outcomes

    def _client(self) -> None:
        while True:
            with self._lock:
                if self._left == 0:
                    return
                self._left -= 1
            outcome = self._one()
            with self._lock:
                self.outcomes[outcome] += 1

    def _one(self) -> str:
        connection = http.client.HTTPConnection(self.address, timeout=90)
        try:
            body = '{"prompt": [10, 11, 12], "n_predict": 4}'
            headers = {"Content-Type": "application/json", "Connection": "close"}
            connection.request("POST", "/completion", body, headers)
            response = connection.getresponse()
            text = response.read()
            return str(response.status) if text else "empty"
        except ConnectionRefusedError:
            return "refused"
        except (ConnectionResetError, BrokenPipeError, http.client.RemoteDisconnected, http.client.IncompleteRead):
            return "reset"
        finally:
            connection.close()


def test_stop_leaves_no_process_and_no_socket(bed: Bed) -> None:
    url = bed.define("tiny")
    bed.ctl("start", "llamad@tiny")
    main, child = bed.main_pid("tiny"), bed.child_pid("tiny")
    assert main and child and chat(url)[0] == 200
    bed.ctl("stop", "llamad@tiny")
    assert bed.show("llamad@tiny", "ActiveState") == "inactive"
    assert bed.show("llamad@tiny", "Result") == "success"
    assert not alive(main) and not alive(child)
    assert not Path("/run/llamad/model/tiny").exists()
    port = bed.ports["tiny"]
    assert f":{port} " not in run("ss", "-ltn").stdout
    assert [e["LLAMAD_EVENT"] for e in bed.events("tiny")][-1] == "stopped"


def test_a_unix_socket_is_served_restarted_and_gone_after_stop(bed: Bed) -> None:
    (ETC / "tiny.toml").write_text(
        f'model = "{bed.tiny}"\nlisten = "unix:tiny.sock"\nlisten_mode = "0666"\n[placement]\nallow_cpu = true\n'
    )
    bed.ctl("start", "llamad@tiny")
    sock = Path("/run/llamad/api/tiny.sock")

    def ask() -> str:
        return run("curl", "-sS", "--max-time", "20", "--unix-socket", str(sock), "http://localhost/health").stdout

    assert "ok" in ask()
    assert oct(sock.stat().st_mode & 0o777) == "0o666"
    bed.ctl("restart", "llamad@tiny")
    assert "ok" in ask()
    bed.ctl("stop", "llamad@tiny")
    assert not sock.exists()


@pytest.mark.parametrize("what", ["llamad@tiny", "llamad.target"])
def test_a_restart_refuses_and_resets_nobody(bed: Bed, what: str) -> None:
    url = bed.define("tiny", vulkan=False, extra=CPU)
    bed.ctl("enable", "llamad@tiny")
    bed.ctl("start", "llamad.target")
    bed.ctl("start", "llamad@tiny")
    before = bed.main_pid("tiny")
    outcomes = Load(url).during(lambda: (bed.ctl("restart", what), None)[1])
    assert outcomes == Counter({"200": REQUESTS})
    wait_for(lambda: bed.show("llamad@tiny", "ActiveState") == "active", "active again")
    assert bed.main_pid("tiny") != before


def test_sigkill_of_llamad_refuses_nobody_and_resets_only_what_was_in_flight(bed: Bed) -> None:
    url = bed.define("tiny", vulkan=False, extra=CPU)
    bed.ctl("start", "llamad@tiny")
    main, child = bed.main_pid("tiny"), bed.child_pid("tiny")
    outcomes = Load(url).during(lambda: os.kill(main, signal.SIGKILL))
    assert outcomes["refused"] == 0
    assert outcomes["reset"] <= CLIENTS
    assert outcomes["200"] + outcomes["reset"] == REQUESTS, outcomes
    wait_for(lambda: bed.show("llamad@tiny", "ActiveState") == "active", "active again")
    assert not alive(child)
    assert bed.main_pid("tiny") != main


def test_reload_applies_a_change_and_answers_everyone(bed: Bed) -> None:
    url = bed.define("tiny", vulkan=False, extra=CPU + "context = 2048")
    bed.ctl("start", "llamad@tiny")
    main, child = bed.main_pid("tiny"), bed.child_pid("tiny")

    def edit() -> None:
        bed.define("tiny", vulkan=False, extra=CPU + "context = 1024")
        bed.ctl("reload", "llamad@tiny")

    assert Load(url).during(edit) == Counter({"200": REQUESTS})
    assert bed.main_pid("tiny") == main
    wait_for(lambda: bed.child_pid("tiny") not in (0, child), "the former llama-server is gone")
    assert "ctx 1024" in bed.show("llamad@tiny", "StatusText")
    child = bed.child_pid("tiny")
    bed.define("tiny", head='aliases = ["other"]', vulkan=False, extra=CPU + "context = 1024")
    bed.ctl("reload", "llamad@tiny")
    assert bed.child_pid("tiny") == child, "an alias needs no new child"
    assert {m["id"] for m in get(f"{url}/v1/models")[1]["data"]} == {"tiny", "other"}


def test_reload_with_a_broken_file_fails_and_changes_nothing(bed: Bed) -> None:
    url = bed.define("tiny")
    bed.ctl("start", "llamad@tiny")
    child, status = bed.child_pid("tiny"), bed.show("llamad@tiny", "StatusText")
    bed.define("tiny", extra='[placement]\ncontxt = "auto"')
    done = bed.ctl("reload", "llamad@tiny", check=False)
    assert done.returncode != 0
    assert bed.show("llamad@tiny", "ActiveState") == "active"
    assert bed.child_pid("tiny") == child and bed.show("llamad@tiny", "StatusText").startswith(status)
    wait_for(lambda: "contxt" in bed.show("llamad@tiny", "StatusText"), "the watch says so as well", 10)
    assert chat(url)[0] == 200
    said = [str(r.get("MESSAGE")) for r in bed.journal("-u", "llamad@tiny")]
    assert any("contxt" in line and "did you mean" in line for line in said)


def test_a_new_definition_that_cannot_start_leaves_the_old_one_serving(bed: Bed) -> None:
    url = bed.define("tiny")
    bed.ctl("start", "llamad@tiny")
    child = bed.child_pid("tiny")
    bed.define("tiny", extra='[server]\nchat_template = "{% this is no template"')
    bed.ctl("reload", "llamad@tiny", check=False)
    (refused,) = wait_for(lambda: bed.events("tiny", "reload-refused"), "the new one could not be started")
    assert "template" in refused["MESSAGE"]
    assert bed.child_pid("tiny") == child and chat(url)[0] == 200, "the old one served on"
    assert bed.show("llamad@tiny", "ActiveState") == "active"


def connections() -> int:
    """Sockets at the child's end, the listening one and those not accepted yet among them."""
    return Path("/proc/net/unix").read_text().count("/run/llamad/model/tiny/engine/llama.sock")


def test_sigkill_of_the_child_answers_the_request_of_that_moment(bed: Bed) -> None:
    url = bed.define("tiny")
    bed.ctl("start", "llamad@tiny")
    child = bed.child_pid("tiny")
    # Frozen first, so that the request surely reaches a child that will not answer it.
    os.kill(child, signal.SIGSTOP)
    before = connections()
    answers: list[int] = []
    client = threading.Thread(target=lambda: answers.append(chat(url)[0]))
    client.start()
    wait_for(lambda: connections() > before, "the request is with the child")
    killed_at = time.monotonic()
    os.kill(child, signal.SIGKILL)
    client.join(timeout=60)
    assert answers == [200]
    assert time.monotonic() - killed_at < 30
    assert bed.child_pid("tiny") not in (0, child)
    exited = bed.events("tiny", "child-exited")
    assert len(exited) == 1 and "SIGKILL" in exited[0]["LLAMAD_CAUSE"]
    assert bed.show("llamad@tiny", "NRestarts") == "0", "llamad itself lived on"


def test_sigkill_in_the_foreground_leaves_no_orphan(bed: Bed) -> None:
    bed.define("tiny", vulkan=False, extra="[placement]\nallow_cpu = true")
    server = subprocess.Popen(["llamad", "serve", "tiny"], stderr=subprocess.PIPE, text=True)
    try:
        url = f"http://127.0.0.1:{bed.ports['tiny']}"
        wait_for(lambda: _health(url) == 200, "ready in the foreground")
        found = run("pgrep", "-P", str(server.pid)).stdout.split()
        assert len(found) == 1
        uid = os.stat(f"/proc/{server.pid}").st_uid
        assert uid != 0, "llama-server never runs as root"
        server.kill()
        server.wait(10)
        wait_for(lambda: not alive(int(found[0])), "the child is gone", 5)
    finally:
        server.kill()


def _health(url: str) -> int:
    try:
        return get(f"{url}/health")[0]
    except OSError:
        return 0


def test_a_second_server_of_the_same_name_is_refused(bed: Bed) -> None:
    bed.define("tiny")
    bed.ctl("start", "llamad@tiny")
    done = run("llamad", "serve", "tiny", check=False)
    assert done.returncode == 75
    assert str(bed.main_pid("tiny")) in done.stderr


def test_boot_does_not_wait_for_a_model(bed: Bed) -> None:
    """A model that never gets ready; the job of multi-user.target must end all the same."""
    fake = Path("/usr/local/lib/llama-server-never")
    fake.write_text("#!/bin/sh\ncase $1 in --*) exec /usr/bin/llama-server \"$@\";; esac\nexec sleep 600\n")
    fake.chmod(0o755)
    bed.define("tiny", extra="[placement]\nallow_cpu = true", vulkan=False)
    toml = (ETC / "llamad.toml").read_text()
    (ETC / "llamad.toml").write_text(f'[host]\nserver = "{fake}"\n')
    try:
        bed.ctl("enable", "llamad@tiny")
        bed.ctl("stop", "llamad.target", "multi-user.target")
        bed.ctl("start", "multi-user.target", timeout=20)
        assert bed.show("multi-user.target", "ActiveState") == "active"
        wait_for(lambda: bed.show("llamad@tiny", "ActiveState") == "activating", "the model is being started")
    finally:
        bed.ctl("stop", "llamad@tiny", check=False)
        (ETC / "llamad.toml").write_text(toml)
        fake.unlink()
