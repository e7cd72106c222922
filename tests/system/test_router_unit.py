"""The router: all models behind one address, with the shipped unit, a real llama-server and real units beside it."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.system.conftest import ETC, Bed, Router, get, post, run, wait_for

ON_CPU = "[placement]\nallow_cpu = true\ngpu_layers = 0\ncontext = 2048\nparallel = 2\n"


def define(bed: Bed, name: str, *, head: str = "", placement: str = ON_CPU, extra: str = "") -> str:
    return bed.define(name, head=head, extra=placement + extra)


def test_two_models_by_name_loaded_with_their_first_requests(router: Router) -> None:
    define(router.bed, "one", head='aliases = ["gpt-4o-mini"]')
    define(router.bed, "two")
    router.start()
    assert router.bed.show("llamad", "ActiveState") == "active"
    assert router.states() == {"one": "unloaded", "gpt-4o-mini": "unloaded", "two": "unloaded"}
    status, answer = router.ask("one")
    assert status == 200, answer
    assert answer["model"] == "one"
    assert router.states() == {"one": "ready", "gpt-4o-mini": "ready", "two": "unloaded"}
    assert router.ask("gpt-4o-mini")[1]["model"] == "one"
    assert router.ask("two")[1]["model"] == "two"
    assert "ready: one, two" in router.bed.show("llamad", "StatusText")
    status, answer = router.ask("three")
    assert status == 404
    assert answer["error"]["code"] == "model_not_found" and "one, two" in answer["error"]["message"]
    assert get(f"{router.url}/upstream/two/props")[0] == 200
    shown = {model["name"]: model["state"] for model in json.loads(run("llamad", "status", "--json").stdout)["models"]}
    assert shown == {"one": "ready", "two": "ready"}
    router.bed.ctl("stop", "llamad")
    assert router.bed.show("llamad", "Result") == "success"
    assert not [path.name for path in Path("/run/llamad/ledger").iterdir() if not path.name.startswith(".")]


def test_a_model_without_requests_is_unloaded_and_comes_back(router: Router) -> None:
    define(router.bed, "one", extra='[idle]\nkeep_alive = "1s"\n')
    router.start()
    assert router.ask("one")[0] == 200
    router.until("one", "unloaded", 20)
    assert "idle" in router.events("unloading")[0]["LLAMAD_CAUSE"]
    assert not run("pgrep", "llama-server", check=False).stdout
    assert router.ask("one")[0] == 200


def more_than_half_mib() -> int:
    rows = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(rows["MemAvailable"].split()[0]) * 6 // 10 // 1024


def large(bed: Bed, name: str, *, head: str = "", extra: str = "") -> str:
    """A model beside which there is no room for another one like it: its prompt cache is promised in host memory."""
    return define(bed, name, head=head, extra=f'[server]\ncache_ram = "{more_than_half_mib()}MiB"\n{extra}')


def test_where_memory_holds_one_the_idle_one_goes(router: Router) -> None:
    for name in ("one", "two"):
        large(router.bed, name)
    router.start("resident_s = 0")
    assert router.ask("one")[0] == 200
    assert router.states() == {"one": "ready", "two": "unloaded"}
    assert router.ask("two", timeout=120)[0] == 200
    assert router.states() == {"one": "unloaded", "two": "ready"}
    assert "two needs its memory" in router.events("unloading")[0]["LLAMAD_CAUSE"]
    assert router.ask("one", timeout=120)[0] == 200


def test_a_pinned_model_does_not_go_and_who_waits_is_told_why(router: Router) -> None:
    large(router.bed, "one", head='start = "always"')
    large(router.bed, "two", extra="[limits]\nwait_s = 5\n")
    router.start("resident_s = 0")
    router.until("one", "ready")
    status, answer = router.ask("two")
    assert status == 503 and answer["error"]["code"] == "wait_timeout", answer
    assert router.states()["one"] == "ready"
    router.until("two", "unloaded", 20)  # nobody waits for it any more


def test_a_unit_that_needs_the_memory_of_an_idle_model_gets_it(router: Router) -> None:
    for name in ("one", "two"):
        large(router.bed, name)
    router.start("resident_s = 0")
    assert router.ask("one")[0] == 200
    router.bed.ctl("start", "llamad@two")
    assert router.states() == {"one": "unloaded", "two": "forwarded"}
    assert router.ask("two")[1]["model"] == "two"


class Load(threading.Thread):
    """One client after another's answer, until told to stop."""

    def __init__(self, router: Router, model: str) -> None:
        super().__init__(daemon=True)
        self.answers: list[tuple[int, Any]] = []
        self._router, self._model = router, model
        self._enough = threading.Event()

    def run(self) -> None:
        while not self._enough.is_set():
            self.answers.append(self._router.ask(self._model, tokens=8, timeout=120))

    def stop(self) -> list[tuple[int, Any]]:
        self._enough.set()
        self.join(120)
        assert not self.is_alive()
        return self.answers


