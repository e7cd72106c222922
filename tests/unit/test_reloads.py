"""Reloads: what is asked by a signal or by the watch, with the supervisor and the relay as fakes."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamad.clock import SystemClock
from llamad.config.load import load_definition
from llamad.config.loaded import Loaded
from llamad.config.watched import look
from llamad.errors import AccessError, BusyError, ConfigError, LlamadError
from llamad.front.keys import KeySet
from llamad.service.keys import read_keys
from llamad.service.reloads import Reloads, Sources
from llamad.supervision.reload import Reverted
from tests.support.certificates import make_certificate
from tests.support.fakes import FakeReporter
from tests.unit.test_config_watch import EXECUTOR_THREADS, STYLES, back_to, open_fds


class Teller(FakeReporter):
    """Remembers what systemd was told of reloads, and the lines of status."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def reloading(self) -> None:
        self.told.append("reloading")

    def still_ready(self, text: str) -> None:
        self.told.append("ready")


class FakeMove:
    """An address that moves as it is told."""

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls
        calls.append("bind")

    def give_up(self) -> None:
        self.calls.append("give up")

    async def carry_out(self, relay: Any) -> None:
        self.calls.append(f"carry out with {len(relay.keys)} keys")


class Model:
    """A supervisor that takes every definition, and a relay that remembers what it was given."""

    def __init__(self, loaded: Loaded) -> None:
        self.public_state, self.loaded = "ready", loaded
        self.reloaded: list[str] = []
        self.adopted = 0
        self.refuse: LlamadError | None = None
        self.may_reload = asyncio.Event()
        self.may_reload.set()
        self.keys: KeySet | None = None
        self.applied: Loaded | None = None
        self.changed = asyncio.Event()
        self.said = ""

    async def reload(self, loaded: Loaded, changed: str, *, replaced: bool) -> None:
        self.reloaded.append(changed)
        self.changed.set()
        await self.may_reload.wait()
        if self.refuse:
            raise self.refuse
        self.loaded = loaded

    def adopt(self, loaded: Loaded) -> None:
        self.adopted += 1
        self.loaded = loaded
        self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.changed.clear()
            await self.changed.wait()

    def status_text(self) -> str:
        return f"ready {self.said}"

    def remark(self, topic: str, text: str) -> None:
        assert topic == "definition"
        self.said = text

    def apply(self, loaded: Loaded, keys: KeySet) -> None:
        self.applied, self.keys = loaded, keys
        self.changed.set()

    async def move(self, listening: Any) -> None:
        raise AssertionError("the move is a fake")


TEXT = 'model = "/m/tiny.gguf"\nlisten = "127.0.0.1:8081"\n'


class Rig:
    """A definition in a folder, and what becomes of its edits."""

    def __init__(self, root: Path) -> None:
        self.root, self.file = root, root / "tiny.toml"
        self.file.write_text(TEXT)
        loaded = load_definition("tiny", root)
        self.model, self.teller = Model(loaded), Teller()
        self.moves: list[str] = []
        self.loads = 0
        sources: Any = Sources(lambda: self.load(), lambda one: read_keys(one, None), lambda _old, _new: FakeMove(self.moves))
        model: Any = self.model
        self.reloads = Reloads(sources, model, model, self.teller, SystemClock(), KeySet(), quiet_s=0.0)

    def load(self) -> Loaded:
        self.loads += 1
        return load_definition("tiny", self.root)

    async def rest(self) -> None:
        """Until no reload is under way."""
        while (task := self.reloads._task) is not None and not task.done():
            await asyncio.wait([task], timeout=10)
        if task is not None:
            assert task.exception() is None

    async def hang_up(self) -> None:
        self.reloads.hang_up()
        await self.rest()

    async def edit(self, text: str) -> None:
        """As the watch tells of it."""
        self.file.write_text(text)
        await self.noticed()

    async def applied_keys(self, keys: list[str], admin: KeySet | None = None) -> None:
        """Return when the relay asks for these."""
        async with asyncio.timeout(20):
            await self.model.until(lambda: self.model.keys == KeySet(keys, admin))

    async def noticed(self) -> None:
        self.reloads.edited(look(self.file, self.root).digest)
        await self.rest()


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def play(scene: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scene)


