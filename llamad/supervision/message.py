"""What is posted to the loop that owns a model."""

from __future__ import annotations

from llamad.errors import LlamadError
from llamad.frozen import dataclass
from llamad.supervision.causes import Cause
from llamad.supervision.growth import Offer
from llamad.supervision.launch import Launch
from llamad.supervision.machine import Event


@dataclass(frozen=True)
class Message:
    """An event of the table, and the facts that come with it."""

    event: Event
    epoch: int | None = None
    """The state's epoch that posted it; None for what comes from outside and always counts."""
    launch: Launch | None = None
    error: LlamadError | None = None
    cause: Cause | None = None
    offer: Offer | None = None
