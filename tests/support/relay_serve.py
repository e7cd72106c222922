"""The address of one model in a process of its own, before a program that stands for llama-server: for measurements.

    python3 relay_serve.py PORT SOCKET JOURNAL UPSTREAM [ARGUMENT...]

Everything that a request meets is the daemon's own: relay, keys (the key is `bench`), admission, records in the journal
(datagrams to JOURNAL), counts, and the reading of the child's log. Prints `ready` when it serves; ends at end of input.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from llamad.config.definition import Definition, Host
from llamad.config.loaded import Loaded
from llamad.front.keys import KeySet
from llamad.service.front import RelayFront
from llamad.service.journal import NativeJournal
from llamad.service.notify import NoNotifier
from llamad.service.reporter import DaemonReporter
from llamad.service.status import StatusFile
from llamad.supervision.child import ProcessSpawner
from llamad.supervision.intake import Intake
from llamad.supervision.launch import Launch

POOL_TOKENS = 1 << 20
"""So many that admission, which is done, keeps nobody waiting."""


async def serve(port: int, path: str, journal: str, argv: list[str]) -> None:
    definition = Definition(model="/m/bench.gguf")
    loaded = Loaded("bench", Path("/x.toml"), definition, Host(), {}, frozenset(), (), "1")
    reporter = DaemonReporter(
        "bench", NativeJournal(journal), NoNotifier(), StatusFile(Path("/nonexistent"), "bench")
    )
    front = RelayFront(loaded, KeySet(["bench"]), reporter)
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
    sock.bind(("127.0.0.1", port))
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


def main(words: list[str]) -> Any:
    asyncio.run(serve(int(words[0]), words[1], words[2], words[3:]))


if __name__ == "__main__":
    main(sys.argv[1:])
