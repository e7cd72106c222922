"""The router's definitions edited while streams run: nothing is cut, nothing lost, and the right words are said."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.router_unit import Router, routing
from tests.system.conftest import Bed, get, wait_for
from tests.system.reloading import FIRST, ROOM, Scene, router_child, streaming


class RouterScene(Scene):
    """Both models are behind one address."""

    def __init__(self, router: Router, bed: Bed) -> None:
        for name in ("one", "two"):
            bed.define(name, vulkan=False, extra=ROOM % FIRST)
        router.start()
        for name in ("one", "two"):
            assert router.ask(name)[0] == 200
        self.bed, self.router = bed, router
        super().__init__(bed, router.url, router.url)

    def main_pids(self) -> tuple[int, ...]:
        return (int(self.bed.show("llamad", "MainPID")),)

    def child_pid(self, name: str) -> int:
        return router_child(name)

    def status(self) -> str:
        return self.bed.show("llamad", "StatusText")

    def context(self) -> int:
        (one,) = (model for model in get(f"{self.router.url}/v1/models")[1]["data"] if model["id"] == "one")
        return int(one["meta"]["n_ctx"] or 0) if one["meta"]["state"] == "ready" else 0

    def names(self) -> set[str]:
        return set(self.router.states()) - {"two", "third"}


@pytest.fixture
def scene(bed: Bed) -> Iterator[RouterScene]:
    with routing(bed) as router, streaming(RouterScene(router, bed)) as one:
        yield one


@pytest.mark.timeout(900)
def test_the_reload_matrix_of_the_router_with_fifty_streams(scene: RouterScene) -> None:
    scene.play()
    assert scene.router.states()["third"] == "unloaded"
    (scene.file.parent / "third.toml").unlink()
    wait_for(lambda: "third" not in scene.router.states(), "it is forgotten", 15)
    scene.untouched()
    scene.end()
    assert scene.bed.show("llamad", "NRestarts") == "0"