def test_a_comment_is_no_reload(rig: Rig) -> None:
    async def scene() -> None:
        await rig.edit(TEXT + "# a comment\n")
        assert (rig.model.reloaded, rig.teller.told, rig.teller.names()) == ([], [], [])
        assert rig.model.loaded.digest == look(rig.file, rig.root).digest, "places are those of the new text"
        await rig.hang_up()
        assert rig.model.reloaded == [""] and rig.teller.told == ["reloading", "ready"]
        assert rig.teller.names() == []

    play(scene())


def test_what_the_relay_uses_is_applied_in_place(rig: Rig) -> None:
    async def scene() -> None:
        await rig.edit(TEXT + 'aliases = ["a"]\n[limits]\nwait_s = 7\n')
        assert rig.model.reloaded == [] and rig.model.adopted == 1
        assert rig.model.applied is rig.model.loaded
        assert rig.teller.told == ["reloading", "ready"]
        (event,) = rig.teller.events
        assert event[0] == "reload-applied" and event[2]["CHANGED"] == "aliases, limits.wait_s"

    play(scene())


def test_what_llama_server_uses_goes_to_the_supervisor(rig: Rig) -> None:
    async def scene() -> None:
        await rig.edit(TEXT + 'aliases = ["a"]\n[placement]\ncontext = 1024\n')
        assert rig.model.reloaded == ["aliases, placement.context"] and rig.model.adopted == 0
        assert rig.teller.told == ["reloading", "ready"]
        assert rig.teller.names() == []  # the supervisor tells when it serves

    play(scene())


def test_a_mistake_is_told_once_with_its_place_and_stays_in_the_status(rig: Rig) -> None:
    async def scene() -> None:
        await rig.edit(TEXT + "[placement]\ncontxt = 5\n")
        assert rig.teller.names() == ["reload-refused"]
        assert f"{rig.file}:4:1: placement.contxt" in rig.teller.events[0][1]
        assert f"{rig.file}:4:1" in rig.model.said
        assert rig.teller.told == [] and rig.model.adopted == 0
        for _ in range(3):
            await rig.noticed()
        await rig.edit(TEXT + "[placement]\ncontxt = 5\n")
        assert rig.teller.names() == ["reload-refused"]
        await rig.edit(TEXT + "[placement]\ncontxt = 6\n")
        assert rig.teller.names() == ["reload-refused"] * 2
        await rig.edit(TEXT)
        assert rig.model.said == "" and rig.teller.told == []

    play(scene())


def test_a_signal_and_the_watch_do_not_tell_of_the_same_mistake_twice(rig: Rig) -> None:
    async def scene() -> None:
        rig.file.write_text("no toml")
        await rig.hang_up()
        await rig.noticed()
        assert rig.teller.names() == ["reload-refused"]
        assert rig.teller.told == ["reloading", "ready"]

    play(scene())


def test_a_plan_that_is_not_possible_changes_nothing(rig: Rig) -> None:
    async def scene() -> None:
        rig.model.refuse = BusyError("no room")
        await rig.edit(TEXT + 'aliases = ["a"]\n[placement]\ncontext = 1024\n')
        assert rig.teller.names() == ["reload-refused"] and "no room" in rig.model.said
        assert rig.teller.told == ["reloading", "ready"]
        assert rig.model.applied is rig.model.loaded, "the relay has the old settings again"

    play(scene())


def test_a_reverted_definition_is_told_by_the_supervisor_alone(rig: Rig) -> None:
    async def scene() -> None:
        rig.model.refuse = Reverted("it could not be started", why="a template is wrong")
        await rig.edit(TEXT + "[placement]\ncontext = 1024\n")
        assert rig.teller.names() == [] and "a template is wrong" in rig.model.said
        assert rig.teller.told == ["reloading", "ready"]

    play(scene())


