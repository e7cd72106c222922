"""Which models of the catalogue would be worth having on a machine, best first, and why. Pure.

What fits, and with which context, is the planner's answer to the model's facts: the very plan that `llamad plan` makes
of the model's file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import sqrt

from llamad.config.definition import Placement
from llamad.errors import LlamadError
from llamad.frozen import dataclass
from llamad.gguf.facts import ModelFacts
from llamad.hardware.bandwidth import Bandwidth
from llamad.hardware.device import Device, HostMemory
from llamad.models.catalogue import Shape
from llamad.models.speed import HOST_SHARE, tokens_s
from llamad.planning.plan import Plan
from llamad.units import format_bytes

QUICK_TOKENS_S = 8.0
"""About as fast as one reads. Slower models come last."""
COMFORT_TOKENS = 32768
LEAST_TOKENS = 8192
ENOUGH_TOKENS = 16384
"""Fewer than four bits a weight cost more than a longer context is worth, once there is so much."""
_BASE_YEAR = 2024
_OFFERED = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "MXFP4")

_SMALLEST = ("IQ4_XS", "Q3_K_M", "MXFP4")
"""Planned even if they cannot be quick: a slow model is better than none."""

MakePlan = Callable[[ModelFacts], Plan]


@dataclass(frozen=True)
class Machine:
    """What the models are to run on. `speeds` by the devices' names."""

    devices: tuple[Device, ...]
    host: HostMemory
    speeds: Mapping[str, Bandwidth]
    host_speed: Bandwidth
    allow_cpu: bool

    def room_bytes(self) -> int:
        """More than any model may take."""
        on_devices = sum(device.free_bytes for device in self.devices)
        return on_devices + (self.host.available_bytes if self.allow_cpu or not self.devices else 0)


@dataclass(frozen=True)
class Advice:
    """One model, in the quantisation that suits the machine best. No plan: it does not fit in any."""

    shape: Shape
    recipe: str
    weights_bytes: int
    plan: Plan | None = None
    tokens_s: float = 0.0
    why: str = ""

    @property
    def fits(self) -> bool:
        """Whether there is a plan."""
        return self.plan is not None

    @property
    def quick(self) -> bool:
        """Whether it answers as fast as one reads."""
        return self.tokens_s >= QUICK_TOKENS_S

    def content(self) -> dict[str, object]:
        """For `--json`."""
        shape, plan = self.shape, self.plan
        return {
            "name": shape.name,
            "title": shape.title,
            "architecture": shape.architecture,
            "released": shape.released,
            "parameters": shape.parameters,
            "active_parameters": round(shape.active_parameters),
            "quantisation": self.recipe,
            "weights_bytes": self.weights_bytes,
            "fits": self.fits,
            "context_tokens": plan.context_tokens if plan else 0,
            "context_train_tokens": shape.context_tokens,
            "tokens_s": round(self.tokens_s, 1),
            "devices": [device.name for device in plan.devices] if plan else [],
            "host_experts": plan.host_experts if plan else 0,
            "layers": plan.layers if plan else 0,
            "why": self.why,
            "pull": f"{shape.hub}:{self.recipe}",
        }


def recommend(shapes: Sequence[Shape], machine: Machine, make_plan: MakePlan) -> list[Advice]:
    """Advice on every shape, best first; those that do not fit last."""
    return sorted((advise(shape, machine, make_plan) for shape in shapes), key=_order)


def advise(shape: Shape, machine: Machine, make_plan: MakePlan) -> Advice:
    """The best quantisation of one model here: the largest that leaves a comfortable context and answers as fast as one
    reads; else the one with the most context.
    """
    tried: list[Advice] = []
    refused: list[str] = []
    room = machine.room_bytes()
    comfort = min(COMFORT_TOKENS, shape.context_tokens)
    recipes = [recipe for recipe in _OFFERED if recipe in shape.recipes]
    for recipe in recipes:
        if recipe == "Q3_K_M" and any(_context(one) >= min(ENOUGH_TOKENS, comfort) for one in tried):
            break
        if shape.least_bytes(recipe) > room:
            refused.append(recipe)
            continue
        if recipe not in _SMALLEST and not _may_be_quick(shape, recipe, machine):
            continue
        found = _tried(shape, recipe, machine, make_plan)
        if found.plan is None:
            refused.append(recipe)
        elif found.plan.context_tokens >= comfort and found.quick:
            return _explained(found, tried, refused)
        else:
            tried.append(found)
    if not tried:
        last = recipes[-1]
        least = shape.least_bytes(last)
        why = f"in {last} its weights alone are {format_bytes(least)}"
        return Advice(shape, last, least, why=why)
    best = max(tried, key=lambda one: (one.quick, min(_context(one), comfort), _place(one)))
    return _explained(best, [one for one in tried if one is not best], refused)


