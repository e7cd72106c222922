"""`llamad bench`, put together: the service that runs or an instance of its own, the load, what the memory allows, and
the comparison with the last time.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from llamad import __version__
from llamad.clock import SystemClock
from llamad.config.loaded import Loaded
from llamad.errors import UsageError
from llamad.gguf.facts import ModelFacts
from llamad.hardware.bandwidth import driver_bandwidths, measure_host
from llamad.measure import bench, history
from llamad.measure.bandwidth import bytes_a_token, expected
from llamad.measure.bench import Bench, Room, Workload
from llamad.measure.instance import Instances
from llamad.measure.load import Load
from llamad.measure.results import BenchResult, Expected, PlanInForce, Point
from llamad.measure.statistics import rating
from llamad.measure.stopped import ENDS, heard
from llamad.measure.subject import (
    DeviceShare,
    Service,
    device_shares,
    engine_of,
    find_service,
    plan_of,
    request_tokens,
)
from llamad.measure.traffic import Traffic
from llamad.service.facts import CACHE_NAME, FactsReader, located_facts
from llamad.service.paths import Paths

Say = Callable[[str], None]
Result = TypeVar("Result")


@dataclass(frozen=True)
class BenchOptions:
    """What the admin asked for."""

    prompts_tokens: Sequence[int] = bench.PROMPTS_TOKENS
    at_once: Sequence[int] = ()
    """Empty: 1, and as many as there are slots."""
    generate_tokens: int = bench.GENERATE_TOKENS
    repeats: int = bench.REPEATS
    timeout_s: float = bench.TIMEOUT_S
    key: str | None = None


@dataclass(frozen=True)
class Here:
    """Where a model's definition, caches and results are."""

    loaded: Loaded
    root: Path
    command: Sequence[str]
    environ: Mapping[str, str]

    @property
    def paths(self) -> Paths:
        """The model's folders, as this user has them."""
        return Paths.of(self.loaded.name, dict(self.environ))

    def facts(self) -> ModelFacts:
        """What the model's header says. Raises LlamadError; UsageError for a model that generates nothing."""
        server = self.loaded.definition.server
        if server.embeddings or server.reranking:
            what = "embeddings" if server.embeddings else "ranks"
            raise UsageError(f"{self.loaded.name} gives {what}, no text",
                             fix="measure a model that generates tokens")  # fmt: skip
        return located_facts(self.loaded, FactsReader(self.paths.cache / CACHE_NAME))

    def instances(self, wait_s: float) -> Instances:
        """Instances of this model for measurements."""
        cache = self.paths.cache / "measure"
        return Instances(self.loaded, self.root, self.command, self.environ, cache=cache, wait_s=wait_s)


async def run_bench(here: Here, options: BenchOptions, say: Say) -> BenchResult:
    """Measure, compare with the last time, and keep the result. Raises LlamadError."""
    facts = here.facts()
    async with _subject(here, options, say) as service:
        result = await _measured(here, facts, service, options, say)
    folder = here.paths.state
    old = history.last_result(folder, result)
    if old is not None:
        result = result.model_copy(update={"previous": history.compared(old, result)})
    if result.points and not history.keep(folder, result):
        remark = f"the result could not be kept in {folder}: the next one cannot be compared with it"
        result = result.model_copy(update={"remarks": (*result.remarks, remark)})
    return result


@asynccontextmanager
async def _subject(here: Here, options: BenchOptions, say: Say) -> AsyncIterator[Service]:
    """The service that runs, or an instance for this alone."""
    found = find_service(here.loaded, here.environ, options.key)
    if found is not None:
        yield found
        return
    say("it is not running: starting it for the measurement")
    async with here.instances(options.timeout_s).serve({}, say, options.timeout_s) as serving:
        yield Service("temporary", serving.target, serving.status)


async def _measured(here: Here, facts: ModelFacts, service: Service, options: BenchOptions, say: Say) -> BenchResult:
    plan = plan_of(service.status)
    room = Room(plan.context_tokens, plan.slots, request_tokens(service.status, plan))
    at_once = options.at_once or sorted({1, max(1, plan.slots)})
    prompts = bench.lengths(options.prompts_tokens, room, options.generate_tokens)
    workload = Workload(prompts, at_once, options.generate_tokens, options.repeats, options.timeout_s)
    load = Load(service.target, facts.n_vocab, random.Random())
    traffic = Traffic(service.target, service.target.model or here.loaded.name)
    present = await traffic.begin()
    points = await Bench(load, room, SystemClock(), say).run(workload)
    others = await traffic.others(load.requests)
    return BenchResult(
        llamad=__version__,
        name=here.loaded.name,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        model=facts.path,
        model_fingerprint=facts.fingerprint,
        architecture=facts.architecture,
        quantisation=facts.file_type,
        engine=engine_of(service.status),
        served_by=service.by,
        plan=plan,
        generated_tokens=options.generate_tokens,
        points=tuple(points),
        rating=_rating(points),
        expected=expectation(facts, plan, device_shares(service.status)),
        remarks=tuple(_remarks(present, others, prompts, options)),
    )


def _rating(points: Sequence[Point]) -> str:
    """Of one request alone with the shortest prompt; empty where that was not measured."""
    alone = [one.generated_tokens_s for one in points if one.requests_at_once == 1 and one.generated_tokens_s]
    return rating(alone[0].median) if alone else ""


def _remarks(present: int, others: int, prompts: Sequence[int], options: BenchOptions) -> list[str]:
    found = []
    if present or others:
        found.append(f"{max(present, others)} requests of others were served meanwhile: the figures are too low")
    left_out = [tokens for tokens in options.prompts_tokens if tokens not in prompts]
    if left_out:
        words = ", ".join(map(str, left_out))
        found.append(f"prompts of {words} tokens do not fit into the context of a request")
    return found


def expectation(facts: ModelFacts, plan: PlanInForce, shares: Sequence[DeviceShare]) -> Expected | None:
    """The bound by memory bandwidth; None where a device's is not told. The host's is measured, where it counts."""
    on_devices = min(1.0, plan.layers / (plan.layers_total or 1)) if shares else 0.0
    buffers_mib = sum(share.buffers_mib for share in shares) or 1.0
    spread = {share.name: on_devices * share.buffers_mib / buffers_mib for share in shares}
    bandwidths: dict[str, tuple[float, str]] = {}
    told = driver_bandwidths() if any(share.uuid for share in shares) else {}
    for share in shares:
        if share.uuid in told:
            bandwidths[share.name] = told[share.uuid], "as the driver tells"
    if on_devices < 1:
        spread["host"] = 1 - on_devices
        threads = len(os.sched_getaffinity(0))
        bandwidths["host"] = measure_host(threads).bytes_s, f"measured with {threads} threads"
    return expected(bytes_a_token(facts), spread, bandwidths)


def to_end(work: Coroutine[object, object, Result]) -> Result:
    """Run it; Ctrl-C, SIGTERM or a hangup ends it with everything cleaned up. Raises KeyboardInterrupt then."""
    gc.enable()  # a verb that takes minutes leaves garbage
    with asyncio.Runner() as runner:
        loop = runner.get_loop()

        async def watched() -> Result:
            task = asyncio.current_task()
            assert task is not None
            for number in heard(ENDS):
                loop.add_signal_handler(number, task.cancel)
            return await work

        try:
            return runner.run(watched())
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
