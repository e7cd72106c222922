"""Definitions edited while streams run: nothing is cut, nothing lost, and the right words are said."""

from __future__ import annotations

import http.client
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.streams import stream
from tests.system.conftest import ETC, Bed, get, post, wait_for
from tests.system.reloading import FIRST, ROOM, Scene, streaming


class UnitScene(Scene):
    """Each model has a unit."""

    def __init__(self, bed: Bed) -> None:
        urls = [bed.define(name, vulkan=False, extra=ROOM % FIRST) for name in ("one", "two")]
        bed.ctl("start", "llamad@one", "llamad@two")
        self.bed = bed
        super().__init__(bed, *urls)

    def main_pids(self) -> tuple[int, ...]:
        return self.bed.main_pid("one"), self.bed.main_pid("two")

    def child_pid(self, name: str) -> int:
        return self.bed.child_pid(name)

    def status(self) -> str:
        return self.bed.show("llamad@one", "StatusText")

    def context(self) -> int:
        found = re.match(r"ready: ctx (\d+) ", self.status())
        return int(found[1]) if found else 0

    def names(self) -> set[str]:
        return {model["id"] for model in get(f"{self.url}/v1/models")[1]["data"]}


@pytest.fixture
def scene(bed: Bed) -> Iterator[UnitScene]:
    with streaming(UnitScene(bed)) as one:
        yield one


@pytest.mark.timeout(900)
def test_the_reload_matrix_with_fifty_streams(scene: UnitScene) -> None:
    scene.play()
    scene.end()
    assert scene.bed.show("llamad@one", "NRestarts") == scene.bed.show("llamad@two", "NRestarts") == "0"


def test_a_stream_longer_than_the_drain_ends_with_its_cause(bed: Bed) -> None:
    extra = "[limits]\ndrain_s = 0.2\n[placement]\nallow_cpu = true\nparallel = 1\ncontext = %d\n"
    url = bed.define("one", vulkan=False, extra=extra % 4096)
    bed.ctl("start", "llamad@one")
    begun, outcomes = threading.Event(), []
    client = threading.Thread(target=lambda: outcomes.append(stream(urlsplit(url).netloc, 4000, begun.set)))
    client.start()
    assert begun.wait(30)
    bed.define("one", vulkan=False, extra=extra % 2048)
    bed.ctl("reload", "llamad@one")
    client.join(60)
    assert len(outcomes) == 1 and outcomes[0].startswith("error: reload"), outcomes
    assert "ctx 2048" in bed.show("llamad@one", "StatusText")


def cached_tokens(url: str, prompt: list[int]) -> int:
    status, answer = post(f"{url}/completion", {"prompt": prompt, "n_predict": 4, "cache_prompt": True})
    assert status == 200
    return int(answer["timings"]["cache_n"])


def test_what_a_slot_has_read_survives_a_change_of_the_context(bed: Bed) -> None:
    extra = "[placement]\nallow_cpu = true\nparallel = 2\ncontext = %d\n"
    url = bed.define("one", vulkan=False, extra=extra % 4096)
    bed.ctl("start", "llamad@one")
    prompt = [10 + number % 50 for number in range(600)]
    assert cached_tokens(url, prompt) == 0
    bed.define("one", vulkan=False, extra=extra % 2048)
    bed.ctl("reload", "llamad@one")
    assert "ctx 2048" in bed.show("llamad@one", "StatusText")
    (kept,) = bed.events("one", "prompts-kept")
    assert int(kept["LLAMAD_TOKENS"]) >= 600
    assert cached_tokens(url, prompt) > 500
    assert list(Path("/var/cache/llamad/one/slots").iterdir()) == []
    assert Path("/var/cache/llamad/one/slots").stat().st_mode & 0o777 == 0o700


def test_an_address_moves_without_a_restart(bed: Bed) -> None:
    url = bed.define("one", vulkan=False, extra="[placement]\nallow_cpu = true\n")
    bed.ctl("start", "llamad@one")
    child = bed.child_pid("one")
    kept = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    kept.request("GET", "/v1/models")
    assert kept.getresponse().read()
    del bed.ports["one"]
    moved = bed.define("one", vulkan=False, extra="[placement]\nallow_cpu = true\n")
    assert moved != url
    wait_for(lambda: bed.events("one", "reload-applied"), "in force")
    assert get(f"{moved}/health")[0] == 200 and bed.child_pid("one") == child
    with pytest.raises(OSError):
        get(f"{url}/health", timeout=5)
    kept.request("GET", "/v1/models")
    assert kept.getresponse().status == 200, "a connection outlives its address"
    kept.close()
    bed.ctl("restart", "llamad@one")
    assert get(f"{moved}/health")[0] == 200
    with pytest.raises(OSError):
        get(f"{url}/health", timeout=5)


def test_a_removed_definition_is_served_on_and_said(bed: Bed) -> None:
    url = bed.define("one", vulkan=False, extra="[placement]\nallow_cpu = true\n")
    bed.ctl("start", "llamad@one")
    child = bed.child_pid("one")
    (ETC / "one.toml").unlink()
    wait_for(lambda: bed.events("one", "definition-removed"), "it is said", 15)
    assert "is gone" in bed.show("llamad@one", "StatusText")
    assert get(f"{url}/health")[0] == 200 and bed.child_pid("one") == child
    bed.define("one", vulkan=False, extra="[placement]\nallow_cpu = true\n")
    wait_for(lambda: "gone" not in bed.show("llamad@one", "StatusText"), "back", 15)
    assert bed.child_pid("one") == child


def test_without_watching_an_edit_waits_for_systemctl_reload(bed: Bed) -> None:
    toml = (ETC / "llamad.toml").read_text()
    (ETC / "llamad.toml").write_text("[host]\nwatch = false\n")
    try:
        extra = "[placement]\nallow_cpu = true\ncontext = %d\n"
        bed.define("one", vulkan=False, extra=extra % 4096)
        bed.ctl("start", "llamad@one")
        child = bed.child_pid("one")
        bed.define("one", vulkan=False, extra=extra % 2048)
        time.sleep(3)
        assert bed.child_pid("one") == child
        bed.ctl("reload", "llamad@one")
        assert "ctx 2048" in bed.show("llamad@one", "StatusText")
    finally:
        (ETC / "llamad.toml").write_text(toml)
