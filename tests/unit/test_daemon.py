"""The daemon's signals and reloads, with the supervisor and the relay as fakes."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamad.config.loaded import Loaded
from llamad.errors import ConfigError
from llamad.front.keys import KeySet
from llamad.service.daemon import Service
from llamad.service.journal import NativeJournal
from llamad.service.notify import NoNotifier
from llamad.service.paths import Paths
from llamad.service.start import Start
from tests.support.fakes import FakeReporter, loaded_of


class Reporter(FakeReporter):
    """Counts the reloads that systemd was told of."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def reloading(self) -> None:
        self.told.append("reloading")

    def still_ready(self, text: str) -> None:
        self.told.append("ready")


class Reloads:
    """A ready supervisor that accepts every definition, and a relay that remembers its keys."""

    def __init__(self, loaded: Loaded) -> None:
        self.state, self.loaded = "ready", loaded
        self.reloads = 0
        self.keys: KeySet | None = None

    async def reload(self, loaded: Loaded) -> None:
        self.reloads += 1
        self.loaded = loaded

    def status_text(self) -> str:
        return "ready"

    def apply(self, _loaded: Loaded, keys: KeySet) -> None:
        self.keys = keys


def with_keys(file: Path) -> Loaded:
    loaded = loaded_of()
    return replace(loaded, definition=replace(loaded.definition, api_keys_file=str(file)))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text("one\n")
    return path


def service_of(file: Path, load: Any = None) -> tuple[Any, Reloads, Reporter]:
    loaded = with_keys(file)
    paths = SimpleNamespace(credential=lambda _name, _kind="api-key": None)
    start: Any = SimpleNamespace(load=load or (lambda: loaded), paths=paths, hung_up=False)
    service: Any = Service(start)
    parts, reporter = Reloads(loaded), Reporter()
    service.name, service.keys, service.reporter = "tiny", KeySet(["one"]), reporter
    service.supervisor = service.front = parts
    service._reload_task, service._reload_again = None, False
    return service, parts, reporter


async def hang_up(service: Any) -> None:
    service._hang_up()
    await asyncio.wait([service._reload_task], timeout=10)
    assert service._reload_task.exception() is None


def test_keys_that_cannot_be_read_refuse_the_reload_and_leave_the_old_ones(file: Path) -> None:
    service, parts, reporter = service_of(file)
    file.unlink()
    asyncio.run(hang_up(service))
    assert reporter.names() == ["reload-refused"]
    assert str(file) in reporter.events[0][1]
    assert reporter.told == ["reloading", "ready"]
    assert parts.keys is service.keys and parts.reloads == 0


def test_new_keys_are_in_force_and_stay_when_the_next_reload_is_refused(file: Path) -> None:
    service, parts, _ = service_of(file)
    file.write_text("one\ntwo\n")
    asyncio.run(hang_up(service))
    assert parts.keys is not None and len(parts.keys) == 2
    file.write_text("no key\n")
    asyncio.run(hang_up(service))
    assert len(parts.keys) == 2


def test_a_storm_of_hang_ups_is_at_most_one_reload_more(file: Path) -> None:
    service, parts, _ = service_of(file)

    async def storm() -> None:
        service._hang_up()
        await asyncio.sleep(0)  # the first reload reads its file while the others come
        for _ in range(1_000):
            service._hang_up()
        await hang_up(service)

    asyncio.run(storm())
    assert parts.reloads == 2


def test_a_bug_in_a_reload_is_told_at_once(file: Path) -> None:
    def load() -> Loaded:
        raise ZeroDivisionError

    service, _, _ = service_of(file, load)
    told: list[object] = []

    async def go() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context["exception"]))
        service._hang_up()
        await asyncio.wait([service._reload_task], timeout=10)
        await asyncio.sleep(0)

    asyncio.run(go())
    assert [type(error) for error in told] == [ZeroDivisionError]


def test_a_definition_with_a_mistake_changes_nothing(file: Path) -> None:
    def load() -> Loaded:
        raise ConfigError("no such key")

    service, parts, reporter = service_of(file, load)
    asyncio.run(hang_up(service))
    assert reporter.names() == ["reload-refused"] and parts.reloads == 0 and parts.keys is service.keys


def test_a_hang_up_during_the_start_is_a_reload_after_it(tmp_path: Path, file: Path) -> None:
    paths = Paths(tmp_path, tmp_path, tmp_path, tmp_path, tmp_path, None)
    start = Start("tiny", tmp_path, {}, NativeJournal("/nonexistent"), NoNotifier(), paths)
    service, parts, _ = service_of(file)
    before = signal.getsignal(signal.SIGHUP)
    try:
        start.keep_hang_ups()
        os.kill(os.getpid(), signal.SIGHUP)
        service.start.hung_up = start.hung_up

        async def go() -> None:
            service._install_signals(asyncio.get_running_loop())
            await asyncio.wait([service._reload_task], timeout=10)

        asyncio.run(go())
    finally:
        signal.signal(signal.SIGHUP, before)
    assert parts.reloads == 1