def test_a_definition_that_is_gone_is_served_on(rig: Rig) -> None:
    async def scene() -> None:
        rig.file.unlink()
        await rig.noticed()
        assert rig.teller.names() == ["definition-removed"]
        assert "systemctl disable --now llamad@tiny" in rig.teller.events[0][2]["FIX"]
        assert "served as before" in rig.model.said and rig.model.adopted == 0
        await rig.edit(TEXT)
        assert rig.model.said == "" and rig.teller.names() == ["definition-removed"]

    play(scene())


def test_an_address_moves_when_the_new_definition_is_in_force(rig: Rig) -> None:
    async def scene() -> None:
        await rig.edit(TEXT.replace("8081", "8082"))
        assert rig.moves == ["bind", "carry out with 0 keys"] and rig.model.adopted == 1
        rig.model.refuse = BusyError("no room")
        await rig.edit(TEXT + "[placement]\ncontext = 1024\n")
        assert rig.moves[2:] == ["bind", "give up"]

    play(scene())


def test_an_address_is_never_served_without_the_keys_that_it_had(rig: Rig) -> None:
    """From an address for all, with keys, to one for this machine, without; and back."""
    file = with_keys(rig)
    file.write_text("one\ntwo\n")

    async def scene() -> None:
        await rig.hang_up()
        rig.model.may_reload.clear()
        rig.file.write_text(TEXT.replace("8081", "8082") + "[placement]\ncontext = 1024\n")
        rig.reloads.edited(look(rig.file, rig.root).digest)
        await rig.model.until(lambda: len(rig.model.reloaded) == 2)
        assert len(rig.model.keys or ()) == 2, "nor while llama-server is replaced"
        rig.model.may_reload.set()
        await rig.rest()
        assert rig.moves == ["bind", "carry out with 2 keys"] and len(rig.model.keys or ()) == 0
        await rig.edit(TEXT + f'api_keys_file = "{file}"\n')
        assert rig.moves[2:] == ["bind", "carry out with 2 keys"] and len(rig.model.keys or ()) == 2

    play(scene())


def with_keys(rig: Rig) -> Path:
    file = rig.root / "keys"
    file.write_text("one\n")
    rig.file.write_text(TEXT + f'api_keys_file = "{file}"\n')
    return file


def test_keys_are_read_again_and_stay_when_the_next_reload_is_refused(rig: Rig) -> None:
    file = with_keys(rig)

    async def scene() -> None:
        await rig.hang_up()
        assert rig.model.keys == KeySet(["one"])
        file.write_text("one\ntwo\n")
        await rig.hang_up()
        assert rig.model.keys == KeySet(["one", "two"])
        assert rig.teller.events[-1][2]["CHANGED"] == "the API keys"
        file.write_text("no key\n")
        await rig.hang_up()
        file.unlink()
        await rig.hang_up()
        assert rig.model.keys == KeySet(["one", "two"])
        assert rig.teller.names()[-2:] == ["reload-refused"] * 2
        assert str(file) in rig.teller.events[-1][1]
        assert rig.teller.told == ["reloading", "ready"] * 4

    play(scene())


