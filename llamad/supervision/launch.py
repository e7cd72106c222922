"""What the supervisor starts, and the seams through which it acts on the world."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from llamad.config.definition import Definition
from llamad.config.loaded import Loaded
from llamad.engine.build import Mode
from llamad.frozen import dataclass
from llamad.planning.plan import Plan

if TYPE_CHECKING:
    from llamad.engine.log import Observed  # its patterns are for who reads a log
    from llamad.supervision.growth import Offer
    from llamad.supervision.step_down import Failure


@dataclass(frozen=True)
class Launch:
    """One llama-server to start: the plan, and the exact command that carries it out."""

    loaded: Loaded
    plan: Plan
    argv: tuple[str, ...]
    env: Mapping[str, str]
    socket_path: str
    vocabulary_tokens: int
    mode: Mode
    """What the warm-up asks for."""
    engine: str
    """The version of the build as it prints it."""
    file_bytes: int = 0
    model_key: str = ""
    """Names everything that is loaded: the model's file and what is there beside it."""
    files_key: str = ""
    """Which files those were; "" where it is not known."""
    learned_key: str = ""
    """What a lesson from it is about: model, engine, drivers and flags."""
    stepped_from: int = 0
    """The context of the plan before, where lack of memory made this one smaller; 0 where it did not."""
    grown_from: int = 0
    """The context of the plan before, where this one is larger because memory came back; 0 where it is not."""
    engine_key: str = ""
    """The identity of the engine's files that were there when this was planned."""
    engine_words: str = ""
    """The build in a word: `b11669`."""

    @property
    def definition(self) -> Definition:
        """The definition that this launch was planned from."""
        return self.loaded.definition

    @property
    def warm_up_tokens(self) -> int:
        """One micro-batch; 16 where a layer runs on the CPU, which needs no proof of kernels but seconds."""
        plan = self.plan
        tokens = plan.ubatch_tokens if plan.devices and plan.layers >= plan.layers_total else 16
        return max(1, min(tokens, plan.context_tokens - 16))


class Planner(Protocol):
    """Makes launches."""

    async def plan(
        self, loaded: Loaded, previous: Launch | None, most_tokens: int | None = None
    ) -> Launch:
        """A launch for this definition, for the memory that is free now (or when `previous`'s is back).

        `previous` is the launch whose child just ended; None where there was none. `most_tokens`: the context must
        not be larger; None: as much as there is now, also where `previous` had less, whose plan comes again if a
        larger one cannot be had after all. Raises LlamadError; MustWait where others have the memory or come first.
        """
        ...

    async def turn(self) -> None:
        """After MustWait: return when it is worth planning again. Cancel it to leave the queue."""
        ...

    def spawned(self, pid: int, observed: Callable[[], Observed]) -> None:
        """The launch that was planned last runs; `observed` has what it says of its buffers."""
        ...

    def settled(self, pid: int) -> None:
        """It is ready: all its memory is taken."""
        ...

    def ended(self) -> None:
        """It is gone. Its memory is kept for its successor until the next plan, or the end of the service."""
        ...

    async def beside(self, loaded: Loaded, running: Launch) -> Launch | None:
        """A launch of this definition, as it would be without `running`, whose memory is there beside `running`'s and
        is promised to it; None where it is not. Raises LlamadError.
        """
        ...

    def spawned_beside(self, pid: int, observed: Callable[[], Observed]) -> None:
        """The launch of `beside` runs."""
        ...

    def adopted(self, pid: int) -> None:
        """It is ready and has taken over; `running` still has its own memory."""
        ...

    def retired(self, pid: int) -> None:
        """`running` is gone. `pid`: of the child that took over, 0 if it has ended."""
        ...

    def dismissed(self) -> None:
        """The launch of `beside` is gone, or will not be started."""
        ...

    def failed(self, failure: Failure) -> None:
        """The child of the launch that was planned last ended for lack of memory: the next plan must be smaller."""
        ...

    def proved(self, launch: Launch, observed: Observed) -> None:
        """This launch is ready, and these are its buffers: remember them."""
        ...

    async def free_bytes(self, launch: Launch) -> Mapping[str, int]:
        """What the driver shows free now, by the plan's devices; {} where it does not tell within milliseconds."""
        ...

    async def look(self, launch: Launch, *, used: bool, grows: bool) -> Offer | None:
        """Look at the devices while this launch serves: note what its child holds now, `used` if it has answered
        somebody; and, where it `grows`, say what a plan made now would give. None where that cannot be told without
        taking memory, or others wait for theirs.
        """
        ...

    async def check(self, loaded: Loaded, running: Launch) -> None:
        """Raise LlamadError if no plan would be possible once `running`'s memory is back."""
        ...


