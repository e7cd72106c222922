"""Whether others used the model while it was measured: by the service's own count of requests."""

from __future__ import annotations

import asyncio
import re

from llamad.errors import LlamadError
from llamad.front.settings import Outcome
from llamad.measure.client import Target, get_text
from llamad.units import sane_number

_NO_WORK = tuple(f'outcome="{one.value}"' for one in (Outcome.LOCAL, Outcome.REFUSED, Outcome.REPEATED))
"""Health checks, `/metrics` and the like: they cost the model nothing."""
_WAIT_S = 20.0
_SAMPLE = re.compile(r"^(llamad_[a-z_]+)\{([^{}]*)\} ([0-9.e+]+)$", re.M)


class Traffic:
    """Counts what was not ours. An address that does not tell (another program, no key for it, no answer) counts
    nothing."""

    def __init__(self, target: Target, model: str, wait_s: float = _WAIT_S) -> None:
        self._target = target
        self._wait_s = wait_s
        self._label = f'model="{model}"'
        self._finished: int | None = None

    async def begin(self) -> int:
        """Start counting; how many requests of others are there now."""
        text = await self._text()
        if text:
            self._finished = self._sum(text, "llamad_requests_total")
        return self._present(text)

    async def others(self, own: int) -> int:
        """How many requests of others ended since `begin` or are there now, `own` having been ours."""
        text = await self._text()
        if not text or self._finished is None:
            return 0
        return max(0, self._sum(text, "llamad_requests_total") - self._finished - own) + self._present(text)

    async def _text(self) -> str:
        try:
            async with asyncio.timeout(self._wait_s):
                return await get_text(self._target, "/metrics")
        except (LlamadError, TimeoutError):
            return ""

    def _present(self, text: str) -> int:
        return self._sum(text, "llamad_active_requests") + self._sum(text, "llamad_waiting_requests")

    def _sum(self, text: str, name: str) -> int:
        """All samples of a name that are of this model."""
        found = (match for match in _SAMPLE.finditer(text) if match[1] == name)
        return int(sum(sane_number(match[3]) for match in found if self._is_ours(match[2].split(","))))

    def _is_ours(self, labels: list[str]) -> bool:
        return self._label in labels and not any(label in _NO_WORK for label in labels)