def test_rotated_keys_are_in_force_by_themselves(rig: Rig) -> None:
    """The watch sees the file that is named, also one that is named only since the last edit."""
    file = with_keys(rig)

    async def scene() -> None:
        rig.reloads.watch()
        await rig.applied_keys(["one"])
        new = rig.root / "new"
        new.write_text("two\n")
        new.replace(file)
        await rig.applied_keys(["two"])
        file.unlink()
        await rig.teller.until(lambda: "reload-refused" in rig.teller.names())
        assert rig.model.keys == KeySet(["two"]) and str(file) in rig.model.said
        other = rig.root / "folder"
        other.mkdir()
        (other / "keys").write_text("three\n")
        rig.file.write_text(TEXT + f'admin_keys_file = "{other}/keys"\n')
        await rig.applied_keys([], KeySet(["three"]))
        (other / "keys").write_text("four\n")
        await rig.applied_keys([], KeySet(["four"]))
        assert rig.model.reloaded == [] and rig.model.said == ""
        rig.reloads.close()
        await asyncio.sleep(0)

    play(scene())


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_renewed_certificate_is_in_force_by_itself(rig: Rig) -> None:
    first, second = (make_certificate(made(rig.root / name)) for name in ("first", "second"))

    async def scene() -> None:
        for source in first:
            shutil.copy(source, rig.root / source.name)
        cert, key = (rig.root / source.name for source in first)
        rig.file.write_text(TEXT + f'tls_cert = "{cert}"\ntls_key = "{key}"\n')
        await rig.hang_up()
        rig.reloads.watch()
        shown = rig.model.keys
        assert shown is not None and shown.certificate is not None
        for source in second:
            shutil.copy(source, rig.root / source.name)
        async with asyncio.timeout(20):
            await rig.model.until(lambda: rig.model.keys not in (None, shown))
        await rig.rest()
        assert rig.teller.events[-1][2]["CHANGED"] == "the certificate" and rig.model.reloaded == ["tls_cert, tls_key"]
        rig.reloads.close()
        await asyncio.sleep(0)

    play(scene())


def test_a_replaced_file_of_the_model_is_loaded_at_a_hang_up_and_not_before(rig: Rig) -> None:
    async def scene() -> None:
        rig.reloads._sources = replace(rig.reloads._sources, replaced=lambda _loaded: True)
        await rig.edit(TEXT + 'aliases = ["a"]\n')
        assert rig.model.reloaded == []
        await rig.hang_up()
        assert rig.model.reloaded == ["the files of the model"]

    play(scene())


def test_what_could_not_be_read_in_time_is_read_once_more_when_that_has_ended(rig: Rig) -> None:
    async def scene() -> None:
        may_read, load = threading.Event(), rig.load

        def slowly() -> Loaded:
            found = load()
            may_read.wait(20)
            return found

        rig.reloads._sources = replace(rig.reloads._sources, load=slowly)
        rig.reloads._read_s = 0.2
        await rig.edit(TEXT + 'aliases = ["a"]\n')
        assert rig.teller.names() == ["reload-refused"] and "0.2 s" in rig.model.said
        rig.reloads._read_s = 20.0
        may_read.set()
        async with asyncio.timeout(20):
            await rig.model.until(lambda: rig.model.loaded.definition.aliases == ("a",))
        await rig.rest()
        assert rig.model.said == "" and rig.loads == 2

    play(scene())


def test_a_credential_without_a_key_in_it_opens_nothing(rig: Rig, tmp_path: Path) -> None:
    credential = tmp_path / "llamad.api-key.tiny"
    credential.write_text("# to be filled\n")
    with pytest.raises(ConfigError, match="has no key in it"):
        read_keys(rig.load(), credential)
    credential.write_text("one\n")
    assert len(read_keys(rig.load(), credential)) == 1


def test_keys_are_read_of_files_alone_and_of_small_ones(rig: Rig, tmp_path: Path) -> None:
    pipe, large, link = tmp_path / "pipe", tmp_path / "large", tmp_path / "link"
    os.mkfifo(pipe)
    with pytest.raises(AccessError, match="pipe: no regular file") as caught:  # and nobody waits for what never comes
        read_keys(rig.load(), pipe)
    assert caught.value.fix == "put a file there, with one key a line"
    large.write_text("# much\n" * 200_000)
    with pytest.raises(ConfigError, match="more than a MiB"):
        read_keys(rig.load(), large)
    link.symlink_to(tmp_path / "keys")
    (tmp_path / "keys").write_text("one\n")
    assert len(read_keys(rig.load(), link)) == 1


def test_a_llama_server_that_owns_the_address_is_started_again_for_new_keys(rig: Rig) -> None:
    file = with_keys(rig)
    direct = rig.file.read_text() + 'front = "direct"\n'

    async def scene() -> None:
        await rig.edit(direct)
        assert rig.teller.names() == ["reload-refused"] and "systemctl restart" in rig.teller.events[0][1]
        rig.file.write_text(direct)
        rig.model.loaded = load_definition("tiny", rig.root)
        await rig.hang_up()
        file.write_text("two\n")
        await rig.hang_up()
        assert rig.model.reloaded[-1] == "the API keys"

    play(scene())


