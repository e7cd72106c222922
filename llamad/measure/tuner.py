"""`llamad tune`, put together: candidates of a definition, each in an instance of its own, and what is better."""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from llamad import __version__
from llamad.clock import Clock, SystemClock
from llamad.config.loaded import Loaded
from llamad.config.rules import broken_rules
from llamad.errors import BusyError, ConfigError, UsageError
from llamad.gguf.facts import ModelFacts
from llamad.measure.bench import Room, lengths
from llamad.measure.candidates import KEYS, Goal, Machine, Question, Settings, axes
from llamad.measure.dropin import own_keys
from llamad.measure.instance import Instances, NotStarted, Serving
from llamad.measure.load import Load, Speeds
from llamad.measure.results import Figure, PlanInForce, Setting, TuneResult
from llamad.measure.runner import Here, Say
from llamad.measure.search import DUEL_ROUNDS, Measured, Search
from llamad.measure.statistics import beats
from llamad.measure.subject import engine_of, plan_of, request_tokens
from llamad.planning.refusal import NeverFits, NoRoomNow
from llamad.service.onlooker import Onlooker
from llamad.service.overview import leases
from llamad.service.planner import PlanMaker

WAIT_S = 10.0
"""How long an instance waits for memory: a service that needs it goes before a measurement."""
TIMEOUT_S = 1800.0


@dataclass(frozen=True)
class TuneOptions:
    """What the admin asked for."""

    goal: Goal = "throughput"
    may_change: Collection[str] = ()
    smaller_context: bool = False
    context_min_tokens: int = 0
    quantised_cache: bool = False
    repeats: int = 3
    timeout_s: float = TIMEOUT_S

    def __post_init__(self) -> None:
        unknown = [key for key in self.may_change if key not in KEYS]
        if unknown:
            raise UsageError(f"--may-change {unknown[0]}: no such key is tried", fix=f"one of {', '.join(KEYS)}")


@dataclass(frozen=True)
class Work:
    """The load of a goal, and what of it counts."""

    prompt_tokens: int
    generate_tokens: int
    all_slots: bool
    words: str
    speed: Callable[[Speeds], float]


