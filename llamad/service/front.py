"""The relay, as the supervisor sees it, and what the daemon hears of it."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from llamad.clock import SystemClock
from llamad.config.listen import DEFAULT_LISTEN, parse_listen
from llamad.config.loaded import Loaded
from llamad.front.answers import Answer, error
from llamad.front.errand import LocalService
from llamad.front.keys import KeySet
from llamad.front.relay import Front
from llamad.front.settings import FrontSettings, ModelDescription, RequestRecord
from llamad.service.engine import until_idle
from llamad.service.gauges import Gauges
from llamad.service.opening import count_or_none, opening_of
from llamad.service.reporter import DaemonReporter
from llamad.service.requests import RequestFigures, RequestLog
from llamad.supervision.launch import Launch

REOPEN_S = 0.5


class RelayFront:
    """Gives `front.relay.Front` the supervisor's words, and reopens it where only a connection was lost."""

    def __init__(self, loaded: Loaded, keys: KeySet, reporter: DaemonReporter | None = None) -> None:
        self.figures = RequestFigures()
        self.gauges = Gauges()
        self.local: LocalService | None = None
        """What `/metrics` and `/admin/` do; to be set before requests come."""
        self._log = request_log(reporter, loaded) if reporter is not None else None
        self._drained = False
        self._launch: Launch | None = None
        self._open = False
        self._generation = 0
        self._since = 0
        """The first generation of the child that requests go to."""
        self._progress = 0
        self._created_s = int(time.time())
        self.state: Callable[[], str] = lambda: "stopped"
        self.child_lives: Callable[[], bool] = lambda: False
        self.tell_keys: Callable[[Loaded, KeySet], None] = lambda _loaded, _keys: None
        """Tells the keys in force to a llama-server that owns the address: for its next start."""
        self._front = Front(settings_of(loaded), keys, self, SystemClock(), self._describe, self)
        self._is_direct = loaded.definition.is_direct
        """Clients are with llama-server itself; what comes here is only what the router passes on."""
        if self._is_direct:
            self._front.pass_keys()

    async def start(self, sockets: Sequence[socket.socket], forwarding: Sequence[socket.socket] = ()) -> None:
        """Accept on these sockets, the router's requests on those of `forwarding`; held until the model is ready."""
        await self._front.start(sockets, forwarding)

    def publish(self, folder: Path) -> None:
        """Have everybody see there how many requests there are, from now on; where they come by us, that is."""
        if self._is_direct:
            return
        self.gauges = Gauges(folder)
        self._front.watch(self.gauges.counts, self.gauges.token)

    async def move(self, listening: list[socket.socket]) -> None:
        """Accept on these sockets; those before are closed when their queues are empty."""
        await self._front.move(listening)

    def apply(self, loaded: Loaded, keys: KeySet) -> None:
        """Use other settings and keys from now on. Raises what `tell_keys` does; nothing has changed then."""
        if self._is_direct:
            self.tell_keys(loaded, keys)
        self._front.apply(settings_of(loaded), keys)
        if self._log is not None:
            self._log.level = loaded.definition.log.requests

    async def close(self) -> None:
        """Answer what was accepted, then close every connection; the listening sockets stay as they are."""
        await self._front.close(linger_s=1.0)
        if self._log is not None:
            self._log.flush()

    # -- the supervisor's side --------------------------------------------------------------------------

    def hold(self, reason: str) -> None:
        self._open = False
        self._front.hold(reason)

    def open(self, launch: Launch) -> None:
        self._launch, self._open = launch, True
        if not self._drained:
            self._generation = self._since = self._front_open(launch)

    def quiet_s(self) -> float:
        return 0.0 if self._is_direct else self._front.idle_s()

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
        await self._until_clients_are_done(deadline_s)
        await self._front.close(deadline_s)

    async def drain(self, deadline_s: float, *, former: bool = False) -> int:
        await self._until_clients_are_done(deadline_s)
        return await self._front.drain(deadline_s, before=self._before(former))

    async def _until_clients_are_done(self, deadline_s: float) -> None:
        """Those that are with llama-server itself: only its slots tell."""
        if self._is_direct and self._launch is not None:
            await until_idle(self._launch.socket_path, deadline_s)

    def cut(self, cause: str, message: str, *, former: bool = False) -> None:
        self._front.cut(cause, message, before=self._before(former))

    async def close_upstreams(self, *, former: bool = False) -> None:
        await self._front.close_upstreams(before=self._before(former))

    def _before(self, former: bool) -> int | None:
        return self._since if former else None

    # -- the admin's side -------------------------------------------------------------------------------

    async def metrics(self) -> bytes:
        """For the relay: see `local`."""
        return await self.local.metrics() if self.local is not None else b""

    async def admin(self, order: str, body: bytes, request_id: bytes) -> Answer:
        """For the relay: see `local`."""
        if self.local is None:
            return error(503, "starting", "llamad is starting", request_id)
        return await self.local.admin(order, body, request_id)

    async def drain_for_admin(self, deadline_s: float) -> int:
        """Hold requests until `resume`; wait for those in flight, at most so long: how many are left."""
        self._drained = True
        self._front.hold("the admin has drained the model")
        return await self._front.drain(deadline_s)

    def resume(self) -> None:
        """Let requests through again, as far as there is a llama-server."""
        drained, self._drained = self._drained, False
        if drained and self._open and self._launch is not None:  # whoever was left at the drain is still with it
            self._generation = self._front_open(self._launch, same_server=True)

    def clear_cache(self) -> int:
        """Forget the answers that are kept; how many they were."""
        return self._front.forget_responses()

    def status(self) -> dict[str, object]:
        """What the address knows, for the admin."""
        used_tokens, pool_tokens = self._front.tokens
        return {
            "active_requests": self._front.in_flight,
            "waiting_requests": self._front.waiting,
            "connections": self._front.connections,
            "drained": self._drained,
            "admitted_tokens": used_tokens,
            "pool_tokens": pool_tokens,
            "kept_responses": len(self._front.responses),
        }

    @property
    def launch(self) -> Launch | None:
        """What is served, or was last."""
        return self._launch

    @property
    def relay(self) -> Front:
        """The relay itself: for reading its figures."""
        return self._front

    # -- what the relay tells ---------------------------------------------------------------------------

    def request_waiting(self) -> None:
        """Nothing to do: a model served by its own unit is loaded or being loaded."""

    def request_finished(self, record: RequestRecord) -> None:
        """Counted, and written down."""
        self.figures.finished(record)
        self.gauges.finished(record)
        if self._log is not None:
            self._log.finished(record)

    def progress(self) -> None:
        """Counted for the watch over hangs."""
        self._progress += 1

    def upstream_lost(self, generation: int) -> None:
        """The supervisor hears of a dead child by itself; a live one that dropped a connection is used again."""
        if generation >= self._since:
            asyncio.get_running_loop().call_later(REOPEN_S, self._reopen, self._launch)

    def _reopen(self, launch: Launch | None) -> None:
        ours = self._open and not self._drained and launch is self._launch
        if ours and launch is not None and self.child_lives():
            self._generation = self._front_open(launch, same_server=True)

    def _front_open(self, launch: Launch, *, same_server: bool = False) -> int:
        return self._front.open(launch.socket_path, **opening_of(launch), same_server=same_server)

    async def count_tokens(self, socket_path: str, path: str, body: bytes) -> int | None:
        """As llama-server counts."""
        return await count_or_none(socket_path, path, body)

    def _describe(self) -> ModelDescription:
        plan = self._launch.plan if self._launch else None
        return ModelDescription(
            state=self.state(),
            context_tokens=plan.context_tokens if plan else None,
            trained_context_tokens=plan.context_train_tokens if plan else None,
            size_bytes=self._launch.file_bytes if self._launch else None,
            created_s=self._created_s,
        )


def request_log(reporter: DaemonReporter, loaded: Loaded | None) -> RequestLog:
    """Where the requests of a model are written down. To be made on the loop."""
    loop = asyncio.get_running_loop()
    return RequestLog(reporter, loop.time, loop.call_later, loaded.definition.log.requests if loaded else "info")


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
        default_output_tokens=limits.max_output_tokens,
        max_output_tokens=limits.max_output_tokens,
        max_input_tokens=limits.max_input_tokens,
        max_total_tokens=limits.max_total_tokens,
        heartbeat_s=limits.heartbeat_s,
        cache_responses=definition.cache.responses,
        cache_response_bytes=definition.cache.response_bytes,
        definition=loaded.digest,
        allowed_hosts=definition.allowed_hosts,
        check_host=listen.kind == "tcp" and listen.is_local,
    )
