"""The daemon's signals, with the supervisor as a fake."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from llamad.service.daemon import Service
from llamad.service.journal import NativeJournal
from llamad.service.notify import NoNotifier
from llamad.service.paths import Paths
from llamad.service.start import Start


def test_a_hang_up_during_the_start_is_a_reload_after_it(tmp_path: Path) -> None:
    paths = Paths(tmp_path, tmp_path, tmp_path, tmp_path, tmp_path, None)
    start = Start("tiny", tmp_path, {}, NativeJournal("/nonexistent"), NoNotifier(), paths)
    hang_ups: list[str] = []
    service: Any = Service(start)
    service.reloads = SimpleNamespace(hang_up=lambda: hang_ups.append("one"))
    before = signal.getsignal(signal.SIGHUP)
    try:
        start.keep_hang_ups()
        os.kill(os.getpid(), signal.SIGHUP)
        assert start.hung_up and hang_ups == []

        async def go() -> None:
            service._install_signals(asyncio.get_running_loop())
            assert hang_ups == ["one"]
            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.sleep(0.05)

        asyncio.run(go())
    finally:
        signal.signal(signal.SIGHUP, before)
    assert hang_ups == ["one", "one"]
