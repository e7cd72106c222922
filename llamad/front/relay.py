"""The front of one model: its addresses, its gate, and the relay between clients and llama-server.

This is the room's public face, with `switch` for several models; all the rest of `llamad.front` works for the two.
It never speaks of why a model is held or has failed: the owner says so, with `open`, `hold`, `refuse` and
`explain_loss`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from llamad.clock import Clock
from llamad.front.client import ClientConnection
from llamad.front.errand import LocalService
from llamad.front.holding import Refusal
from llamad.front.keys import KeySet
from llamad.front.listen import Listener
from llamad.front.responses import ResponseCache
from llamad.front.settings import FrontObserver, FrontSettings, ModelDescription
from llamad.front.shared import Shared

if TYPE_CHECKING:
    from ssl import SSLContext

_SWEEP_S = 1.0
_SLICE = 128
_EXPECTED_S = 0.5
_FAREWELL_S = 1.0


class Address:
    """Listening sockets and their clients' connections. Every method is for the loop that `start` ran on."""

    def __init__(self, shared: Shared, clock: Clock) -> None:
        self._shared = shared
        self._clock = clock
        self._listeners: list[Listener] = []
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self, sockets: Sequence[socket.socket], forwarding: Sequence[socket.socket] = ()) -> None:
        """Accept on these bound and listening sockets (TCP or unix). They stay the caller's.

        `forwarding`: unix sockets by which others' requests come. They can carry no order by who connects: the
        llama-servers of all models run as one user.
        """
        for sock in (*sockets, *forwarding):
            make = self._make_forwarder if sock in forwarding else self._make_client
            listener = Listener(sock, make, self._clock, self._tls)
            listener.start()
            self._listeners.append(listener)
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().create_task(self._sweep_for_ever())

    async def move(self, sockets: Sequence[socket.socket]) -> None:
        """Accept on these sockets and no longer on those before, which are closed. Who waits in their queues is
        served, and no connection is touched."""
        former = [one for one in self._listeners if one.sock not in sockets]
        self._listeners = [one for one in self._listeners if one.sock in sockets]
        kept = {one.sock for one in self._listeners}
        await self.start([sock for sock in sockets if sock not in kept])
        for listener in former:
            await listener.retire()

    def _tls(self) -> SSLContext | None:
        certificate = self._shared.keys.certificate
        return certificate.context if certificate is not None else None

    @property
    def connections(self) -> int:
        """Clients' connections."""
        return len(self._shared.clients)

    async def stop_accepting(self) -> None:
        """Take no new connection: they stay in the sockets' queues for whoever serves them next. Answers carry
        `Connection: close` from now on."""
        self._shared.closing = True
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            await listener.stop()

    async def close(self, linger_s: float) -> None:
        """Answer what has been accepted, at most for `linger_s`, then close every connection, idle ones last.
        The listening sockets are neither shut down nor closed."""
        await self.stop_accepting()
        shared = self._shared
        for client in list(shared.clients):
            client.hurry()
        until_s = self._clock.monotonic() + linger_s
        await self._await_expected(min(_EXPECTED_S, linger_s))
        await shared.pulse.until(self._nothing_in_work, until_s - self._clock.monotonic())
        self._close_idle()
        await shared.pulse.until(self._nothing_in_work, until_s - self._clock.monotonic())
        self._end_the_rest()
        self._close_idle()
        await shared.pulse.until(lambda: not shared.clients, _FAREWELL_S)
        for client in list(shared.clients):
            client.break_off()
        for lane in shared.lanes:
            await lane.close_upstreams()
            lane.admission.close()
        for errand in list(shared.errands):
            errand.cancel()
        await shared.pulse.until(lambda: not shared.clients, _FAREWELL_S)
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        shared.hangups.close()

    async def _await_expected(self, patience_s: float) -> None:
        """A client that has just come, or just got an answer, is likely to send a request now: let it have the
        answer, which tells it to go, rather than a connection that closes under its request."""
        now_s = self._clock.monotonic()
        clients = self._shared.clients
        expected = {one: one.served for one in clients if now_s - one.quiet_since_s < _EXPECTED_S}

        def have_come() -> bool:
            return all(one.served > served or one not in clients for one, served in expected.items())

        await self._shared.pulse.until(have_come, patience_s)

    def _close_idle(self) -> None:
        for client in list(self._shared.clients):
            client.close_idle()

    def _end_the_rest(self) -> None:
        """Whoever is not served by now gets an error, not a closed connection."""
        stopping = Refusal(503, "stopping", "llamad is stopping", self._shared.settings.retry_after_s)
        for lane in self._shared.lanes:
            lane.gate.refuse(stopping)
            lane.cut(stopping.code, stopping.message)

    def _nothing_in_work(self) -> bool:
        return not any(client.is_busy for client in self._shared.clients)

    def _make_client(self, from_network: bool) -> ClientConnection:
        return ClientConnection(self._shared, from_network=from_network)

    def _make_forwarder(self, from_network: bool) -> ClientConnection:
        return ClientConnection(self._shared, from_network=from_network, forwards=True)

    async def _sweep_for_ever(self) -> None:
        """Time-outs, once a second while there is a connection; no wake-up while there is none."""
        shared = self._shared
        while True:
            await shared.work.wait()
            await self._clock.sleep(_SWEEP_S)
            now_s = self._clock.monotonic()
            for lane in shared.lanes:
                lane.sweep()
            await self._tick_all(now_s)
            if not shared.clients and all(lane.is_quiet for lane in shared.lanes):
                shared.work.clear()

    async def _tick_all(self, now_s: float) -> None:
        """In slices: for thousands of connections it takes some milliseconds, and requests have their turn between."""
        clients = list(self._shared.clients)
        for start in range(0, len(clients), _SLICE):
            if start:
                await asyncio.sleep(0)
            for client in clients[start : start + _SLICE]:
                if client in self._shared.clients:
                    self._tick(client, now_s)

    def _tick(self, client: ClientConnection, now_s: float) -> None:
        """A bug met by one connection ends that connection, not the time-outs of all the others."""
        try:
            client.tick(now_s)
        except Exception as error:
            context = {"message": "a time-out failed; its connection is broken off", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)
            client.break_off()


