"""A look at the devices once a minute while a model serves: what it holds, and whether its context should grow."""

from __future__ import annotations

from collections.abc import Callable

from llamad.clock import Clock
from llamad.planning.plan import Plan
from llamad.supervision import words
from llamad.supervision.growth import LOOK_S, QUIET_S, Growth, Offer, can_grow
from llamad.supervision.launch import Front, Launch, Reporter, Seams

LULL_LOOK_S = 5.0


async def watch_memory(
    launch: Launch, seams: Seams, clock: Clock, growth: Growth, jitter: Callable[[], float]
) -> Offer | None:
    """Return the larger plan to take, as soon as it is due and nobody waits for an answer.

    None where there is nothing to look for: no device, and a context that cannot grow.
    """
    plan = launch.plan
    grows = can_grow(launch.definition.placement.context, plan.context_tokens, plan.context_train_tokens)
    if not grows and not plan.devices:
        return None
    served = seams.front.progress_count()
    while True:
        await clock.sleep(LOOK_S * (0.9 + 0.2 * jitter()))
        used = seams.front.progress_count() > served
        offer = await seams.planner.look(launch, used=used, grows=grows)
        if growth.sees(offer, clock.monotonic()) and await _comes_to_rest(seams.front, clock):
            return offer


def tell_growth(plan: Plan, offer: Offer, reporter: Reporter) -> str:
    """The record of a growth that begins; what the status says meanwhile."""
    why = words.offered_text(plan, offer)
    text = f"growing the context from {plan.context_tokens} to {offer.context_tokens} tokens: {why}"
    reporter.event(
        "context-grows", f"Memory came back: {text}", CAUSE=why, CONTEXT=str(offer.context_tokens),
        DEVICE=words.device_names(plan), FORMER=str(plan.context_tokens),
    )  # fmt: skip
    return text


async def _comes_to_rest(front: Front, clock: Clock) -> bool:
    """Whether there is a pause between requests before the next look is due."""
    for _ in range(int(LOOK_S / LULL_LOOK_S)):
        if front.quiet_s() >= QUIET_S:
            return True
        await clock.sleep(LULL_LOOK_S)
    return False
