"""The relay, as the supervisor sees it, and what the daemon hears of it."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Sequence

from llamad.clock import SystemClock
from llamad.config.listen import DEFAULT_LISTEN, parse_listen
from llamad.config.loaded import Loaded
from llamad.front.keys import KeySet
from llamad.front.relay import Front
from llamad.front.settings import FrontSettings, ModelDescription, RequestRecord
from llamad.supervision.launch import Launch

REOPEN_S = 0.5


class RelayFront:
    """Gives `front.relay.Front` the supervisor's words, and reopens it where only a connection was lost."""

    def __init__(self, loaded: Loaded, keys: KeySet) -> None:
        self._launch: Launch | None = None
        self._open = False
        self._generation = 0
        self._since = 0
        """The first generation of the child that requests go to."""
        self._progress = 0
        self._created_s = int(time.time())
        self.state: Callable[[], str] = lambda: "stopped"
        self.child_lives: Callable[[], bool] = lambda: False
        self._front = Front(settings_of(loaded), keys, self, SystemClock(), self._describe)

    async def start(self, sockets: Sequence[socket.socket]) -> None:
        """Accept on these sockets; requests are held until the model is ready."""
        await self._front.start(sockets)

    async def move(self, listening: list[socket.socket]) -> None:
        """Accept on these sockets; those before are closed when their queues are empty."""
        await self._front.move(listening)

    def apply(self, loaded: Loaded, keys: KeySet) -> None:
        """Use other settings and keys from now on."""
        self._front.apply(settings_of(loaded), keys)

    async def close(self) -> None:
        """Answer what was accepted, then close every connection; the listening sockets stay as they are."""
        await self._front.close(linger_s=1.0)

    # -- the supervisor's side --------------------------------------------------------------------------

    def hold(self, reason: str) -> None:
        self._open = False
        self._front.hold(reason)

    def open(self, launch: Launch) -> None:
        self._launch, self._open = launch, True
        self._generation = self._since = self._front.open(launch.socket_path)

    def at_work(self) -> int:
        return self._front.at_work(self._since)

    def progress_count(self) -> int:
        return self._progress

    def refuse(self, message: str) -> None:
        self._open = False
        self._front.refuse(503, "model_failed", message)

    def explain(self, cause: str, message: str) -> None:
        self._front.explain_loss(self._generation, cause, message)

    async def farewell(self, deadline_s: float) -> None:
        await self._front.close(deadline_s)

    async def drain(self, deadline_s: float, *, former: bool = False) -> int:
        return await self._front.drain(deadline_s, before=self._before(former))

    def cut(self, cause: str, message: str, *, former: bool = False) -> None:
        self._front.cut(cause, message, before=self._before(former))

    async def close_upstreams(self, *, former: bool = False) -> None:
        await self._front.close_upstreams(before=self._before(former))

    def _before(self, former: bool) -> int | None:
        return self._since if former else None

    # -- what the relay tells ---------------------------------------------------------------------------

    def request_waiting(self) -> None:
        """Nothing to do: a model served by its own unit is loaded or being loaded."""

    def request_finished(self, record: RequestRecord) -> None:
        """Nothing to do yet."""

    def progress(self) -> None:
        """Counted for the watch over hangs."""
        self._progress += 1

    def upstream_lost(self, generation: int) -> None:
        """The supervisor hears of a dead child by itself; a live one that dropped a connection is used again."""
        if generation >= self._since:
            asyncio.get_running_loop().call_later(REOPEN_S, self._reopen, self._launch)

    def _reopen(self, launch: Launch | None) -> None:
        if self._open and launch is self._launch and launch is not None and self.child_lives():
            self._generation = self._front.open(launch.socket_path)

    def _describe(self) -> ModelDescription:
        plan = self._launch.plan if self._launch else None
        return ModelDescription(
            state=self.state(),
            context_tokens=plan.context_tokens if plan else None,
            trained_context_tokens=plan.context_train_tokens if plan else None,
            size_bytes=self._launch.file_bytes if self._launch else None,
            created_s=self._created_s,
        )


def settings_of(loaded: Loaded) -> FrontSettings:
    """The relay's part of a definition."""
    definition = loaded.definition
    limits = definition.limits
    listen = parse_listen(definition.listen or DEFAULT_LISTEN)
    return FrontSettings(
        name=loaded.name,
        aliases=definition.aliases,
        max_concurrent_requests=limits.max_concurrent_requests,
        queue_requests=limits.queue_requests,
        wait_s=limits.wait_s,
        head_bytes=limits.head_bytes,
        body_bytes=limits.body_bytes,
        replay_bytes=limits.replay_bytes,
        client_idle_s=limits.client_idle_s,
        allowed_hosts=definition.allowed_hosts,
        check_host=listen.kind == "tcp" and listen.is_local,
    )