def test_a_unit_takes_its_model_and_gives_it_back_and_no_request_is_lost(router: Router) -> None:
    define(router.bed, "one")
    router.start("unit_grace_s = 20")
    assert router.ask("one")[0] == 200
    clients = [Load(router, "one") for _ in range(3)]
    for client in clients:
        client.start()
    router.bed.ctl("start", "llamad@one")
    assert "llamad@one takes it over" in router.events("unloading")[0]["LLAMAD_CAUSE"]
    router.until("one", "forwarded")
    count = sum(len(client.answers) for client in clients)
    wait_for(lambda: sum(len(client.answers) for client in clients) > count + 6, "requests go through the unit")
    assert [path.name for path in Path("/run/llamad/router/one/engine").iterdir()] == [] or not run(
        "pgrep", "-f", "router/one/engine", check=False
    ).stdout
    router.bed.ctl("restart", "llamad@one")
    count = sum(len(client.answers) for client in clients)
    wait_for(lambda: sum(len(client.answers) for client in clients) > count + 6, "requests go through it again")
    router.bed.ctl("stop", "llamad@one")
    router.until("one", "ready")
    count = sum(len(client.answers) for client in clients)
    wait_for(lambda: sum(len(client.answers) for client in clients) > count + 6, "requests go to the router's own")
    lost = [answer for client in clients for answer in client.stop() if answer[0] != 200]
    assert not lost


def test_an_enabled_unit_that_is_stopped_is_named(router: Router) -> None:
    define(router.bed, "one")
    router.bed.ctl("enable", "llamad@one")
    router.start("unit_grace_s = 1")
    router.until("one", "unit-stopped")
    status, answer = router.ask("one")
    assert (status, answer["error"]["code"]) == (503, "unit_stopped")
    assert "systemctl start llamad@one" in answer["error"]["message"]
    router.bed.ctl("start", "llamad@one")
    router.until("one", "forwarded")
    assert router.ask("one")[0] == 200
    router.bed.ctl("stop", "llamad@one")
    router.bed.ctl("disable", "llamad@one")
    assert router.ask("one")[0] == 200
    assert router.states()["one"] == "ready"


def test_what_is_broken_or_manual_says_so_and_the_rest_is_served(router: Router) -> None:
    define(router.bed, "one")
    define(router.bed, "hand", head='start = "manual"')
    (ETC / "broken.toml").write_text('model = "/m.gguf"\ncontxt = 5\n')
    (ETC / "lost.toml").write_text('model = "/var/lib/llamad/models/none.gguf"\n')
    router.start()
    assert router.states() == {"one": "unloaded", "hand": "manual", "broken": "broken", "lost": "unloaded"}
    status, answer = router.ask("broken")
    assert (status, answer["error"]["code"]) == (503, "broken_definition")
    assert "broken.toml:2:1" in answer["error"]["message"]
    status, answer = router.ask("hand")
    assert (status, answer["error"]["code"]) == (503, "manual_start")
    status, answer = router.ask("lost")
    assert (status, answer["error"]["code"]) == (503, "model_failed")
    assert "none.gguf" in answer["error"]["message"]
    assert router.ask("one")[0] == 200
    (ETC / "broken.toml").write_text(f'model = "{router.bed.tiny}"\n{ON_CPU}')
    router.bed.ctl("reload", "llamad")
    router.until("broken", "unloaded")
    assert router.ask("broken")[0] == 200


def test_ready_waits_for_the_models_that_are_always_there(router: Router) -> None:
    define(router.bed, "one", head='start = "always"', extra='[idle]\nkeep_alive = "1s"\n')
    define(router.bed, "two", extra='[idle]\nkeep_alive = "1s"\n')
    router.start()
    assert get(f"{router.url}/health") == (200, {"status": "ok"})
    wait_for(lambda: get(f"{router.url}/ready")[0] == 200, "ready", 60)
    assert router.states() == {"one": "ready", "two": "unloaded"}
    assert router.ask("two")[0] == 200
    router.until("two", "unloaded", 20)  # as short a keep_alive as the first one's
    assert router.states()["one"] == "ready"