def _may_be_quick(shape: Shape, recipe: str, machine: Machine) -> bool:
    """Whether no bound speaks against it: what has no room on the devices is read from the host's memory."""
    beyond = max(0, shape.least_bytes(recipe) - sum(device.free_bytes for device in machine.devices))
    return beyond * shape.least_share / (HOST_SHARE * machine.host_speed.bytes_s) < 1 / QUICK_TOKENS_S


def effective_size(shape: Shape) -> float:
    """How much may be expected of a model: its size, a mixture's between all and the active parameters (the geometric
    mean), doubled for each year that it is newer. A rule of thumb, and the only one here.
    """
    year, month = (int(part) for part in shape.released.split("-"))
    newer: float = 2.0 ** (year - _BASE_YEAR + (month - 1) / 12)
    return sqrt(shape.parameters * shape.active_parameters) * newer


def _tried(shape: Shape, recipe: str, machine: Machine, make_plan: MakePlan) -> Advice:
    facts = shape.facts(recipe)
    try:
        plan = make_plan(facts)
    except LlamadError as error:
        return Advice(shape, recipe, facts.file_bytes, why=error.why or error.what)
    speeds = {name: speed.bytes_s for name, speed in machine.speeds.items()}
    rate = tokens_s(plan, facts, shape.active_bytes(facts.tensors), speeds, machine.host_speed.bytes_s)
    return Advice(shape, recipe, facts.file_bytes, plan, rate)


def _explained(best: Advice, others: Sequence[Advice], refused: Sequence[str]) -> Advice:
    """With the reasons for this quantisation: what stands against the next larger one, and where the model is."""
    plan = best.plan
    assert plan is not None
    words = [_where(plan)]
    larger = [one for one in others if _place(one) < _place(best)]
    if larger:
        slow = "" if larger[-1].quick else f", at about {_rate(larger[-1].tokens_s)} tokens/s"
        words.append(f"{larger[-1].recipe} would leave {_context(larger[-1])}{slow}")
    elif refused and _OFFERED.index(refused[-1]) < _place(best):
        words.append(f"{refused[-1]} does not fit")
    if not best.quick:
        words.append("slow")
    return Advice(best.shape, best.recipe, best.weights_bytes, plan, best.tokens_s, "; ".join(words))


def _where(plan: Plan) -> str:
    if not plan.devices:
        return "on the CPU"
    names = " and ".join(device.name for device in plan.devices)
    if plan.host_experts:
        return f"on {names}, the experts of {plan.host_experts} layers on the CPU"
    if plan.layers < plan.layers_total:
        return f"{plan.layers} of {plan.layers_total} layers on {names}"
    return f"whole on {names}"


def _context(advice: Advice) -> int:
    return advice.plan.context_tokens if advice.plan else 0


def _place(advice: Advice) -> int:
    return _OFFERED.index(advice.recipe)


def _rate(tokens_s: float) -> str:
    """Two places: it is an estimate."""
    if tokens_s >= 100:
        return f"{round(tokens_s / 10) * 10}"
    return f"{tokens_s:.0f}" if tokens_s >= 10 else f"{tokens_s:.1f}"


def rate_text(advice: Advice) -> str:
    """`about 38`."""
    return f"about {_rate(advice.tokens_s)}"


def _order(advice: Advice) -> tuple[bool, bool, bool, float]:
    enough = _context(advice) >= min(LEAST_TOKENS, advice.shape.context_tokens)
    return not advice.fits, not advice.quick, not enough, -effective_size(advice.shape)


def placement_of(machine: Machine) -> Placement:
    """What the planner is asked with."""
    return Placement(allow_cpu=machine.allow_cpu or not machine.devices)
