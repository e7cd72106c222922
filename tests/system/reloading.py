"""Streams that run while definitions are edited, and every way of editing one, for units and for the router alike."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tests.support.streams import Streams
from tests.system.conftest import ETC, Bed, wait_for

S = TypeVar("S", bound="Scene")
STREAMS = 50
TOKENS = 12
SLOTS = STREAMS // 2
ROOM = f"[placement]\nallow_cpu = true\nparallel = {SLOTS}\ncontext = %d\n"
FIRST = 8192


class Scene(ABC):
    """Two models with streams on both; `one` is edited, `two` must notice nothing."""

    def __init__(self, bed: Bed, one: str, two: str) -> None:
        """The models at these URLs are served."""
        self.bed = bed
        self.file = ETC / "one.toml"
        self.url, self.other = one, two
        self._untouched = self.main_pids(), self.child_pid("two")
        self.streams = tuple(Streams(url, STREAMS // 2, TOKENS, model=name) for url, name in ((one, "one"), (two, "two")))

    @abstractmethod
    def main_pids(self) -> tuple[int, ...]:
        """Of the llamads that serve them."""

    @abstractmethod
    def child_pid(self, name: str) -> int:
        """The llama-server of a model; 0 if there is none, the first where there are two."""

    @abstractmethod
    def status(self) -> str:
        """What `systemctl status` says of `one`."""

    @abstractmethod
    def context(self) -> int:
        """Of `one`, as it is served; 0 where it is not ready."""

    @abstractmethod
    def names(self) -> set[str]:
        """The ids of /v1/models that lead to `one`."""

    def text(self, context: int, head: str = "") -> str:
        return f'model = "{self.bed.tiny}"\nlisten = "127.0.0.1:{self.bed.ports["one"]}"\n{head}\n{ROOM % context}'

    def told(self, event: str, model: str = "one") -> list[str]:
        return [str(record["MESSAGE"]) for record in self.bed.events(model, event)]

    def untouched(self) -> None:
        assert (self.main_pids(), self.child_pid("two")) == self._untouched

    def unchanged(self, act: Callable[[], object], said: Callable[[], object] | None = None) -> None:
        """An edit that must not cost a new llama-server."""
        child, applied = self.child_pid("one"), len(self.told("reload-applied"))
        act()
        if said is not None:
            wait_for(said, "it is said", 90)
        else:
            self.streams[0].more()
            time.sleep(2.5)
            assert len(self.told("reload-applied")) == applied
        assert self.child_pid("one") == child
        self.untouched()

    def changed(self, context: int, act: Callable[[str], object]) -> None:
        """An edit of the context, in force by itself."""
        child = self.child_pid("one")
        act(self.text(context))
        wait_for(lambda: self.context() == context, f"context {context} in force", 120)
        wait_for(lambda: self.child_pid("one") not in (0, child), "the former llama-server is gone", 120)
        assert "placement.context" in wait_for(lambda: self.told("reload-applied"), "it is said")[-1]
        self.untouched()
        for streams in self.streams:
            streams.more()

    def sed(self, old: int, new: int) -> Callable[[str], object]:
        return lambda _: subprocess.run(["sed", "-i", f"s/context = {old}/context = {new}/", self.file], check=True)

    def rename(self, text: str) -> None:
        new = self.file.with_name(".one.toml.swp")
        new.write_text(text)
        new.replace(self.file)

    def swap(self, text: str) -> None:
        """As a ConfigMap does it."""
        folder = ETC / f"..{time.monotonic_ns()}"
        folder.mkdir()
        (folder / "one.toml").write_text(text)
        (ETC / "..new").symlink_to(folder.name)
        (ETC / "..new").replace(ETC / "..data")
        if not self.file.is_symlink():
            self.file.unlink()
            self.file.symlink_to("..data/one.toml")

    def recreate(self, text: str) -> None:
        """The folder goes and comes back."""
        kept = {path.name: path.read_text() for path in ETC.iterdir() if path.is_file()} | {"one.toml": text}
        shutil.rmtree(ETC)
        ETC.mkdir(mode=0o755)
        for name, content in kept.items():
            (ETC / name).write_text(content)

    def play(self) -> None:
        """Every kind of edit, one after the other."""
        file = self.file
        alias = 'aliases = ["alias"]'
        self.unchanged(lambda: self.bed.define("third", extra="# another model\n"))
        self.unchanged(
            lambda: file.write_text(self.text(FIRST, alias)),
            lambda: any("aliases" in text for text in self.told("reload-applied")),
        )
        assert self.names() == {"one", "alias"}
        self.unchanged(lambda: file.write_text("# a comment\n" + self.text(FIRST, alias)))
        self.changed(7168, self.sed(FIRST, 7168))
        self.changed(6144, self.rename)
        self.changed(5632, self.swap)
        self.changed(6656, self.swap)
        self.changed(6144, self.recreate)
        self.mistakes()
        self.changed(5632, file.write_text)
        assert "refused" not in self.status()

    def mistakes(self) -> None:
        """Each is told once, with its place, and changes nothing."""
        file, refused = self.file, len(self.told("reload-refused"))

        def mistake(text: str, count: int) -> str:
            self.unchanged(
                lambda: file.write_text(self.text(5632) + text), lambda: len(self.told("reload-refused")) == refused + count
            )
            return self.told("reload-refused")[-1]

        line = self.text(5632).count("\n") + 1
        assert f"{file}:{line}:1: placement.contxt" in mistake("contxt = 1\n", 1)
        assert self.context() == 6144 and f"{file}:{line}:1" in self.status()
        self.unchanged(lambda: os.utime(file))
        assert f"{file}:{line + 1}:1: " in mistake("kv_offload = [\n", 2)
        assert "GPU-0000" in mistake('gpus = ["GPU-00000000-0000-0000-0000-000000000000"]\n', 3)
        assert len(self.told("reload-refused")) == refused + 3, "each mistake is told once"

    def end(self) -> None:
        """No stream was cut, refused or lost."""
        outcomes = [streams.end() for streams in self.streams]
        assert [set(outcome) for outcome in outcomes] == [{"done"}, {"done"}], outcomes


def router_child(name: str) -> int:
    """The llama-server of one of the router's models, the oldest where there are two; 0 if there is none."""
    shown = subprocess.run(["pgrep", "-o", "-f", f"router/{name}/engine"], capture_output=True, text=True, check=False)
    return int(shown.stdout) if shown.stdout else 0


@contextmanager
def streaming(scene: S) -> Iterator[S]:
    """The scene with all its streams running; they are ended with it."""
    for streams in scene.streams:
        streams.more()
    yield scene
    for streams in scene.streams:
        streams.end()