def test_ten_thousand_hang_ups_are_at_most_one_reload_more(rig: Rig) -> None:
    async def scene() -> None:
        rig.reloads.hang_up()
        await asyncio.sleep(0)  # the first reload reads its file while the others come
        for _ in range(10_000):
            rig.reloads.hang_up()
        await rig.rest()
        assert rig.loads == 2
        assert rig.teller.told == ["reloading", "ready"] * 2

    play(scene())


def test_a_reload_under_way_is_followed_by_the_last_content(rig: Rig) -> None:
    async def scene() -> None:
        rig.model.may_reload.clear()
        rig.file.write_text(TEXT + "[placement]\ncontext = 1000\n")
        rig.reloads.edited(look(rig.file, rig.root).digest)
        await rig.model.until(lambda: bool(rig.model.reloaded))
        for context in range(1001, 1010):
            rig.file.write_text(TEXT + f"[placement]\ncontext = {context}\n")
            rig.reloads.edited(look(rig.file, rig.root).digest)
        rig.model.may_reload.set()
        await rig.rest()
        assert len(rig.model.reloaded) == 2
        assert rig.model.loaded.definition.placement.context == 1009

    play(scene())


def test_a_bug_in_a_reload_is_told_at_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []

    async def scene() -> None:
        def load() -> Loaded:
            raise ZeroDivisionError

        rig.reloads._sources = replace(rig.reloads._sources, load=load)
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context["exception"]))
        rig.reloads.hang_up()
        assert rig.reloads._task is not None
        await asyncio.wait([rig.reloads._task], timeout=10)
        await asyncio.sleep(0)

    play(scene())
    assert [type(error) for error in told] == [ZeroDivisionError]


def test_watching_can_be_switched_off_by_an_edit_and_on_by_a_signal(rig: Rig) -> None:
    async def scene() -> None:
        rig.reloads.watch()
        assert rig.reloads._watch is not None
        (rig.root / "llamad.toml").write_text("[host]\nwatch = false\n")
        await rig.noticed()
        assert rig.reloads._watch is None and rig.teller.names() == ["reload-applied"]
        (rig.root / "llamad.toml").unlink()
        await rig.hang_up()
        assert rig.reloads._watch is not None
        rig.reloads.close()
        await asyncio.sleep(0)

    play(scene())


def test_a_thousand_edits_by_eight_writers_end_in_the_last_without_a_restart(rig: Rig) -> None:
    """Comments, all in seven styles: the last is in force within 3 s, and llama-server is never touched."""
    done_at: list[float] = []

    def churn(writer: int) -> None:
        for number in range(125):
            style: Callable[[Path, str], None] = STYLES[(writer + number) % len(STYLES)]
            try:
                style(rig.file, f"{TEXT}# {writer} {number}\n")
            except OSError:
                continue  # another writer was quicker

    async def scene() -> None:
        rig.reloads.watch()
        await asyncio.sleep(0.5)
        fds, threads = open_fds(), threading.active_count()
        writers = [threading.Thread(target=churn, args=(writer,)) for writer in range(8)]
        for writer in writers:
            writer.start()
        for writer in writers:
            await asyncio.to_thread(writer.join)
        rig.file.unlink(missing_ok=True)
        rig.file.write_text(TEXT + 'aliases = ["the-last"]\n')
        began_s = time.monotonic()
        async with asyncio.timeout(3.0):
            await rig.model.until(lambda: rig.model.loaded.definition.aliases == ("the-last",))
        done_at.append(time.monotonic() - began_s)
        await rig.rest()
        assert rig.model.reloaded == [] and rig.loads < 40
        await back_to(fds, threads + EXECUTOR_THREADS)
        rig.reloads.close()
        await asyncio.sleep(0)

    play(scene())
    assert done_at[0] < 3.0
    assert os.path.exists(rig.file)