class Front(Address):
    """One model behind one set of listening sockets. Every method is for the loop that `start` ran on.

    A reload: `hold`, `drain`, `cut` for what is left, `close_upstreams`, and `open` for the new llama-server.
    The end: `stop_accepting`, `drain`, `refuse` for what waits, `cut`, `close`.
    """

    def __init__(
        self,
        settings: FrontSettings,
        keys: KeySet,
        observer: FrontObserver,
        clock: Clock,
        describe: Callable[[], ModelDescription],
        local: LocalService | None = None,
    ) -> None:
        """`describe` tells of the model for `/v1/models`, `local` answers `/metrics` and `/admin/`: without one
        they do not exist."""
        super().__init__(Shared(settings, keys, observer, clock, describe, local), clock)
        self._lane = self._shared.lane

    def pass_keys(self) -> None:
        """llama-server asks for the keys as well: it is told those of its requests."""
        self._lane.passes_keys = True

    # --- the gate --------------------------------------------------------------------------------------------

    def open(
        self,
        upstream_path: str,
        *,
        pool_tokens: int | None = None,
        default_output_tokens: int | None = None,
        same_server: bool = False,
    ) -> int:
        """Relay to the llama-server that listens on this unix socket; the number of this new generation.
        Requests that are with the one before stay there.

        `pool_tokens`: the cache that its requests share, which they never overfill; None where each slot has its
        own. `default_output_tokens`: what an answer may have where neither request nor settings say.
        `same_server`: it is the one before, of which only a connection was lost."""
        return self._lane.open(
            upstream_path,
            pool_tokens=pool_tokens,
            default_output_tokens=default_output_tokens,
            same_server=same_server,
        )

    def hold(self, reason: str) -> None:
        """Let requests wait. `reason` is for those that wait too long: "the model is loading"."""
        self._lane.gate.hold(reason)

    def refuse(self, status: int, code: str, message: str, retry_after_s: float | None = None) -> None:
        """Answer every request, those that wait and those to come, with this error until `open` or `hold`."""
        self._lane.gate.refuse(Refusal(status, code, message, retry_after_s))

    def explain_loss(self, generation: int, code: str, message: str) -> None:
        """Why the llama-server of this generation died. Its cut streams end with it: say it within
        `cause_wait_s` of the death."""
        self._lane.explain(generation, code, message)

    # --- figures ---------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Requests that are with llama-server."""
        return self._lane.gate.in_flight

    def at_work(self, since: int = 0) -> int:
        """Requests that llama-server, from generation `since` on, has whole, and whose clients take what it answers."""
        return self._lane.at_work(since)

    @property
    def waiting(self) -> int:
        """Requests that wait at the gate."""
        return self._lane.gate.waiting

    def forget_responses(self) -> int:
        """Empty the cache of answers; how many they were."""
        return self._lane.responses.clear()

    @property
    def responses(self) -> ResponseCache:
        """The answers that are kept: for reading their figures."""
        return self._lane.responses

    @property
    def tokens(self) -> tuple[int, int | None]:
        """Tokens that the admitted requests may take of the cache that they share, and how many it has; None
        where each slot has its own."""
        return self._lane.gate.used_tokens, self._lane.gate.pool_tokens

    def idle_s(self) -> float:
        """Seconds since the last relayed request ended; 0 while there is one. Health checks do not count."""
        return self._lane.idle_s()

    # --- the end of a llama-server ---------------------------------------------------------------------------

    async def drain(self, deadline_s: float, generation: int | None = None, before: int | None = None) -> int:
        """Wait until no request is with llama-server (or with this generation of it, or with those `before` one), at
        most `deadline_s`; how many still are. `hold` before, or new ones keep coming."""
        return await self._lane.drain(deadline_s, generation, before)

    def cut(self, cause: str, message: str, generation: int | None = None, before: int | None = None) -> int:
        """End every request that is with llama-server; how many. A stream that has begun gets an error event
        with `cause` and its request id; one of which nothing has gone out waits at the gate for the next
        llama-server; other answers end with 503 or, where part of the body is out, a broken connection."""
        return self._lane.cut(cause, message, generation, before)

    async def close_upstreams(self, generation: int | None = None, before: int | None = None) -> None:
        """Close every connection to llama-server, which does not stop while a request is on one. Requests
        still there are cut with cause `stopped`: `cut` before to name a better one."""
        await self._lane.close_upstreams(generation, before)

    # --- settings --------------------------------------------------------------------------------------------

    def apply(self, settings: FrontSettings, keys: KeySet) -> None:
        """Use these from the next request on. Nothing in flight is touched; kept answers are forgotten."""
        self._shared.apply(settings, keys)