def test_a_restart_and_a_death_of_the_router_lose_nothing_and_leave_nothing(router: Router) -> None:
    define(router.bed, "one", head='start = "always"')
    router.start()
    router.until("one", "ready")
    clients = [Load(router, "one") for _ in range(2)]
    for client in clients:
        client.start()
    router.bed.ctl("restart", "llamad")
    count = sum(len(client.answers) for client in clients)
    wait_for(lambda: sum(len(client.answers) for client in clients) > count + 4, "requests are answered again")
    assert not [answer for client in clients for answer in client.stop() if answer[0] != 200]
    children = run("pgrep", "llama-server").stdout.split()
    router.bed.ctl("kill", "-s", "KILL", "--kill-whom=main", "llamad")
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), "no orphan", 10)
    wait_for(lambda: router.bed.show("llamad", "ActiveState") == "active", "it is back")
    router.until("one", "ready")
    assert router.ask("one")[0] == 200


def test_a_reload_touches_only_what_changed(router: Router) -> None:
    define(router.bed, "one")
    define(router.bed, "two")
    router.start()
    assert router.ask("one")[0] == router.ask("two")[0] == 200
    before = set(run("pgrep", "llama-server").stdout.split())
    file = ETC / "two.toml"
    file.write_text(file.read_text().replace("context = 2048", "context = 1024"))
    define(router.bed, "three")
    router.bed.ctl("reload", "llamad")
    assert router.ask("three")[0] == 200
    wait_for(lambda: len(before & set(run("pgrep", "llama-server").stdout.split())) == 1, "one was replaced")
    router.until("two", "ready")
    assert get(f"{router.url}/upstream/two/props")[1]["default_generation_settings"]["n_ctx"] == 1024
    (ETC / "three.toml").unlink()
    router.bed.ctl("reload", "llamad")
    wait_for(lambda: "three" not in router.states(), "it is forgotten")
    assert router.ask("three")[0] == 404


def test_keys_of_the_address_and_of_a_model(router: Router) -> None:
    for name in ("all", "own"):
        (ETC / f"{name}.keys").write_text(f"{name}-key\n")
        run("chown", "_llamad", str(ETC / f"{name}.keys"))
    define(router.bed, "one")
    define(router.bed, "two", head='api_keys_file = "/etc/llamad/own.keys"')
    router.start('api_keys_file = "/etc/llamad/all.keys"')

    def ask(model: str, key: str) -> int:
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
        return post(f"{router.url}/v1/chat/completions", body, headers={"Authorization": f"Bearer {key}"})[0]

    assert [ask("one", "all-key"), ask("one", "own-key"), ask("one", "none")] == [200, 401, 401]
    assert [ask("two", "all-key"), ask("two", "own-key"), ask("two", "none")] == [401, 200, 401]
    router.bed.ctl("start", "llamad@two")  # which asks for its keys itself
    assert [ask("two", "all-key"), ask("two", "own-key"), ask("two", "none")] == [401, 200, 401]


def test_curl_and_the_sdk(router: Router) -> None:
    define(router.bed, "one", head='aliases = ["gpt-4o"]')
    define(router.bed, "two")
    router.start()
    body = '{"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3, "model": "two"}'
    shown = run("curl", "-sS", "--fail-with-body", f"{router.url}/v1/chat/completions", "-d", body).stdout
    assert json.loads(shown)["model"] == "two"
    client = openai.OpenAI(base_url=f"{router.url}/v1", api_key="none", timeout=60)
    assert [model.id for model in client.models.list()] == ["one", "gpt-4o", "two"]
    hello: Any = [{"role": "user", "content": "hello"}]
    assert client.chat.completions.create(model="gpt-4o", messages=hello, max_tokens=3).model == "one"
    stream = client.chat.completions.create(model="two", messages=hello, max_tokens=6, stream=True)
    chunks = list(stream)
    assert {chunk.model for chunk in chunks} == {"two"} and chunks[-1].choices[0].finish_reason == "length"
    assert client.completions.create(model="one", prompt="hello", max_tokens=3).usage is not None
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="three", messages=hello)
    assert missing.value.code == "model_not_found"
