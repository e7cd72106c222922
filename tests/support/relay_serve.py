"""The address of one model in a process of its own, before a program that stands for llama-server: for measurements.

    python3 relay_serve.py [--router] [--client-idle-s S] PORT SOCKET JOURNAL UPSTREAM [ARGUMENT...]

`--router`: the address is the one of several models, of which there is one, `bench`.

Everything that a request meets is the daemon's own: relay, keys (the key is `bench`), admission, records in the journal
(datagrams to JOURNAL), counts, and the reading of the child's log. Prints `ready` when it serves; ends at end of input.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import socket
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from llamad.clock import SystemClock
from llamad.config.definition import Definition, Host, Limits
from llamad.config.loaded import Loaded
from llamad.front.keys import KeySet
from llamad.front.settings import ModelDescription
from llamad.front.several import SwitchFront
from llamad.service.front import RelayFront, request_log, settings_of
from llamad.service.journal import NativeJournal
from llamad.service.lane_front import LaneFront
from llamad.service.notify import NoNotifier
from llamad.service.reporter import DaemonReporter
from llamad.service.router_notify import NoRecords
from llamad.service.status import StatusFile
from llamad.supervision.child import ProcessSpawner
from llamad.supervision.intake import Intake
from llamad.supervision.launch import Launch

POOL_TOKENS = 1 << 20
"""So many that admission, which is done, keeps nobody waiting."""


class RouterFront(LaneFront):
    """The front of several models, with one."""

    def __init__(self, loaded: Loaded, keys: KeySet, reporter: DaemonReporter) -> None:
        self._front = SwitchFront(settings_of(loaded), keys, NoRecords(), SystemClock(), list)
        super().__init__(self._front, settings_of(loaded), keys, lambda: ModelDescription("ready"))
        self.log = request_log(reporter, loaded)
        self.start, self.close = self._front.start, partial(self._front.close, 1.0)


async def serve(words: argparse.Namespace) -> None:
    definition = Definition(model="/m/bench.gguf", limits=Limits(client_idle_s=words.client_idle_s))
    path, journal, argv = words.socket, words.journal, [words.upstream, *words.arguments]
    loaded = Loaded("bench", Path("/x.toml"), definition, Host(), {}, frozenset(), (), "1")
    reporter = DaemonReporter(
        "bench", NativeJournal(journal), NoNotifier(), StatusFile(Path("/nonexistent"), "bench")
    )
    front = (RouterFront if words.router else RelayFront)(loaded, KeySet(["bench"]), reporter)
    intake = Intake(reporter, definition.limits.child_log_lines_per_s)
    child = await ProcessSpawner().spawn(argv, dict(os.environ), intake.feed)
    intake.served()
    while not Path(path).exists():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    plan = SimpleNamespace(
        context_tokens=POOL_TOKENS, context_train_tokens=POOL_TOKENS, slots=4, unified_cache=True, devices=()
    )
    launch = SimpleNamespace(plan=plan, socket_path=path, mode="completion", definition=definition, file_bytes=1)
    front.open(cast("Launch", launch))
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", words.port))
    sock.listen(1024)
    gc.freeze()
    await front.start([sock])
    print("ready", flush=True)
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().add_reader(0, lambda: os.read(0, 100) or done.done() or done.set_result(None))
    await done
    await front.close()
    child.kill_group()
    await child.wait()


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--router", action="store_true")
    parser.add_argument("--client-idle-s", type=float, default=75.0)
    parser.add_argument("port", type=int)
    for name in ("socket", "journal", "upstream"):
        parser.add_argument(name)
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    asyncio.run(serve(parser.parse_args(words)))


if __name__ == "__main__":
    main(sys.argv[1:])
