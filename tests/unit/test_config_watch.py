"""The watch over a definition: time and hints as fakes, then the real kernel under every style of edit."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from llamad.clock import SystemClock
from llamad.config.files import digest_of, read_definition
from llamad.config.watch import (
    DEBOUNCE_S,
    GONE_S,
    LONGEST_DEBOUNCE_S,
    POLL_S,
    Watch,
)
from llamad.config.watched import MOST_FOLDERS, OneDefinition, look
from llamad.errors import BusyError
from tests.support.http import FakeClock


async def at_once(work: Callable[[], Any]) -> Any:
    return work()


class FakeHints:
    """Hints that a test gives."""

    def __init__(self, moved: Callable[[], None]) -> None:
        self.moved = moved
        self.folders: list[str] = []
        self.fail: OSError | ImportError | None = None
        self.closed = False

    def watch(self, folders: Sequence[str]) -> None:
        if self.fail:
            raise self.fail
        self.folders = list(folders)

    def attach(self) -> None:
        assert self.fail is None

    def close(self) -> None:
        self.closed = True


class Bench:
    """A watch on a folder, with everything it tells."""

    def __init__(self, root: Path) -> None:
        self.root, self.file = root, root / "tiny.toml"
        self.clock = FakeClock()
        self.digests: list[str] = []
        self.troubles: list[OSError | ImportError] = []
        self.watch = Watch(
            OneDefinition(self.file, root), self.clock, edited=self.digests.append, blind=self.troubles.append, hints=self._make,
            off_the_loop=at_once,
        )  # fmt: skip

    def _make(self, moved: Callable[[], None]) -> FakeHints:
        self.hints = FakeHints(moved)
        return self.hints

    def now(self) -> str:
        return look(self.file, self.root).digest

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Bench]:
        task = asyncio.create_task(self.watch.run(self.now()))
        await self.clock.advance(0.01)
        yield self
        task.cancel()
        await asyncio.wait([task])
        assert self.hints.closed


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    (tmp_path / "tiny.toml").write_text('model = "/m"\n')
    return Bench(tmp_path)


def scene(bench: Bench, act: Callable[[Bench], Any]) -> None:
    async def go() -> None:
        async with bench.running():
            await act(bench)

    asyncio.run(go())


def test_an_edit_is_told_once_it_has_come_to_rest(bench: Bench) -> None:
    async def act(bench: Bench) -> None:
        bench.file.write_text("# half")
        bench.hints.moved()
        await bench.clock.advance(DEBOUNCE_S * 0.9)
        assert bench.digests == []
        bench.file.write_text('model = "/n"\n')
        bench.hints.moved()
        await bench.clock.advance(DEBOUNCE_S * 0.9)
        assert bench.digests == []
        await bench.clock.advance(DEBOUNCE_S)
        assert bench.digests == [bench.now()]
        await bench.clock.advance(10 * POLL_S)
        assert len(bench.digests) == 1

    scene(bench, act)


def test_a_folder_that_never_rests_is_looked_at_all_the_same(bench: Bench) -> None:
    async def act(bench: Bench) -> None:
        bench.file.write_text('model = "/n"\n')
        began_s = bench.clock.now_s
        while not bench.digests:
            bench.hints.moved()
            await bench.clock.advance(0.1)
        assert bench.clock.now_s - began_s <= LONGEST_DEBOUNCE_S + DEBOUNCE_S + 0.2

    scene(bench, act)


def test_hints_without_a_change_say_nothing(bench: Bench) -> None:
    async def act(bench: Bench) -> None:
        for _ in range(20):
            os.utime(bench.file)
            bench.hints.moved()
            await bench.clock.advance(1.0)
        assert bench.digests == []

    scene(bench, act)


def test_without_a_hint_the_poll_finds_it(bench: Bench) -> None:
    async def act(bench: Bench) -> None:
        bench.file.write_text('model = "/n"\n')
        await bench.clock.advance(POLL_S + 1.0)
        assert bench.digests == [bench.now()]

    scene(bench, act)


def test_what_was_edited_before_the_watch_began_is_told(bench: Bench) -> None:
    async def go() -> None:
        task = asyncio.create_task(bench.watch.run("what was loaded"))
        await bench.clock.advance(0.01)
        assert bench.digests == [bench.now()]
        task.cancel()

    asyncio.run(go())


def test_a_definition_that_is_away_for_a_moment_was_never_gone(bench: Bench) -> None:
    async def act(bench: Bench) -> None:
        text = bench.file.read_text()
        bench.file.unlink()
        bench.hints.moved()
        await bench.clock.advance(1.0)
        bench.file.write_text("")  # an editor that truncates first
        await bench.clock.advance(0.5)
        bench.file.write_text(text)
        await bench.clock.advance(2 * GONE_S)
        assert bench.digests == []

    scene(bench, act)


def test_a_definition_that_stays_away_is_told_once(bench: Bench) -> None:
    async def act(bench: Bench) -> None:
        bench.file.unlink()
        bench.hints.moved()
        await bench.clock.advance(DEBOUNCE_S + GONE_S + 1.0)
        assert bench.digests == [bench.now()]
        await bench.clock.advance(5 * POLL_S)
        assert len(bench.digests) == 1
        bench.file.write_text('model = "/n"\n')
        bench.hints.moved()
        await bench.clock.advance(1.0)
        assert len(bench.digests) == 2

    scene(bench, act)


@pytest.mark.parametrize("trouble", [OSError(errno.ENOSPC, "no space"), OSError(errno.EMFILE, "too many"), ImportError("x")])
def test_without_watches_the_poll_is_left_and_one_word_is_said(bench: Bench, trouble: OSError | ImportError) -> None:
    bench.hints.fail = trouble

    async def act(bench: Bench) -> None:
        await bench.clock.advance(5 * POLL_S)
        assert bench.troubles == [trouble]
        bench.file.write_text('model = "/n"\n')
        await bench.clock.advance(POLL_S)
        assert bench.digests == [bench.now()]
        bench.hints.fail = None
        await bench.clock.advance(POLL_S)
        assert bench.hints.folders
        bench.hints.fail = trouble
        await bench.clock.advance(2 * POLL_S)
        assert len(bench.troubles) == 2

    scene(bench, act)


def test_without_a_thread_it_is_looked_at_later(bench: Bench) -> None:
    lacking = [True]

    async def off_the_loop(work: Callable[[], Any]) -> Any:
        if lacking[0]:
            raise BusyError("no thread can be started")
        return work()

    bench.watch._off_the_loop = off_the_loop

    async def act(bench: Bench) -> None:
        bench.file.write_text('model = "/n"\n')
        await bench.clock.advance(2 * POLL_S)
        assert bench.digests == []
        lacking[0] = False
        await bench.clock.advance(POLL_S)
        assert bench.digests == [bench.now()]

    scene(bench, act)


def test_the_same_look_as_loading(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text('model = "/m"\n')
    (tmp_path / "llamad.toml").write_text("[limits]\ndrain_s = 5\n")
    (tmp_path / "tiny.toml.d").mkdir()
    (tmp_path / "tiny.toml.d/10.toml").write_text('aliases = ["a"]\n')
    contents = read_definition(tmp_path / "tiny.toml", tmp_path)
    assert len(contents) == 3
    assert look(tmp_path / "tiny.toml", tmp_path) == (digest_of(contents), True)


@pytest.mark.parametrize("kind", ["loop", "folder", "fifo", "huge", "binary", "nowhere", "dropin to nowhere"])
def test_a_look_survives_whatever_lies_there(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "tiny.toml"
    before = look(file, tmp_path)
    if kind == "loop":
        file.symlink_to(tmp_path / "other.toml")
        (tmp_path / "other.toml").symlink_to(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "fifo":
        os.mkfifo(file)
    elif kind == "huge":
        file.write_bytes(b"# 0123456789\n" * 800_000)
    elif kind == "binary":
        file.write_bytes(bytes(range(256)))
    elif kind == "nowhere":
        file.symlink_to("/nonexistent/x.toml")
    else:
        file.write_text('model = "/m"\n')
        (tmp_path / "tiny.toml.d").mkdir()
        (tmp_path / "tiny.toml.d/1.toml").symlink_to("/nonexistent/x.toml")
    seen = look(file, tmp_path)
    assert seen == look(file, tmp_path), "the same trouble is the same"
    assert seen.present is (kind != "nowhere")
    assert (seen.digest != before.digest) is (kind != "nowhere")
    assert str(tmp_path) in OneDefinition(file, tmp_path).folders()


def test_the_folders_of_links_are_watched_too(tmp_path: Path) -> None:
    root, config_map = tmp_path / "etc", tmp_path / "volume"
    (config_map / "..1").mkdir(parents=True)
    root.mkdir()
    (config_map / "..1/tiny.toml").write_text('model = "/m"\n')
    (config_map / "..data").symlink_to("..1")
    (config_map / "tiny.toml").symlink_to("..data/tiny.toml")
    (root / "tiny.toml").symlink_to(config_map / "tiny.toml")
    (root / "tiny.toml.d").mkdir()
    found = OneDefinition(root / "tiny.toml", root).folders()
    assert {str(root), str(config_map), str(config_map / "..1"), str(root / "tiny.toml.d")} == set(found)
    shutil.rmtree(root)
    assert OneDefinition(root / "tiny.toml", root).folders() == [str(tmp_path)], "where it would appear again"


def test_the_number_of_watches_is_bounded(tmp_path: Path) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text('model = "/m"\n')
    (tmp_path / "tiny.toml.d").mkdir()
    for number in range(100):
        place = tmp_path / f"far{number}"
        place.mkdir()
        (place / "x").write_text("")
        (tmp_path / f"tiny.toml.d/{number}.toml").symlink_to(place / "x")
    assert len(OneDefinition(file, tmp_path).folders()) == MOST_FOLDERS


# -- the real kernel -------------------------------------------------------------------------------------------


def write(file: Path, text: str) -> None:
    """Truncate, then write."""
    file.write_text(text)


def append_then_cut(file: Path, text: str) -> None:
    """Two writes through one descriptor, as an editor that saves in place."""
    with file.open("r+" if file.exists() else "w") as stream:
        stream.write(text[: len(text) // 2])
        stream.flush()
        stream.write(text[len(text) // 2 :])
        stream.truncate()


def rename(file: Path, text: str) -> None:
    """A temporary file renamed over it: vim with backupcopy=no, VS Code, dpkg."""
    new = file.with_name(f".{file.name}.{threading.get_ident()}.tmp")
    new.write_text(text)
    new.replace(file)


def backup(file: Path, text: str) -> None:
    """The old one renamed away, a new one written in its place: emacs, nano -B."""
    with contextlib.suppress(FileNotFoundError):
        file.replace(file.with_name(f"{file.name}~"))
    file.write_text(text)


def delete(file: Path, text: str) -> None:
    """Deleted, then written."""
    file.unlink(missing_ok=True)
    file.write_text(text)


def link(file: Path, text: str) -> None:
    """A ConfigMap: a new folder, one link swapped."""
    root = file.parent
    folder = root / f"..{threading.get_ident()}.{time.monotonic_ns()}"
    folder.mkdir()
    (folder / file.name).write_text(text)
    new = root / f"..data.{threading.get_ident()}"
    new.symlink_to(folder.name)
    new.replace(root / "..data")
    lead = root / f".lead.{threading.get_ident()}"
    lead.symlink_to(f"..data/{file.name}")
    lead.replace(file)


def hard(file: Path, text: str) -> None:
    """Another file linked in its place."""
    new = file.with_name(f".hard.{threading.get_ident()}")
    new.write_text(text)
    os.replace(new, file)
    os.link(file, file.with_name(f".kept.{threading.get_ident()}"))
    file.with_name(f".kept.{threading.get_ident()}").unlink()


STYLES = [write, append_then_cut, rename, backup, delete, link, hard]


class Live:
    """A real watch in a real folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.file = root, root / "tiny.toml"
        self.digests: list[str] = []
        self.told = asyncio.Event()
        self.troubles: list[OSError | ImportError] = []

    def _edited(self, digest: str) -> None:
        self.digests.append(digest)
        self.told.set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Live]:
        watch = Watch(
            OneDefinition(self.file, self.root), SystemClock(), edited=self._edited, blind=self.troubles.append
        )
        task = asyncio.create_task(watch.run(look(self.file, self.root).digest))
        await asyncio.sleep(0.2)
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.wait([task])
        assert task.cancelled() and self.troubles == []

    async def until_seen(self, timeout_s: float = 3.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not self.digests or self.digests[-1] != look(self.file, self.root).digest:
                self.told.clear()
                await self.told.wait()


def live(root: Path, act: Callable[[Live], Any]) -> None:
    async def go() -> None:
        async with Live(root).running() as one:
            await act(one)

    asyncio.run(go())


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.__name__)
def test_every_style_of_edit_is_noticed(tmp_path: Path, style: Callable[[Path, str], None]) -> None:
    (tmp_path / "tiny.toml").write_text("# first\n")

    async def act(one: Live) -> None:
        for number in range(3):
            await asyncio.to_thread(style, one.file, f"# {number}\n")
            await one.until_seen()
        assert len(one.digests) == 3

    live(tmp_path, act)


