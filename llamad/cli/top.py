"""`llamad top`: a live view of models and memory."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import IO

from llamad.cli.screen import Screen, taken
from llamad.cli.terminal import wants_colour
from llamad.cli.unprivileged import own_command
from llamad.errors import UsageError
from llamad.hardware.amdgpu import AmdGpus
from llamad.hardware.nvml import Nvml
from llamad.service.picture import ORDERS, View, as_text, moved, picture, sorted_rows
from llamad.service.scene import Looker

_ORDER_VERBS = {"l": "load", "u": "unload"}
_ONCE_WIDTH, _ONCE_HEIGHT = 160, 1000


def run(args: argparse.Namespace) -> int:
    """Until `q` is typed. Without a terminal there is `--once`."""
    looker = Looker(args.config, drivers=(Nvml(), AmdGpus()))
    if args.once:
        width = shutil.get_terminal_size((_ONCE_WIDTH, 0)).columns
        *shown, _keys = picture(looker.look(), View(), width, _ONCE_HEIGHT)
        print(as_text(shown).rstrip())
        return 0
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("top needs a terminal", fix="`llamad top --once`, or `llamad status`")
    screen = Screen(wants_colour())
    with taken(screen):
        try:
            _Top(looker, screen, args.config, args.every).run()
        except KeyboardInterrupt:
            return 0
    return 0


class _Top:
    """The loop: look, draw, react."""

    def __init__(self, looker: Looker, screen: Screen, config: Path, every_s: float) -> None:
        self._looker = looker
        self._screen = screen
        self._config = config
        self._every_s = every_s
        self._view = View()
        self._asked: tuple[str, str] | None = None
        self._running: tuple[str, subprocess.Popen[bytes], IO[bytes]] | None = None

    def run(self) -> None:
        scene = self._looker.look()
        next_s = time.monotonic() + self._every_s
        while True:
            self._screen.draw(picture(scene, self._view, *self._screen.size))
            key = self._screen.key(max(0.0, next_s - time.monotonic()))
            if key == "closed" or (key == "q" and self._asked is None):
                return
            if key:
                rows = sorted_rows(scene, self._view.order)
                self._react(key, moved(rows, self._view.chosen, 0), moved(rows, self._view.chosen, _STEPS.get(key, 0)))
            if time.monotonic() >= next_s:
                self._look_at_order()
                scene = self._looker.look()
                next_s = time.monotonic() + self._every_s

    def _react(self, key: str, chosen: str, moved_to: str) -> None:
        if self._asked is not None:
            if key != "resize":
                self._answer(key == "y")
        elif key in ORDERS:
            self._view = replace(self._view, order=key, message="")
        elif key in _STEPS:
            self._view = replace(self._view, chosen=moved_to, message="")
        elif key in _ORDER_VERBS and chosen and self._running is None:
            self._asked = _ORDER_VERBS[key], chosen
            self._view = replace(self._view, chosen=chosen, question=f"{_ORDER_VERBS[key]} {chosen}?", message="")

    def _answer(self, yes: bool) -> None:
        asked, self._asked = self._asked, None
        self._view = replace(self._view, question="")
        if yes and asked is not None:
            verb, name = asked
            said = tempfile.TemporaryFile()  # noqa: SIM115  closed when the order is over
            command = [*own_command(), "--config", str(self._config), verb, name]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
            self._running = f"{verb} {name}", process, said
            self._view = replace(self._view, message=f"{verb} {name} ...")

    def _look_at_order(self) -> None:
        if self._running is None or self._running[1].poll() is None:
            return
        (what, process, said), self._running = self._running, None
        said.seek(0)
        lines = [line for line in said.read(4000).decode("utf-8", "replace").splitlines() if line.strip()]
        said.close()
        how = "done" if process.returncode == 0 else f"failed ({process.returncode})"
        self._view = replace(self._view, message=f"{what}: {how}: {' '.join(lines[-3:])}")
        self._looker.forget_units()


_STEPS = {"up": -1, "k": -1, "down": 1, "j": 1}
