"""The way to one model: its gate, the connections to its llama-servers, and the requests that are on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamad.clock import Clock
from llamad.front.admission import Admission
from llamad.front.asks import TokenRules
from llamad.front.holding import Gate, GateLimits, Target, Waiter
from llamad.front.pulse import Pulse
from llamad.front.responses import ResponseCache
from llamad.front.settings import FrontObserver, FrontSettings
from llamad.front.upstream import Pool

if TYPE_CHECKING:
    from llamad.front.exchange import Exchange

_FAREWELL_S = 1.0


class Lane:
    """See the module. An address has one lane for each model behind it; `Front` has one."""

    def __init__(self, settings: FrontSettings, observer: FrontObserver, clock: Clock, pulse: Pulse) -> None:
        self.settings = settings
        self.observer = observer
        self.gate = Gate(_gate_limits(settings), clock, observer.request_waiting, self._too_long)
        self.admission = Admission(_token_rules(settings), observer.count_tokens)
        self.responses = ResponseCache(settings.cache_responses, settings.cache_response_bytes)
        self.exchanges: set[Exchange] = set()
        self.pools: list[Pool] = []
        self._clock = clock
        self._pulse = pulse
        self._last_finished_s = clock.monotonic()
        self.passes_keys = False
        """Whether what it leads to asks for keys itself: another llamad."""
        self._told_lost = 0
        self._cause: tuple[int, str, str] | None = None

    def apply(self, settings: FrontSettings) -> None:
        """Use other settings from the next request on, for connections from the next generation on."""
        self.settings = settings
        self.gate.set_limits(_gate_limits(settings))
        self.admission.apply(_token_rules(settings))
        self.responses.bound(settings.cache_responses, settings.cache_response_bytes)

    def open(
        self,
        upstream_path: str,
        *,
        pool_tokens: int | None = None,
        default_output_tokens: int | None = None,
        same_server: bool = False,
    ) -> int:
        """Let requests through to the llama-server at `upstream_path`; the number of this generation. Idle
        connections to the ones before are closed, the others with the end of their answers."""
        for pool in self.pools:
            pool.retire()
        self.pools = [pool for pool in self.pools if not pool.is_empty]
        self.pools.append(
            Pool(
                self.gate.generation + 1,
                upstream_path,
                self._clock,
                self.settings.upstream_requests_max,
                self.settings.upstream_idle_s,
                self._pulse.fire,
            )
        )
        self.admission.opened(upstream_path, pool_tokens, default_output_tokens)
        for exchange in [one for one in self.exchanges if not one.generation]:  # read when nothing served
            exchange.renew()
        return self.gate.open(upstream_path, pool_tokens, same_server=same_server)

    def pool(self, target: Target) -> Pool:
        """The connections for a request that is just being admitted: always those of the last generation."""
        pool = self.pools[-1]
        assert pool.generation == target.generation
        return pool

    def idle_s(self) -> float:
        """Seconds since the last request ended; 0 while there is one."""
        return 0.0 if self.exchanges else self._clock.monotonic() - self._last_finished_s

    def upstream(self, generation: int | None, before: int | None = None) -> list[Exchange]:
        """The requests that are with llama-server, or with this generation of it, or with one before another."""
        return [one for one in self.exchanges if one.generation and is_of(one.generation, generation, before)]

    def sweep(self) -> None:
        """About once a second: time-outs of the gate and of idle connections."""
        self.gate.expire()
        for pool in self.pools:
            pool.sweep()

    @property
    def is_quiet(self) -> bool:
        """Whether there is no request, nor a connection to any llama-server."""
        return not self.exchanges and self.admission.is_quiet and all(pool.is_empty for pool in self.pools)

    def died(self, generation: int) -> None:
        """Tell the observer that a connection died or cannot be made, once a generation."""
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

    # --- the end of a llama-server ---------------------------------------------------------------------------

    def at_work(self, since: int = 0) -> int:
        """See `Front.at_work`."""
        return sum(one.is_at_work and one.generation >= since for one in self.exchanges)

    async def drain(self, deadline_s: float, generation: int | None = None, before: int | None = None) -> int:
        """See `Front.drain`."""
        await self._pulse.until(lambda: not self.upstream(generation, before), deadline_s)
        return len(self.upstream(generation, before))

    def cut(self, cause: str, message: str, generation: int | None = None, before: int | None = None) -> int:
        """See `Front.cut`."""
        cut = self.upstream(generation, before)
        for exchange in cut:
            exchange.cut(cause, message)
        return len(cut)

    async def close_upstreams(self, generation: int | None = None, before: int | None = None) -> None:
        """See `Front.close_upstreams`."""
        self.cut("stopped", "llama-server is being stopped", generation, before)
        pools = [pool for pool in self.pools if is_of(pool.generation, generation, before)]
        for pool in pools:
            pool.drop_all()
        await self._pulse.until(lambda: all(pool.is_empty for pool in pools), _FAREWELL_S)

    def finished(self, exchange: Exchange, now_s: float) -> None:
        """An exchange is over."""
        self.exchanges.discard(exchange)
        self._last_finished_s = now_s
        self._pulse.fire()

    def _too_long(self, waiter: Waiter) -> None:
        """The cache has no room for `waiter` by its bound: have it counted, and those before it."""
        of_interest = [one for one in self.exchanges if one.generation or one.ticket == waiter.ticket]
        self.admission.count_all(one.asked for one in of_interest)


def _token_rules(settings: FrontSettings) -> TokenRules:
    return TokenRules(
        default_output_tokens=settings.default_output_tokens,
        max_output_tokens=settings.max_output_tokens,
        max_input_tokens=settings.max_input_tokens,
        max_total_tokens=settings.max_total_tokens,
        note_streams=settings.heartbeat_s > 0,
    )


def is_of(generation: int, only: int | None, before: int | None) -> bool:
    """Whether a generation is the only one meant, where one is, and before another, where one is given."""
    return only in (None, generation) and (before is None or generation < before)


def _gate_limits(settings: FrontSettings) -> GateLimits:
    return GateLimits(
        settings.max_concurrent_requests,
        settings.queue_requests,
        settings.wait_s,
        settings.retry_after_s,
        settings.settle_s,
    )