def work_of(goal: Goal, room: Room) -> Work:
    """The load for a goal, as long as a request may be. Pure."""
    if goal == "prompt":
        prompt = lengths([2048], room, 1)[0]
        words = f"prompt tokens/s of one prompt of {prompt} tokens"
        return Work(prompt, 1, False, words, lambda one: one.prompt_tokens_s)
    generate = min(64, room.request_tokens // 4)
    prompt = lengths([256], room, generate)[0]
    who = "all slots busy" if goal == "throughput" else "one request at a time"
    words = f"generated tokens/s with {who}, prompts of {prompt} and answers of {generate} tokens, reading included"
    return Work(prompt, generate, goal == "throughput", words, lambda one: one.generated_tokens / one.wall_s)


@dataclass
class InstanceTrial:
    """Measures settings in an instance of their own, if its plan keeps what was promised."""

    here: Here
    facts: ModelFacts
    instances: Instances
    options: TuneOptions
    clock: Clock
    say: Say
    end_s: float
    """By the clock: what is measured then counts for nothing."""
    work: Work | None = None
    base: PlanInForce | None = None
    base_request_tokens: int = 0
    engine: str = ""
    longest_s: float = 0.0
    """What one start with its measurement took at most."""

    async def measure(self, settings: Settings, repeats: int) -> Measured:
        """The speed with these settings."""
        self.say(", ".join(f"{key} = {value}" for key, value in settings.items()) or "the settings in force")
        refused = self._plan_problem(settings) if settings else ""
        if refused:
            return Measured(refused=refused)
        keys = {str(key): value for key, value in settings.items()}
        begun_s = self.clock.monotonic()
        left_s = self.end_s - begun_s
        try:
            async with (
                asyncio.timeout(left_s),
                self.instances.serve(keys, lambda _text: None, left_s) as serving,
            ):
                found = await self._measure(serving, repeats)
        except TimeoutError:
            found = Measured(refused="out of time")
        except (NotStarted, BusyError) as error:
            if not settings:
                raise
            found = Measured(refused=error.why or error.what)
        self.longest_s = max(self.longest_s, self.clock.monotonic() - begun_s)
        return found

    async def _measure(self, serving: Serving, repeats: int) -> Measured:
        plan = plan_of(serving.status)
        request = request_tokens(serving.status, plan)
        if self.base is None:
            self.base, self.base_request_tokens = plan, request
            self.work = work_of(self.options.goal, Room(plan.context_tokens, plan.slots, request))
            self.engine = engine_of(serving.status)
        problem = self._context_problem(plan.context_tokens, request)
        if problem:
            return Measured(context_tokens=plan.context_tokens, refused=problem)
        work = self.work
        assert work is not None
        load = Load(serving.target, self.facts.n_vocab, random.Random())
        at_once = self._at_once(work, plan, request)
        values = []
        for number in range(repeats + 1):
            speeds = await load.round(work.prompt_tokens, work.generate_tokens, at_once)
            if number:  # the first round warms up
                values.append(work.speed(speeds))
        return Measured(values, plan.context_tokens)

    def _at_once(self, work: Work, plan: PlanInForce, request: int) -> int:
        if not work.all_slots:
            return 1
        room = Room(plan.context_tokens, plan.slots, request)
        counts = range(max(1, plan.slots), 1, -1)
        return next((n for n in counts if not room.problem(work.prompt_tokens, work.generate_tokens, n)), 1)

    def _context_problem(self, context_tokens: int, request: int) -> str:
        """Why a candidate's context is too small; "" where it is not."""
        base = self.base
        assert base is not None
        placement = self.here.loaded.definition.placement
        least = placement.context_min if self.options.smaller_context else base.context_tokens
        least = max(least, self.options.context_min_tokens)
        if context_tokens < least:
            return f"context {context_tokens}, it must not be below {least}"
        if request < self.base_request_tokens and not self.options.smaller_context:
            return f"a request could have {request} tokens of context, now {self.base_request_tokens}"
        return ""

    def _plan_problem(self, settings: Settings) -> str:
        """Why there is no such plan, by the formulas alone, without starting anything; "" where there may be one."""
        loaded = with_settings(self.here.loaded, settings)
        problems = [problem.what for problem in broken_rules(loaded.definition)]
        if problems:
            return problems[0]
        cache = self.here.paths.cache
        with tempfile.TemporaryDirectory(prefix="llamad-tune-") as scratch, contextlib.suppress(BusyError):
            onlooker = Onlooker(self.instances.name, leases())
            maker = PlanMaker(loaded, engine=Path(scratch), cache=cache, onlooker=onlooker)
            try:
                plan = maker.make(computed=True).plan
            except (ConfigError, NeverFits, NoRoomNow) as error:
                return error.what
            request = plan.context_tokens if plan.unified_cache else plan.context_tokens // plan.slots
            return self._context_problem(plan.context_tokens, request)
        return ""


def with_settings(loaded: Loaded, settings: Settings) -> Loaded:
    """The definition with these keys of `[placement]` written down. Pure."""
    values: dict[str, object] = {str(key): value for key, value in settings.items()}
    placement = replace(loaded.definition.placement, **values)  # type: ignore[arg-type]
    written = loaded.written | {f"placement.{key}" for key in settings}
    return replace(loaded, definition=replace(loaded.definition, placement=placement), written=written)


async def run_tune(here: Here, machine: Machine, options: TuneOptions, say: Say) -> TuneResult:
    """Search and compare. Changes nothing of the model's. Raises LlamadError."""
    facts = here.facts()
    clock = SystemClock()
    end_s = clock.monotonic() + options.timeout_s
    trial = InstanceTrial(here, facts, here.instances(WAIT_S), options, clock, say, end_s)
    base = await _base(trial, options)
    assert trial.base is not None
    assert trial.work is not None
    own = own_keys(here.loaded)

    def written(key: str) -> str:
        place = here.loaded.origins.get(("placement", key))
        return str(place) if place is not None and key not in own else ""

    found, untouched = axes(question_of(here.loaded, trial.base, machine, options), written, options.may_change)
    duel_s = 2 * DUEL_ROUNDS * trial.longest_s
    search = Search(trial, options.repeats, lambda: clock.monotonic() + trial.longest_s + duel_s < end_s)
    best = await search.climb(base, found)
    remarks = []
    if search.out_of_time:
        remarks.append(f"not everything was tried within {options.timeout_s:.0f} s (--timeout)")
    before: list[float] = []
    after: list[float] = []
    if best:
        say("once more, in turns with the settings in force")
        search.in_time = lambda: clock.monotonic() + 2 * trial.longest_s < end_s
        before, after = await search.duel(best)
    return TuneResult(
        llamad=__version__,
        name=here.loaded.name,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        model=facts.path,
        engine=trial.engine,
        goal=options.goal,
        workload=trial.work.words,
        base=in_words(trial.base, here.loaded),
        tried=tuple(search.tried),
        untouched=tuple(untouched),
        best=dict(best) if beats(before, after) else {},
        before=Figure.of(before) if before else None,
        after=Figure.of(after) if after else None,
        remarks=tuple(remarks),
    )


async def _base(trial: InstanceTrial, options: TuneOptions) -> Measured:
    """The speed of what is in force, which also shows what its plan is. Raises LlamadError where it cannot be had."""
    base = await trial.measure({}, options.repeats)
    if base.refused:
        raise BusyError(
            f"{trial.here.loaded.name} cannot be tuned as things are", why=base.refused,
            fix="`--stop` stops the unit meanwhile, `--smaller-context` allows less",
        )  # fmt: skip
    return base


def question_of(loaded: Loaded, plan: PlanInForce, machine: Machine, options: TuneOptions) -> Question:
    """What the candidates depend on. Pure."""
    placement = loaded.definition.placement

    def number(value: object) -> int | None:
        return value if isinstance(value, int) and value > 0 else None

    return Question(
        options.goal,
        plan,
        machine,
        number(placement.threads),
        number(placement.threads_batch),
        number(placement.batch),
        host_computes=not plan.devices or plan.layers < plan.layers_total,
        quantised_cache=options.quantised_cache,
    )


def in_words(plan: PlanInForce, loaded: Loaded) -> dict[str, str]:
    """The settings in force as a reader knows them. Pure."""
    placement = loaded.definition.placement
    values: Mapping[str, Setting | None] = {
        "context": plan.context_tokens,
        "parallel": plan.slots,
        "ubatch": plan.ubatch_tokens,
        "flash_attention": plan.flash_attention,
        "kv_cache": plan.cache_type_k or None,
        "threads": placement.threads,
        "threads_batch": placement.threads_batch,
    }
    return {key: str(value).lower() for key, value in values.items() if value is not None}


