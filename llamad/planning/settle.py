"""A plan that llama-server itself confirms: solve, ask, correct, and again. Pure but for the two functions it is given.

Where the formulas are exact the first answer settles it. Where they are a bound the answer is smaller than planned,
and the next round uses what was found; where they fall short the next round takes less. What is returned last was
always confirmed as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from llamad.planning.confirm import Asked, Refit, confirmed, corrections_from
from llamad.planning.plan import NextContext, Plan
from llamad.planning.refusal import NeverFits, NoRoomNow, NoSettlement
from llamad.units import MIB

Solve = Callable[[Mapping[str, int]], Plan]
"""The plan with these corrections (bytes by device name, or `host`)."""
Ask = Callable[[Plan], Asked | None]
"""llama-server's own figures for a plan; None where it cannot tell."""

ROUNDS = 5
_WORTH_BYTES = 4 * MIB
"""Less than this is rounding: a breakdown has whole MiB for each part."""


def settled(solve: Solve, ask: Ask, *, grows: bool = True, rounds: int = ROUNDS) -> Plan:
    """The best plan that was confirmed; the computed one where llama-server cannot tell.

    `grows`: the context may take what the formulas had counted too much.
    Raises what `solve` raises in the first round, NoSettlement if no round was confirmed.
    """
    best: Plan | None = None
    corrections: dict[str, int] = {}
    refit: Refit | None = None
    for number in range(rounds):
        try:
            plan = solve(corrections)
        except (NoRoomNow, NeverFits):
            if number == 0 or best is None:
                raise
            return best
        if best is not None and plan.context_tokens <= best.context_tokens:
            return best
        asked = ask(plan)
        if asked is None:
            return best or plan
        answer = confirmed(plan, asked, corrections=corrections)
        if isinstance(answer, Refit):
            refit = answer
            corrections = dict(answer.corrections)
            continue
        best = answer
        if not grows or not _worth_another(plan, answer):
            return best
        corrections = corrections_from(plan, answer, corrections)
    if best is None:
        raise NoSettlement(
            f"no plan for {plan.model} that llama-server confirms",
            why=f"after {rounds} tries {refit}",
            fix="lower `context` in [placement], or set a larger `vram_margin`",
        )
    return best


def _worth_another(plan: Plan, answer: Plan) -> bool:
    """Whether less was taken than planned, by enough for a hundredth more context."""
    if plan.next_context is None:
        return False
    spare = [
        old.parts.held_bytes - new.parts.held_bytes
        for old, new in zip(plan.devices, answer.devices, strict=True)
    ] or [plan.host.held_bytes - answer.host.held_bytes]
    return min(spare) > max(_WORTH_BYTES, _token_bytes(plan, plan.next_context) * plan.context_tokens / 100)


def _token_bytes(plan: Plan, following: NextContext) -> float:
    """What a token more costs where it is dearest: the step to the next context, with what is left unused now."""
    unused = next(
        (one.budget_bytes - one.parts.total_bytes for one in plan.devices if one.name == following.device), 0
    )
    return (following.missing_bytes + unused) / (following.context_tokens - plan.context_tokens)
