"""Trying out how much memory a device really gives: where a driver claims room that it does not have.

llama-server is started with the plan's own arguments, but all weights left in the model's file on the host
(nothing is read), and ended as soon as its cache was allocated or refused. Half a second a try. Blocking.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from llamad.engine.build import Capabilities
from llamad.engine.log import Sign, parse_line, sign_of
from llamad.engine.query import run_until

TRIAL_S = 30.0
_CONTEXT_FLAGS = ("-c", "--ctx-size")


def trial_args(args: Sequence[str], context_tokens: int, socket_path: str) -> list[str]:
    """Arguments of a server that serves, changed so that it only allocates a context of this size."""
    changed = list(args)
    changed[changed.index("--host") + 1] = socket_path
    flag = next(flag for flag in _CONTEXT_FLAGS if flag in changed)
    changed[changed.index(flag) + 1] = str(context_tokens)
    return [*changed, "--override-tensor", ".*=CPU", "--no-repack", "--no-warmup"]


def can_try(caps: Capabilities) -> bool:
    """Whether the build has what a trial needs."""
    return all(caps.has(flag) for flag in ("--override-tensor", "--no-repack", "--no-warmup"))


def holds(server: str, args: Sequence[str], env: Mapping[str, str]) -> bool | None:
    """Whether this much could be allocated; None where the run does not tell.

    With remote devices the run goes on until it listens, or ends by itself: ggml-rpc-server dies with a client that is
    killed in the middle of a command.
    """
    remote = "--rpc" in args
    answer: list[bool] = []
    socket_path = Path(args[args.index("--host") + 1])

    def wanted(raw: bytes) -> bool:
        line = parse_line(raw)
        sign = sign_of(line)
        if sign is Sign.ALLOC_FAILED:
            answer.append(False)
        elif sign is Sign.LISTENING or (not remote and (sign is Sign.MODEL_LOADED or "sched_reserve" in line.text)):
            answer.append(True)  # the cache is there, and the compute buffer comes next
        return answer == [True] if remote else bool(answer)

    try:
        run_until([server, *args], env, TRIAL_S, wanted)
    finally:
        with contextlib.suppress(FileNotFoundError):
            socket_path.unlink()
    return answer[0] if answer else None
