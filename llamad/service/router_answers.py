"""What the router itself answers: the figures of all its models; orders are for the addresses of single models."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from llamad.front.answers import Answer, error
from llamad.front.metrics import render
from llamad.service.figures import ModelFigures
from llamad.supervision.launch import Launch

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamad.engine.log import Observed
    from llamad.front.lane import Lane
    from llamad.front.relay import Front
    from llamad.front.responses import ResponseCache
    from llamad.service.lane_front import LaneFront
    from llamad.service.life import Living
    from llamad.service.reporter import EventCounts


@dataclass
class LaneView:
    """The figures of one lane, as those of a `Front` are read."""

    lane: Lane

    @property
    def waiting(self) -> int:
        return self.lane.gate.waiting

    @property
    def in_flight(self) -> int:
        return self.lane.gate.in_flight

    @property
    def connections(self) -> int:
        """Those that have a request for this model: a connection is for no model by itself."""
        return len(self.lane.exchanges)

    @property
    def tokens(self) -> tuple[int, int | None]:
        return self.lane.gate.used_tokens, self.lane.gate.pool_tokens

    @property
    def responses(self) -> ResponseCache:
        return self.lane.responses


def lane_figures(
    name: str, front: LaneFront, events: EventCounts, state: Callable[[], str], life: Callable[[], Living | None]
) -> ModelFigures:
    """The figures of a model behind the router. `life`: the one that it has now."""

    def observed() -> Observed | None:
        living = life()
        return living.observed() if living is not None else None

    async def free_bytes(launch: Launch) -> Mapping[str, int]:
        living = life()
        return await living.free_bytes(launch) if living is not None else {}

    view = cast("Front", LaneView(front.lane))
    return ModelFigures(name, view, front.figures, events, state, lambda: front.launch, observed, free_bytes)


@dataclass
class RouterAnswers:
    """`/metrics` and `/admin/` of the router's address."""

    figures: Callable[[], Iterable[ModelFigures]]

    async def metrics(self) -> bytes:
        """All models' series, each family once."""
        found = await asyncio.gather(*(one.families() for one in self.figures()))  # each may wait for its deadlines
        return render([family for families in found for family in families])

    async def admin(self, order: str, body: bytes, request_id: bytes) -> Answer:  # noqa: ARG002
        """Refused."""
        message = f'the router takes no order "{order}": ask the address of the model, or `systemctl reload llamad`'
        return error(404, "no_such_order", message, request_id)