def test_sed_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text("context = 1\n")

    async def act(one: Live) -> None:
        await asyncio.to_thread(subprocess.run, ["sed", "-i", "s/1/2/", str(one.file)], check=True)
        await one.until_seen()

    live(tmp_path, act)


def test_dropins_and_host_settings_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text('model = "/m"\n')

    async def act(one: Live) -> None:
        (tmp_path / "llamad.toml").write_text("[limits]\n")
        await one.until_seen()
        (tmp_path / "tiny.toml.d").mkdir()
        await asyncio.sleep(1.0)  # an empty folder changes nothing, but is watched from now on
        (tmp_path / "tiny.toml.d/1.toml").write_text("# one\n")
        await one.until_seen()
        (tmp_path / "tiny.toml.d/1.toml").unlink()
        await one.until_seen()
        assert len(one.digests) == 3
        (tmp_path / "other.toml").write_text("# another model\n")
        await asyncio.sleep(1.0)
        assert len(one.digests) == 3

    live(tmp_path, act)


def test_a_folder_that_goes_and_comes_back_is_watched_again(tmp_path: Path) -> None:
    root = tmp_path / "etc"
    root.mkdir()
    (root / "tiny.toml").write_text("# first\n")

    async def act(one: Live) -> None:
        for number in range(3):
            shutil.rmtree(root)
            if number:  # for long enough to be told, and not
                await asyncio.sleep(3.5)
            root.mkdir()
            (root / "tiny.toml").write_text(f"# {number}\n")
            await one.until_seen()
        root.rename(tmp_path / "old")
        root.mkdir()
        (root / "tiny.toml").write_text("# again\n")
        await one.until_seen()
        (root / "tiny.toml").write_text("# and again\n")
        await one.until_seen()

    live(root, act)


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


