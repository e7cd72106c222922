"""What the ledger shows to a plan that nothing is promised for: `llamad plan` beside models that run. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from llamad.hardware.device import Device
from llamad.ledger.arithmetic import all_outstanding, visible
from llamad.ledger.lease import HOST, Lease


class Onlooker:
    """Plans a model as if it were started anew: what it holds itself is free again, what others were promised is not.

    `leases`: the ledger's, of all models.
    """

    def __init__(self, name: str, leases: Iterable[Lease]) -> None:
        found = list(leases)
        self.others: Sequence[Lease] = [one for one in found if one.name != name]
        self._own = [one for one in found if one.name == name]

    def devices(self, found: Sequence[Device]) -> list[Device]:
        """The devices with what the model itself holds counted as free."""
        held: dict[str, int] = {}
        for lease in self._own:
            for place, size in visible(lease).items():
                held[place] = held.get(place, 0) + size
        return [
            replace(one, free_bytes=min(one.total_bytes, one.free_bytes + held.get(one.uuid or one.name, 0)))
            for one in found
        ]

    def reserved(self) -> Mapping[str, int]:
        """Bytes by place that are promised to others and may still look free."""
        outstanding = all_outstanding(self.others, {one.id: visible(one) for one in self.others})
        return {place: size for place, size in outstanding.items() if place != HOST}
