"""The orders of the admin, at `/admin/`: how the model is, reload, drain, resume, clear-cache."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llamad.front.answers import Answer, error
from llamad.front.metrics import render

if TYPE_CHECKING:
    from llamad.service.figures import ModelFigures
    from llamad.service.front import RelayFront

ORDERS = ("status", "reload", "drain", "resume", "clear-cache")
_DRAIN_S = 60.0
_DRAIN_MAX_S = 86_400.0


@dataclass
class Orders:
    """Carries them out for one model."""

    front: RelayFront
    status: Callable[[], dict[str, Any]]
    """What the supervisor knows."""
    reload: Callable[[], Awaitable[tuple[bool, str]]]
    """Reads the definition again; whether it is in force, and the status in words."""

    async def carry_out(self, order: str, body: bytes, request_id: bytes) -> Answer:
        """The answer to an order. Never raises for what a client sends."""
        if order == "status":
            return self._told()
        if order == "reload":
            in_force, text = await self.reload()
            if in_force:
                return self._told(text=text)
            return error(409, "reload_refused", f"nothing changed: {text}", request_id)
        if order == "clear-cache":
            return self._told(cleared=self.front.clear_cache())
        if order == "resume":
            self.front.resume()
            return self._told()
        if order == "drain":
            return await self._drain(body, request_id)
        message = f'no order "{order}"; there are: {", ".join(ORDERS)}'
        return error(404, "no_such_order", message, request_id)

    async def _drain(self, body: bytes, request_id: bytes) -> Answer:
        try:
            asked = json.loads(body) if body.strip() else {}
            deadline_s = float(asked.get("deadline_s", _DRAIN_S))
        except (ValueError, RecursionError, AttributeError, TypeError, OverflowError):
            deadline_s = -1.0
        if not 0 <= deadline_s <= _DRAIN_MAX_S:
            message = 'send {"deadline_s": SECONDS} with 0 to 86400, or no body for 60'
            return error(400, "bad_order", message, request_id)
        left = await self.front.drain_for_admin(deadline_s)
        return self._told(left=left)

    def _told(self, **more: object) -> Answer:
        return Answer(200, json.dumps({**self.status(), **self.front.status(), **more}).encode())


@dataclass
class OwnAnswers:
    """What llamad itself answers for one model, as the relay asks for it."""

    figures: ModelFigures
    orders: Orders

    async def metrics(self) -> bytes:
        """Everything in Prometheus' text format."""
        return render(await self.figures.families())

    async def admin(self, order: str, body: bytes, request_id: bytes) -> Answer:
        """Carry out an order."""
        return await self.orders.carry_out(order, body, request_id)
