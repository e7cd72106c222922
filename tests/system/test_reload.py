"""Definitions edited while streams run: nothing is cut, nothing lost, and the right words are said."""

from __future__ import annotations

import http.client
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.streams import Streams, stream
from tests.system.conftest import ETC, Bed, get, post, wait_for

STREAMS = 50
TOKENS = 12
SLOTS = STREAMS // 2
ROOM = f"[placement]\nallow_cpu = true\nparallel = {SLOTS}\ncontext = %d\n"
FIRST = 8192


class Scene:
    """Two units with streams on both; `one` is edited, `two` must notice nothing."""

    def __init__(self, bed: Bed) -> None:
        self.bed = bed
        self.file = ETC / "one.toml"
        self.url = bed.define("one", vulkan=False, extra=ROOM % FIRST)
        self.other = bed.define("two", vulkan=False, extra=ROOM % FIRST)
        bed.ctl("start", "llamad@one", "llamad@two")
        self.untouched = (bed.main_pid("two"), bed.child_pid("two"))
        self.streams = (Streams(self.url, STREAMS // 2, TOKENS), Streams(self.other, STREAMS // 2, TOKENS))

    def text(self, context: int, head: str = "") -> str:
        return f'model = "{self.bed.tiny}"\nlisten = "127.0.0.1:{self.bed.ports["one"]}"\n{head}\n{ROOM % context}'

    def status(self) -> str:
        return self.bed.show("llamad@one", "StatusText")

    def told(self, event: str) -> list[str]:
        return [str(record["MESSAGE"]) for record in self.bed.events("one", event)]

    def until_context(self, context: int) -> None:
        wait_for(lambda: f"ready: ctx {context} " in self.status(), f"context {context} in force", 120)


@pytest.fixture
def scene(bed: Bed) -> Iterator[Scene]:
    one = Scene(bed)
    for streams in one.streams:
        streams.more()
    yield one
    for streams in one.streams:
        streams.end()


@pytest.mark.timeout(900)
def test_the_reload_matrix_with_fifty_streams(scene: Scene) -> None:
    bed, file = scene.bed, scene.file
    main = bed.main_pid("one")

    def untouched() -> None:
        assert (bed.main_pid("two"), bed.child_pid("two")) == scene.untouched
        assert bed.main_pid("one") == main

    def unchanged(act: Callable[[], None], said: Callable[[], object] | None = None) -> None:
        """An edit that must not cost a new llama-server."""
        child, applied = bed.child_pid("one"), len(scene.told("reload-applied"))
        act()
        if said is not None:
            wait_for(said, "it is said", 30)
        else:
            scene.streams[0].more()
            time.sleep(2.5)
            assert len(scene.told("reload-applied")) == applied
        assert bed.child_pid("one") == child
        untouched()

    def changed(context: int, act: Callable[[str], None]) -> None:
        """An edit of the context, in force by itself."""
        child = bed.child_pid("one")
        act(scene.text(context))
        scene.until_context(context)
        wait_for(lambda: bed.child_pid("one") not in (0, child), "the former llama-server is gone", 120)
        assert "placement.context" in wait_for(lambda: scene.told("reload-applied"), "it is said")[-1]
        untouched()
        for streams in scene.streams:
            streams.more()

    unchanged(lambda: bed.define("third", extra="# another model\n") and None)
    unchanged(
        lambda: file.write_text(scene.text(FIRST, 'aliases = ["alias"]')) and None,
        lambda: any("aliases" in text for text in scene.told("reload-applied")),
    )
    assert {model["id"] for model in get(f"{scene.url}/v1/models")[1]["data"]} == {"one", "alias"}
    unchanged(lambda: file.write_text("# a comment\n" + scene.text(FIRST, 'aliases = ["alias"]')) and None)

    changed(7168, lambda text: subprocess.run(["sed", "-i", f"s/context = {FIRST}/context = 7168/", file], check=True) and None)

    def rename(text: str) -> None:
        new = file.with_name(".one.toml.swp")
        new.write_text(text)
        new.replace(file)

    changed(6144, rename)

    def swap(text: str) -> None:
        folder = ETC / f"..{time.monotonic_ns()}"
        folder.mkdir()
        (folder / "one.toml").write_text(text)
        (ETC / "..new").symlink_to(folder.name)
        (ETC / "..new").replace(ETC / "..data")
        if not file.is_symlink():
            file.unlink()
            file.symlink_to("..data/one.toml")

    changed(5632, swap)
    changed(6656, swap)

    def recreate(text: str) -> None:
        kept = {path.name: path.read_text() for path in ETC.iterdir() if path.is_file()} | {"one.toml": text}
        shutil.rmtree(ETC)
        ETC.mkdir(mode=0o755)
        for name, content in kept.items():
            (ETC / name).write_text(content)

    changed(7168, recreate)
    changed(6144, rename)

    refused = len(scene.told("reload-refused"))
    unchanged(
        lambda: file.write_text(scene.text(5632) + "contxt = 1\n") and None,
        lambda: len(scene.told("reload-refused")) == refused + 1,
    )
    line = scene.text(5632).count("\n") + 1
    assert f"{file}:{line}:1: placement.contxt" in scene.told("reload-refused")[-1]
    assert "ready: ctx 6144" in scene.status() and f"{file}:{line}:1" in scene.status()
    unchanged(lambda: os.utime(file))
    unchanged(
        lambda: file.write_text(scene.text(5632) + "kv_offload = [\n") and None,
        lambda: len(scene.told("reload-refused")) == refused + 2,
    )
    unchanged(
        lambda: file.write_text(scene.text(5632) + 'gpus = ["GPU-00000000-0000-0000-0000-000000000000"]\n') and None,
        lambda: len(scene.told("reload-refused")) == refused + 3,
    )
    assert "gpus" in scene.told("reload-refused")[-1] or "GPU-0000" in scene.told("reload-refused")[-1]

    changed(5632, file.write_text)
    assert "refused" not in scene.status()
    assert len(scene.told("reload-refused")) == refused + 3, "each mistake is told once"
    outcomes = [streams.end() for streams in scene.streams]
    assert [set(outcome) for outcome in outcomes] == [{"done"}, {"done"}], outcomes
    assert bed.show("llamad@one", "NRestarts") == bed.show("llamad@two", "NRestarts") == "0"


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
