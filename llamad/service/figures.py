"""All figures of one model for `/metrics`: what the supervisor, the front, the plan and the driver know, and
llama-server's own.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamad import __version__
from llamad.engine.api import ApiError, metrics
from llamad.engine.names import child_names
from llamad.front.metrics import Family, counters, parse, value_of
from llamad.service.requests import RequestFigures
from llamad.supervision.launch import Launch
from llamad.supervision.machine import State

if TYPE_CHECKING:
    from llamad.engine.log import Observed
    from llamad.front.relay import Front
    from llamad.service.reporter import EventCounts

SCRAPE_S = 2.0
FRESH_S = 1.0
WINDOW_S = 15.0
_RATES = {
    "llamacpp_prompt_tokens_seconds": ("llamacpp_prompt_tokens_total", "llamacpp_prompt_seconds_total"),
    "llamacpp_predicted_tokens_seconds": (
        "llamacpp_tokens_predicted_total",
        "llamacpp_tokens_predicted_seconds_total",
    ),
}
"""llama-server averages these since it was last asked, by whomever: they are computed anew from its counters."""


class ChildFigures:
    """llama-server's series, asked for at most once a second however many ask us."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._path = ""
        self._text = ""
        self._asked_s = float("-inf")
        self._past: list[tuple[float, dict[str, float]]] = []

    async def families(self, socket_path: str, model: str) -> list[Family]:
        """The series, under the model's name; none while llama-server does not answer."""
        now_s = self._now()
        if socket_path != self._path:
            self._path, self._past, self._asked_s = socket_path, [], float("-inf")
        if now_s - self._asked_s >= FRESH_S:
            self._asked_s = now_s
            try:
                self._text = await metrics(socket_path, SCRAPE_S)
            except ApiError:
                self._text = ""
        found = [_well_named(family) for family in parse(self._text, model=model)]
        self._own_rates(found, now_s)
        return found

    def _own_rates(self, found: list[Family], now_s: float) -> None:
        names = [name for pair in _RATES.values() for name in pair]
        values = {name: value_of(found, name) or 0.0 for name in names}
        if self._past and any(values[name] < self._past[-1][1][name] for name in names):
            self._past = []  # another llama-server
        self._past.append((now_s, values))
        while len(self._past) > 2 and now_s - self._past[1][0] >= WINDOW_S:
            del self._past[0]
        before = self._past[0][1] if len(self._past) > 1 else dict.fromkeys(names, 0.0)
        for family in found:
            if family.name in _RATES:
                tokens, seconds = _RATES[family.name]
                spent_s = values[seconds] - before[seconds]
                rate = (values[tokens] - before[tokens]) / spent_s if spent_s > 0 else 0.0
                family.samples = [(suffix, labels, rate) for suffix, labels, _ in family.samples]


def _well_named(family: Family) -> Family:
    """As Prometheus wants it: colons belong to recording rules, and what is no total is no counter."""
    family.name = family.name.replace(":", "_")
    if family.kind == "counter" and not family.name.endswith("_total"):
        family.kind = "gauge"
    return family


@dataclass
class ModelFigures:
    """What the figures of one model are made of."""

    name: str
    front: Front
    requests: RequestFigures
    events: EventCounts
    state: Callable[[], str]
    launch: Callable[[], Launch | None]
    """What is served now."""
    observed: Callable[[], Observed | None]
    free_bytes: Callable[[Launch], Awaitable[Mapping[str, int]]]

    def __post_init__(self) -> None:
        self._child = ChildFigures()

    async def families(self) -> list[Family]:
        """All series. The driver and llama-server are asked, each with a deadline."""
        found = [*self._own(), *self.requests.families(model=self.name)]
        launch = self.launch()
        if launch is not None:
            found += self._places(launch, await self.free_bytes(launch))
            if self.state() == State.READY:
                found += await self._child.families(launch.socket_path, self.name)
        return found

    def _own(self) -> Iterable[Family]:
        model, front, state = self.name, self.front, self.state()
        states = Family("llamad_state", "gauge", "1 for the state that the model is in, 0 for the others.")
        for one in State:
            states.add(float(one == state), model=model, state=str(one))
        yield Family("llamad_info", "gauge", "The version of llamad.").add(1, model=model, version=__version__)
        yield states
        yield counters("llamad_restarts_total", "Starts after a death.", "cause", self.events.restarts, model=model)
        yield counters("llamad_deaths_total", "Deaths of llama-server.", "cause", self.events.deaths, model=model)
        down = Family("llamad_step_downs_total", "counter", "Plans made smaller for lack of memory.")
        yield down.add(self.events.names["stepped-down"], model=model)
        used_tokens, pool_tokens = front.tokens
        responses = front.responses
        for name, text, value in (
            ("llamad_waiting_requests", "Requests that wait at the gate.", front.waiting),
            ("llamad_active_requests", "Requests that are with llama-server.", front.in_flight),
            ("llamad_client_connections", "Connections of clients.", front.connections),
            ("llamad_admitted_tokens", "Tokens that the admitted requests may take of a shared cache.", used_tokens),
            ("llamad_pool_tokens", "Tokens of the cache that requests share; 0 where they do not.", pool_tokens or 0),
            ("llamad_kept_responses", "Answers that are kept.", len(responses)),
            ("llamad_kept_response_bytes", "Bytes of the answers that are kept.", responses.held_bytes),
        ):
            yield Family(name, "gauge", text).add(value, model=model)
        hits = {"hit": responses.hits, "miss": responses.misses}
        yield counters("llamad_kept_response_lookups_total", "Looks for a kept answer.", "result", hits, model=model)

    def _places(self, launch: Launch, free: Mapping[str, int]) -> Iterable[Family]:
        plan, model = launch.plan, self.name
        tokens = Family("llamad_context_tokens", "gauge", "Tokens of context of the llama-server that runs.")
        yield tokens.add(plan.context_tokens, model=model)
        yield Family("llamad_slots", "gauge", "Slots of the llama-server that runs.").add(plan.slots, model=model)
        planned = Family("llamad_device_planned_bytes", "gauge", "What the plan counts on a device, with its margin.")
        real = Family("llamad_device_buffer_bytes", "gauge", "Buffers that llama-server says it has on a device.")
        unused = Family("llamad_device_free_bytes", "gauge", "Memory of a device that the driver shows as free.")
        observed, names = self.observed(), child_names(plan.devices)
        for device in plan.devices:
            planned.add(device.parts.total_bytes, model=model, device=device.name)
            if observed is not None:
                sizes = (size for (buffer, _), size in observed.buffers.items() if buffer == names[device.name])
                real.add(sum(sizes), model=model, device=device.name)
            if device.name in free:
                unused.add(free[device.name], model=model, device=device.name)
        yield from (planned, real, unused)
