"""Waiting in the ledger's queue, on the loop: woken by the ledger's own changes, with a slow poll behind them."""

from __future__ import annotations

import asyncio

from llamad.errors import LlamadError
from llamad.ledger.booking import Booking
from llamad.ledger.wake import Watch
from llamad.threads import in_thread

POLL_S = 0.5
RETRY_S = 5.0
"""Memory that other programs give back is in no ledger: so often a plan is tried without any sign."""
SETTLE_S = 0.02
"""The end of a process is told a moment before its locks are free."""


async def wait_for_change(booking: Booking) -> None:
    """Return when the ledger has changed since the last MustWait, or when it is time to try without a sign."""
    loop = asyncio.get_running_loop()
    changed = asyncio.Event()
    watch = Watch(booking.ledger.folder)

    def look() -> None:
        if watch.read():
            changed.set()

    if watch.fd >= 0:
        loop.add_reader(watch.fd, look)
    try:
        end_s = booking.ledger.now() + _patience_s(booking)
        while not await _has_changed(booking) and booking.ledger.now() < end_s:
            await _either(changed, min(POLL_S, max(0.0, end_s - booking.ledger.now())))
            changed.clear()
    finally:
        if watch.fd >= 0:
            loop.remove_reader(watch.fd)
        watch.close()


def _patience_s(booking: Booking) -> float:
    if booking.bytes_may_come:
        return POLL_S
    left_s = booking.until_s - booking.ledger.now() if booking.until_s else RETRY_S
    return max(POLL_S / 5, min(RETRY_S, left_s))


async def _has_changed(booking: Booking) -> bool:
    try:
        return await in_thread(booking.look_for_change)
    except LlamadError:
        return False  # held by somebody for too long: the next plan says so if it stays like that


async def _either(event: asyncio.Event, timeout_s: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), timeout_s)
    except TimeoutError:
        return
    await asyncio.sleep(SETTLE_S)