EXECUTOR_THREADS = 4
"""asyncio's own, with which a test waits for its writers: how many it takes for one after the other is its affair."""


async def back_to(fds: int, most_threads: int) -> None:
    """Return when there are no more than before: the look that a last edit asked for may be on its way. Bounded."""
    async with asyncio.timeout(10.0):
        while open_fds() > fds or threading.active_count() > most_threads:  # noqa: ASYNC110 - threads tell nobody
            await asyncio.sleep(0.05)


def test_a_thousand_edits_by_eight_writers_end_in_the_last_and_leak_nothing(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text("# first\n")
    choose = random.Random(8)
    plans = [[(choose.choice(STYLES), f"# {writer} {n}\n") for n in range(125)] for writer in range(8)]

    def churn(edits: list[tuple[Callable[[Path, str], None], str]], file: Path) -> None:
        for style, text in edits:
            with contextlib.suppress(OSError):  # another writer was quicker
                style(file, text)

    async def act(one: Live) -> None:
        fds, threads = open_fds(), threading.active_count()
        writers = [threading.Thread(target=churn, args=(plan, one.file)) for plan in plans]
        for writer in writers:
            writer.start()
        for writer in writers:
            await asyncio.to_thread(writer.join)
        one.file.unlink(missing_ok=True)
        one.file.write_text("# the last\n")
        await one.until_seen(3.0)
        assert "# the last" in one.file.read_text()
        await back_to(fds, threads + EXECUTOR_THREADS)
        assert len(one.digests) < 40, "edits are not told one by one"

    live(tmp_path, act)