class Engine(Protocol):
    """A running llama-server's HTTP side."""

    async def healthy(self, socket_path: str) -> bool:
        """Whether /health says 200 now; False for anything else, never an error."""
        ...

    async def figures(self, socket_path: str) -> str:
        """What the slots have done so far, as a text that changes when they do more; "" where none is had."""
        ...

    async def save_prompts(self, launch: Launch) -> None:
        """Have its idle slots' prompt caches kept for its successor, as far as there is time and room."""
        ...

    async def restore_prompts(self, launch: Launch) -> int:
        """Give it what was kept, where that fits it; how many tokens need not be read again. Nothing is kept then."""
        ...

    async def settle(self, socket_path: str, deadline_s: float) -> None:
        """Return when no slot works any more, or after the deadline: a TERM in the middle of work may hang."""
        ...

    async def warm_up(self, launch: Launch, deadline_s: float) -> float:
        """Seconds that one micro-batch and one token took. Raises LlamadError where no finite logits came."""
        ...


class Front(Protocol):
    """The relay in front of the child."""

    def hold(self, reason: str) -> None:
        """New requests wait from now on."""
        ...

    def open(self, launch: Launch) -> None:
        """Requests go to this child."""
        ...

    def quiet_s(self) -> float:
        """Seconds since the last request was answered; 0 while there is one, with the child or held."""
        ...

    def at_work(self) -> int:
        """Requests that the child they go to now has whole, and whose clients take what it answers."""
        ...

    def progress_count(self) -> int:
        """Grows with each token or byte of a body that the child answers."""
        ...

    def refuse(self, message: str) -> None:
        """Requests are answered 503 with this text."""
        ...

    def explain(self, cause: str, message: str) -> None:
        """Why the child died that requests are or were with: the streams that it cut end with it."""
        ...

    async def farewell(self, deadline_s: float) -> None:
        """Answer what was accepted, cut what is left at the deadline, close every client's connection. New
        connections stay in the sockets' queues, for the next llamad."""
        ...

    async def drain(self, deadline_s: float, *, former: bool = False) -> int:
        """Return when no request is in flight or the deadline passed: how many still are. `former`: of those that
        are with a child before the one that requests go to now.
        """
        ...

    def cut(self, cause: str, message: str, *, former: bool = False) -> None:
        """End every request in flight with an error that names the cause. `former`: see `drain`."""
        ...

    async def close_upstreams(self, *, former: bool = False) -> None:
        """Close the connections to the child; idle ones too. `former`: see `drain`."""
        ...


class Reporter(Protocol):
    """Journal, systemd and the public status."""

    def event(self, name: str, message: str, **fields: str) -> None:
        """One record of the catalog's event `name`; fields become LLAMAD_*."""
        ...

    def state(self, state: str, text: str) -> None:
        """The one line that `systemctl status` shows, and the state for `llamad status`."""
        ...

    def serving(self, launch: Launch) -> None:
        """The model is ready (again)."""
        ...

    def stable(self) -> None:
        """The model has been ready for long: earlier failures are forgotten."""
        ...

    def extend(self, duration_s: float) -> None:
        """Progress was made: systemd must wait that long again."""
        ...

    def child_line(self, level: str, text: str, pid: int) -> None:
        """Pass a line of llama-server on; never blocks."""
        ...


@dataclass(frozen=True)
class Seams:
    """Everything the supervisor acts through."""

    planner: Planner
    engine: Engine
    front: Front
    reporter: Reporter


def tail(lines: Sequence[str], count: int = 20) -> str:
    """The last lines as one text."""
    return "\n".join(list(lines)[-count:])
