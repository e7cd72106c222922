"""What each of several models may take of devices that they share, whoever starts first. Pure.

`context = "auto"` takes as much as fits. So that the first to start leaves room for the others, and that any order of
starts gives the same contexts, every start shares out the devices among all that are meant to run, and takes its own
share. Nothing is moved between processes: each computes the same from the same definitions.

Every model gets what its smallest context needs. What is left goes to all alike, until they have what their largest
context needs. A model whose smallest plan needs several devices claims of each of them; the others claim of one: in
the order of names, the device that has most left then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Claim(NamedTuple):
    """What one model needs of one device, in bytes: with its smallest and with its largest context."""

    floor_bytes: int
    want_bytes: int


Claims = Mapping[str, Claim]
"""By device."""


class Claimant(NamedTuple):
    """One model that is meant to run: where it may go, the best place first.

    Each place is a set of devices with what is claimed of each. A model that fits nowhere has none, and gets nothing.
    """

    name: str
    places: tuple[Claims, ...]


def shares(capacity: Mapping[str, int], claimants: Sequence[Claimant]) -> dict[str, dict[str, int]]:
    """Bytes by claimant and device. `capacity`: what all of them together may take of each device."""
    settled = _settled(capacity, claimants)
    found: dict[str, dict[str, int]] = {claimant.name: {} for claimant in claimants}
    for device, size in capacity.items():
        here = {name: claims[device] for name, claims in settled.items() if device in claims}
        for name, share in _water(size, here).items():
            found[name][device] = share
    return found


def _settled(capacity: Mapping[str, int], claimants: Sequence[Claimant]) -> dict[str, Claims]:
    """Where each claimant goes: the place whose fullest device has most left beside the floors of those before it."""
    left = dict(capacity)
    settled: dict[str, Claims] = {}
    for claimant in sorted(claimants, key=lambda one: one.name):
        fewest = min((len(claims) for claims in claimant.places), default=0)
        places = [claims for claims in claimant.places if len(claims) == fewest and set(claims) <= set(left)]
        if not places:
            continue
        # max keeps the first of equals, which is the better device.
        claims = max(
            places, key=lambda place: min(left[d] - claim.floor_bytes for d, claim in place.items())
        )
        for device, claim in claims.items():
            left[device] -= claim.floor_bytes
        settled[claimant.name] = claims
    return settled


def _water(size: int, claims: Claims) -> dict[str, int]:
    """Floors, and the rest like water in vessels of different heights: level, none above what it wants."""
    share = {name: claim.floor_bytes for name, claim in claims.items()}
    left = size - sum(share.values())
    # Those that want least more are filled first, so that each round's level is final for them.
    order = sorted(claims, key=lambda name: (claims[name].want_bytes - claims[name].floor_bytes, name))
    for place, name in enumerate(order):
        if left <= 0:
            break
        more = min(max(0, claims[name].want_bytes - claims[name].floor_bytes), left // (len(order) - place))
        share[name] += more
        left -= more
    return share
