"""The unit's side of a handover: the router serves its model, and is to let go of it."""

from __future__ import annotations

from collections.abc import Callable

from llamad.config.definition import Limits
from llamad.ledger.handover import is_routers, take_over
from llamad.ledger.ledger import Ledger
from llamad.service.notify import Notifier
from llamad.supervision.child import STOP_KILL_S

SLACK_S = 15.0


def take_from_router(ledger: Ledger, notifier: Notifier, limits: Callable[[], Limits]) -> bool:
    """Have the router hand the model over; False where it is not the router that serves it. Blocking.

    It finishes the requests that it has, for `drain_s` at most, and stops its llama-server; new requests wait with
    it for us. Raises BusyError where it takes longer than that.
    """
    if not is_routers(ledger):
        return False
    bounds = limits()
    wait_s = bounds.drain_s + 2 * bounds.stop_s + STOP_KILL_S + SLACK_S

    def told() -> None:
        text = f"the router serves {ledger.name} and hands it over: its requests are finished first"
        notifier.send(EXTEND_TIMEOUT_USEC=int((wait_s + SLACK_S) * 1e6), STATUS=text)

    take_over(ledger, wait_s, told)
    return True
