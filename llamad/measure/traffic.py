"""Whether others used the model while it was measured: by the service's own count of requests."""

from __future__ import annotations

from collections.abc import Iterable

from llamad.errors import LlamadError
from llamad.front.metrics import Family, parse
from llamad.measure.client import Target, get_text


class Traffic:
    """Counts what was not ours. An address that does not tell (`front` of another program, no key) counts nothing."""

    def __init__(self, target: Target, model: str) -> None:
        self._target = target
        self._model = model
        self._finished: float | None = None
        self.told = False

    async def begin(self) -> int:
        """Start counting; how many requests of others are there now."""
        families = await self._families()
        self._finished = _sum(families, "llamad_requests_total", self._model)
        self.told = bool(families)
        return _present(families, self._model)

    async def others(self, own: int) -> int:
        """How many requests of others ended since `begin` or are there now, `own` having been ours."""
        families = await self._families()
        if not families or self._finished is None:
            return 0
        finished = _sum(families, "llamad_requests_total", self._model) - self._finished
        return max(0, int(finished) - own) + _present(families, self._model)

    async def _families(self) -> list[Family]:
        try:
            return parse(await get_text(self._target, "/metrics"))
        except LlamadError:
            return []


def _present(families: Iterable[Family], model: str) -> int:
    found = list(families)
    return int(_sum(found, "llamad_active_requests", model) + _sum(found, "llamad_waiting_requests", model))


def _sum(families: Iterable[Family], name: str, model: str) -> float:
    """All samples of a name that are of this model."""
    return sum(
        value
        for family in families
        if family.name == name
        for _suffix, labels, value in family.samples
        if dict(labels).get("model", model) == model
    )
