"""What all connections of one address share: settings, gate, pools, memory for replay, and who is told."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING

from llamad.clock import Clock
from llamad.front.access import HostCheck
from llamad.front.hangup import HangupWatch
from llamad.front.head import RequestHead
from llamad.front.holding import Gate, GateLimits, Target
from llamad.front.kept import ReplayMemory
from llamad.front.keys import KeySet
from llamad.front.settings import FrontObserver, FrontSettings, ModelDescription
from llamad.front.upstream import Pool

if TYPE_CHECKING:
    from llamad.front.client import ClientConnection
    from llamad.front.exchange import Exchange

_SANE_ID = re.compile(rb"[0-9A-Za-z._-]{1,128}")


class Pulse:
    """Wakes those who wait until something about the connections has changed."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._sleepers: list[asyncio.Future[None]] = []

    def fire(self) -> None:
        """Something has changed."""
        if self._sleepers:
            sleepers, self._sleepers = self._sleepers, []
            for sleeper in sleepers:
                if not sleeper.done():
                    sleeper.set_result(None)

    async def until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until `condition()`, at most `timeout_s`; whether it came true."""
        if condition() or timeout_s <= 0:
            return condition()
        loop = asyncio.get_running_loop()
        timer = loop.create_task(self._clock.sleep(timeout_s))
        try:
            while not condition() and not timer.done():
                sleeper = loop.create_future()
                self._sleepers.append(sleeper)
                await asyncio.wait((sleeper, timer), return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
        return condition()


class Shared:
    """See the module. Everything here is used on the loop only."""

    def __init__(
        self,
        settings: FrontSettings,
        keys: KeySet,
        observer: FrontObserver,
        clock: Clock,
        describe: Callable[[], ModelDescription],
    ) -> None:
        self.settings = settings
        self.keys = keys
        self.hosts = HostCheck(settings.allowed_hosts)
        self.observer = observer
        self.clock = clock
        self.describe = describe
        self.memory = ReplayMemory(settings.replay_bytes)
        self.gate = Gate(_gate_limits(settings), clock, observer.request_waiting)
        self.pulse = Pulse(clock)
        self.hangups = HangupWatch()
        self.clients: set[ClientConnection] = set()
        self.exchanges: set[Exchange] = set()
        self.pools: list[Pool] = []
        self.work = asyncio.Event()  # set while there is anything to sweep
        self.closing = False
        self.last_finished_s = clock.monotonic()
        self._id_prefix = secrets.token_hex(4).encode()
        self._last_id = 0
        self._told_lost = 0
        self._cause: tuple[int, str, str] | None = None

    def apply(self, settings: FrontSettings, keys: KeySet) -> None:
        """Use other settings from the next request on."""
        self.settings = settings
        self.keys = keys
        self.hosts = HostCheck(settings.allowed_hosts)
        self.memory.limit_bytes = settings.replay_bytes
        self.gate.set_limits(_gate_limits(settings))

    def request_id(self, head: RequestHead) -> bytes:
        """The client's X-Request-Id where it is sane, else a new one."""
        given = head.request_id
        if given is not None and _SANE_ID.fullmatch(given):
            return given
        return self.new_id()

    def new_id(self) -> bytes:
        """An id that no other request of this process has."""
        self._last_id += 1
        return b"%b-%x" % (self._id_prefix, self._last_id)

    def pool(self, target: Target) -> Pool:
        """The pool of a generation. The first request of a new one retires the older pools."""
        for pool in reversed(self.pools):
            if pool.generation == target.generation:
                return pool
        settings = self.settings
        new = Pool(
            target.generation,
            target.path,
            self.clock,
            settings.upstream_requests_max,
            settings.upstream_idle_s,
            self.upstream_left,
        )
        for pool in self.pools:
            pool.retire()
        self.pools = [pool for pool in self.pools if not pool.is_empty]
        self.pools.append(new)
        return new

    def upstream_left(self) -> None:
        """An upstream connection has closed."""
        self.pulse.fire()

    def upstream_died(self, generation: int) -> None:
        """Tell the observer, once a generation."""
        if generation > self._told_lost:
            self._told_lost = generation
            self.observer.upstream_lost(generation)

    def explain(self, generation: int, code: str, message: str) -> None:
        """Remember why a generation died, and tell the streams that wait for it."""
        self._cause = (generation, code, message)
        for exchange in list(self.exchanges):
            exchange.explained(generation, code, message)

    def cause(self, generation: int) -> tuple[str, str] | None:
        """Why a generation died: code and message, or None where nobody has said."""
        if self._cause is not None and self._cause[0] == generation:
            return self._cause[1], self._cause[2]
        return None

    def finished(self, exchange: Exchange, now_s: float) -> None:
        """An exchange is over."""
        self.exchanges.discard(exchange)
        self.last_finished_s = now_s
        self.pulse.fire()


def _gate_limits(settings: FrontSettings) -> GateLimits:
    return GateLimits(
        settings.max_concurrent_requests,
        settings.queue_requests,
        settings.wait_s,
        settings.retry_after_s,
        settings.settle_s,
    )
