"""What a death comes down to: its cause, and, where a device's memory was short, what failed exactly.

Imported when something died: a start has no time for the tables behind it.
"""

from __future__ import annotations

from dataclasses import replace

from llamad.errors import ExitCode, LlamadError
from llamad.planning.plan import Plan
from llamad.supervision.cause import Death, classify
from llamad.supervision.causes import Cause, Policy
from llamad.supervision.host import address_space_limited
from llamad.supervision.intake import Intake
from llamad.supervision.launch import Seams
from llamad.supervision.step_down import Failure, failure_of
from llamad.supervision.words import device_names, exit_words


def inquest(
    returncode: int,
    intake: Intake,
    plan: Plan,
    killed_because: str,
    condemned: LlamadError | None,
    *,
    warming: bool,
    kills: int,
) -> tuple[Cause, Failure | None]:
    """The cause of a death that we did not ask for. `condemned` is what we held against the child, if anything;
    `kills` how many the kernel's out-of-memory killer took.
    """
    death = Death(
        returncode,
        intake.evidence(),
        kills,
        intake.quiet,
        killed_because,
        warming=warming,
        free_bytes=min((free for _, free in intake.memory.values()), default=None),
        address_space_limited=address_space_limited(),
    )
    cause = classify(death)
    if cause.policy is Policy.STEP_DOWN:
        return cause, _failure(cause, death, plan, intake)
    if cause.name.startswith("device-lost"):
        why = f": {condemned.what}" if condemned and killed_because == "device-lost" else ""
        return replace(cause, text=f"{cause.text} ({device_names(plan)}){why}"), None
    if condemned and condemned.exit_code is not ExitCode.CRASH_LOOP:
        final = Policy.GIVE_UP
        return Cause(cause.name, str(condemned), condemned.fix, final, condemned.exit_code), None
    return cause, None


def told_inquest(
    seams: Seams,
    returncode: int,
    intake: Intake,
    plan: Plan,
    killed_because: str,
    condemned: LlamadError | None,
    *,
    warming: bool,
    kills: int,
) -> Cause:
    """The cause of a death as of `inquest`, told to the journal, to the streams that it cut, and to the planner where
    memory was short.
    """
    cause, failure = inquest(
        returncode, intake, plan, killed_because, condemned, warming=warming, kills=kills
    )
    seams.reporter.event(
        "child-exited", f"llama-server ended ({exit_words(returncode)}): {cause.text}",
        CAUSE=cause.text, FIX=cause.fix or "see its last lines", DEATH=cause.name,
    )  # fmt: skip
    seams.front.explain(cause.name, cause.text)
    if failure:
        seams.planner.failed(failure)
    return cause


def _failure(cause: Cause, death: Death, plan: Plan, intake: Intake) -> Failure:
    running = death.served or death.warming
    observed = intake.observer.observed()
    return failure_of(
        cause.name, cause.text, plan, observed, intake.memory, running=running, lines=death.lines
    )
