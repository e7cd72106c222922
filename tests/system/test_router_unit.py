"""The router: all models behind one address, with the shipped unit, a real llama-server and real units beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.router_unit import ON_CPU, Router, define, large, routing
from tests.support.streams import Streams
from tests.system.conftest import ETC, Bed, get, post, run, wait_for


@pytest.fixture
def router(bed: Bed) -> Iterator[Router]:
    with routing(bed) as made:
        yield made


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
    clients = Streams(router.url, 2, 4, model="one")
    router.bed.ctl("restart", "llamad")
    clients.more(4)
    assert clients.end().keys() == {"done"}
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
