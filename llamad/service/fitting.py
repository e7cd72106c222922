"""What a model file would get on this machine: the context of a plan made now, by the formulas alone."""

from __future__ import annotations

from llamad.config.definition import Placement
from llamad.errors import LlamadError
from llamad.frozen import dataclass
from llamad.gguf.read import read_facts
from llamad.models.recommend import Machine
from llamad.planning.plan import BuildGates
from llamad.planning.solve import plan
from llamad.service.onlooker import Onlooker


@dataclass(frozen=True)
class Fit:
    """`context_tokens` is 0 where it does not fit; `words` says where it is, or what it lacks."""

    context_tokens: int
    words: str


def fit_of(path: str, machine: Machine, gates: BuildGates, onlooker: Onlooker | None) -> Fit:
    """On the devices; where the machine has none, on the CPU. Raises nothing for a file that cannot be planned."""
    reserved = onlooker.reserved() if onlooker is not None else {}
    placement = Placement(allow_cpu=not machine.devices)
    try:
        made = plan(read_facts(path), machine.devices, machine.host, placement, frozenset(), gates, reserved=reserved)
    except LlamadError as error:
        return Fit(0, error.why or error.what)
    return Fit(made.context_tokens, ", ".join(device.name for device in made.devices) or "CPU")
