"""What this model may take of devices that other models of this host are meant to use too. Blocking.

Every start works out the same shares from the same definitions (see planning/shares.py): of all models that are enabled
and of those that run now. What the others claim is kept in the model's cache folder, so that only a changed definition
or file costs a start the reading of another model's header.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from llamad.config.kept import load_all_kept
from llamad.config.loaded import Loaded
from llamad.errors import LlamadError
from llamad.gguf.identity import identity
from llamad.hardware.device import Device
from llamad.ledger.lease import HOST, Lease, Phase
from llamad.planning.problem import Problem
from llamad.planning.shares import Claim, Claimant, shares
from llamad.service.facts import FactsReader, extras_of, located_facts
from llamad.service.neighbours import ENABLED_UNITS, enabled_names
from llamad.store import load_cache, store_cache

CLAIMS = "claims.json"
NEIGHBOURS = "neighbours.json"


class Share(NamedTuple):
    """What a plan keeps to. (A tuple: a start waits for the making of its classes.)"""

    bytes_by_place: Mapping[str, int] | None = None
    """By a device's UUID or name; None = all that is free."""
    others: tuple[str, ...] = ()
    """Who else is meant to use these devices."""


class Sharing:
    """Finds out who else wants the devices. `leases` gives what the ledger has of the others, `expected` names models
    that will be served besides those that run or are enabled.
    """

    def __init__(
        self,
        root: Path,
        cache: Path,
        leases: Callable[[], Sequence[Lease]],
        enabled_units: Path = ENABLED_UNITS,
        expected: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self._root = root
        self._cache = cache
        self._leases = leases
        self._expected = expected
        self._enabled_units = enabled_units

    def share(self, name: str, problem: Problem) -> Share:
        """This model's share. A neighbour that cannot be read claims nothing: its own start will say why.

        Raises BusyError where the ledger cannot be had.
        """
        if problem.placement.context != "auto":  # a promise: nobody need be asked what is left
            return Share()
        running = {lease.name: lease for lease in self._leases() if lease.phase is not Phase.WAITING}
        names = {*running, *enabled_names(self._enabled_units), *self._expected()} - {name}
        if not names:
            return Share()
        neighbours = [
            loaded for loaded in load_all_kept(self._root, self._cache / NEIGHBOURS) if loaded.name in names
        ]
        claimants = [*self._claimants(neighbours, problem), claimant_of(name, problem)]
        found = shares(_capacity(problem.devices, running.values()), claimants)
        own = found[name]
        others = [other for other, share in sorted(found.items()) if other != name and set(share) & set(own)]
        return Share(own, tuple(others)) if others else Share()

    def _claimants(self, neighbours: Sequence[Loaded], problem: Problem) -> list[Claimant]:
        kept = load_cache(self._cache / CLAIMS)
        entries = kept if isinstance(kept, dict) else {}
        renewed: dict[str, object] = {}
        found = []
        for loaded in neighbours:
            key = _key(loaded, problem)
            claimant = _from_json(loaded.name, entries.get(key))
            if claimant is None:
                claimant = _read_claimant(loaded, problem)
            renewed[key] = [
                {place: [claim.floor_bytes, claim.want_bytes] for place, claim in claims.items()}
                for claims in claimant.places
            ]
            found.append(claimant)
        if renewed != entries:
            store_cache(self._cache / CLAIMS, renewed)
        return found


def claimant_of(name: str, problem: Problem) -> Claimant:
    """What the model claims."""
    from llamad.planning.claims import claimant  # most models are alone: a start has no time for it

    return claimant(name, problem)


def _read_claimant(loaded: Loaded, problem: Problem) -> Claimant:
    definition = loaded.definition
    try:
        facts = located_facts(loaded, FactsReader())
        extras = extras_of(loaded, facts)
    except LlamadError:
        return Claimant(loaded.name, ())
    theirs = Problem(
        facts,
        problem.devices,
        problem.host,
        definition.placement,
        problem.gates,
        definition.server.cache_ram,
        extras=extras,
    )
    return claimant_of(loaded.name, theirs)


def _capacity(devices: Iterable[Device], running: Iterable[Lease]) -> dict[str, int]:
    """What all models of llamad together may take: what is free, and what they have taken already."""
    capacity = {device.uuid or device.name: device.free_bytes for device in devices}
    for lease in running:
        for place, size in lease.visible.items():
            if place in capacity and place != HOST:
                capacity[place] += size
    return capacity


def _key(loaded: Loaded, problem: Problem) -> str:
    """Everything that the claim depends on: the definition, the file, the devices, the build."""
    devices = [(device.name, device.uuid, device.total_bytes) for device in problem.devices]
    words = repr((loaded.name, loaded.digest, identity(loaded.definition.model), devices, problem.gates))
    return hashlib.sha256(words.encode("utf-8", "surrogateescape")).hexdigest()


def _from_json(name: str, rows: object) -> Claimant | None:
    """A kept claim; None where none is kept, or what is kept is none."""
    try:
        places = tuple(
            {str(place): Claim(*map(int, sizes)) for place, sizes in row.items()}
            for row in rows  # type: ignore[attr-defined]
        )
    except (TypeError, ValueError, AttributeError):
        return None
    return Claimant(name, places)
