"""Plans held against llama-server's own first breakdown: cases, and what each of them shows.

The plan is made in process, by its formulas alone; what it is compared with shares no code with llamad.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from llamad.config.definition import Definition, Placement
from llamad.engine.build import Capabilities
from llamad.engine.flags import server_args
from llamad.gguf.facts import ModelFacts
from llamad.hardware.device import Device, HostMemory
from llamad.planning.plan import Parts, Plan
from llamad.planning.solve import plan
from llamad.units import GIB, MIB
from tests.support.breakdown import Breakdown, Row
from tests.support.card import ask_on_cards

CARD_MIB = 4_000_000
CARDS: Mapping[str, int] = {"CUDA0": CARD_MIB, "CUDA1": CARD_MIB}
HOST = HostMemory(total_bytes=4000 * GIB, available_bytes=4000 * GIB)
PLACES = ("full", "partial", "experts")


@dataclass(frozen=True)
class Case:
    """One question: which model, and which promises."""

    model: str
    context: int
    cache: str
    devices: int
    place: str
    """full | partial (half of the layers) | experts (those of all layers on the CPU)"""
    ubatch: int = 512
    parallel: int = 0
    """0 = auto"""

    def __str__(self) -> str:
        more = f" u{self.ubatch}" * (self.ubatch != 512) + f" np{self.parallel}" * (self.parallel > 0)
        return f"{self.model} {self.context} {self.cache} {self.devices}x {self.place}{more}"


@dataclass(frozen=True)
class Outcome:
    """What a case showed. Errors are planned less real, in MiB, the real figure rounded down to whole MiB."""

    case: Case
    architecture: str
    proved: bool
    device_rows: tuple[tuple[Parts, Row], ...]
    host: tuple[Parts, Row]
    exact_mib: Mapping[str, float]

    def error_mib(self, part: str) -> float:
        """The largest error of `weights` or `context` beyond what the rounding down explains."""
        errors = [0.0]
        for planned, real in self.device_rows:
            planned_mib = getattr(planned, f"{part}_bytes") / MIB
            low = getattr(real, f"{part}_mib")
            errors.append(low - planned_mib if planned_mib < low else planned_mib - low - 1)
        return max(errors)

    def totals_mib(self) -> list[tuple[float, float]]:
        """Planned and real sum of each device."""
        return [
            (planned.buffers_bytes / MIB, real.weights_mib + real.context_mib + real.compute_mib + 1.0)
            for planned, real in self.device_rows
        ]


def cases(
    models: Iterable[tuple[str, ModelFacts]],
    contexts: Iterable[int],
    caches: Iterable[str],
    devices: Iterable[int] = (1, 2),
    places: Iterable[str] = PLACES,
) -> Iterator[Case]:
    """Every model at every context, cache type, number of devices, and place that it can have."""
    for (name, facts), context, cache, count, place in product(models, contexts, caches, devices, places):
        if (place != "experts" or facts.n_expert) and context <= max(facts.n_ctx_train, 131072):
            yield Case(name, context, cache, count, place)


def planned(facts: ModelFacts, case: Case, caps: Capabilities) -> tuple[Plan, list[str]]:
    """The plan that keeps the case's promises, and its arguments. Raises LlamadError where they cannot be kept."""
    shares = (1.0,) * case.devices if case.devices > 1 else ()
    placement = Placement(
        context=case.context,
        kv_cache=case.cache,  # type: ignore[arg-type]
        parallel=case.parallel or "auto",
        ubatch=case.ubatch,
        tensor_split=shares,
        gpu_layers=facts.n_layers // 2 if case.place == "partial" else "auto",
        cpu_moe=case.place == "experts",
        allow_cpu=case.place != "full",
    )
    devices = [Device(name, size * MIB, size * MIB) for name, size in list(CARDS.items())[: case.devices]]
    facts = replace(facts, n_ctx_train=max(facts.n_ctx_train, case.context))
    found = plan(facts, devices, HOST, placement, frozenset(), caps.gates)
    definition = Definition(model=facts.path, placement=placement)
    return found, server_args(found, definition, caps, socket_path="/nowhere.sock", alias_names=())


def outcome(facts: ModelFacts, case: Case, caps: Capabilities, library: Path) -> Outcome:
    """Plan and ask. Raises LlamadError for a case that is refused, RuntimeError where llama-server gives no answer."""
    found, args = planned(facts, case, caps)
    real: Breakdown = ask_on_cards(library, CARDS, args, caps.path)
    return Outcome(
        case=case,
        architecture=facts.architecture,
        proved=found.exact,
        device_rows=tuple((device.parts, real.devices[device.name]) for device in found.devices),
        host=(found.host, real.host),
        exact_mib=real.compute_exact_mib,
    )
