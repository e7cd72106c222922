"""In-memory stand-ins for our own seams."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from llamad.config.definition import Definition, Host, Limits, Placement
from llamad.config.loaded import Loaded
from llamad.engine.log import Observed
from llamad.errors import ChildError, LlamadError
from llamad.planning.plan import DevicePlan, Parts, Plan
from llamad.supervision.growth import Offer
from llamad.supervision.launch import Launch
from llamad.supervision.step_down import Failure
from llamad.units import GIB, MIB

FAKE_SERVER = Path(__file__).with_name("fake_llama_server.py")


class ScaledClock:
    """Real time, run faster: a back-off of seconds takes milliseconds."""

    def __init__(self, factor: float = 50.0) -> None:
        self._factor = factor

    def monotonic(self) -> float:
        return time.monotonic() * self._factor

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s / self._factor)


def a_plan(**changes: Any) -> Plan:
    """100 MiB of weights, 20 MiB of context and 5 MiB of compute on CUDA0."""
    device = DevicePlan("CUDA0", "GPU-1", 8 * GIB, 8 * GIB, 5, Parts(100 * MIB, 20 * MIB, 5 * MIB))
    plan = Plan(
        model="/m/tiny.gguf", context_tokens=4096, context_train_tokens=4096, slots=4, unified_cache=True,
        cache_type_k="f16", cache_type_v="f16", batch_tokens=512, ubatch_tokens=512, flash_attention=True, layers=5,
        layers_total=5, split_mode="none", main_device="CUDA0", tensor_split=(), cache_ram_mib=0, devices=(device,),
        host=Parts(10 * MIB), host_available_bytes=8 * GIB, reasons=(),
    )  # fmt: skip
    return replace(plan, **changes)


LOAD_LINES = [
    "0.00.100.000 I load_tensors:        CUDA0 model buffer size =   100.00 MiB",
    "0.00.100.000 I load_tensors:   CPU_Mapped model buffer size =    10.00 MiB",
    "0.00.100.000 I llama_kv_cache:      CUDA0 KV buffer size =    20.00 MiB",
    "0.00.100.000 I sched_reserve:      CUDA0 compute buffer size =     5.00 MiB",
]


def loaded_of(
    name: str = "tiny", *, digest: str = "1", context: int | str = "auto", kv_cache: str = "f16", **limits: Any
) -> Loaded:
    placement: dict[str, Any] = {"context": context, "kv_cache": kv_cache}
    definition = Definition(model="/m/tiny.gguf", placement=Placement(**placement), limits=Limits(**limits))
    return Loaded(name, Path(f"/etc/llamad/{name}.toml"), definition, Host(), {}, frozenset(), (), digest)


class FakePlanner:
    """Launches of the fake llama-server, one scenario after another; the last one stays."""

    def __init__(self, folder: Path, *scenarios: dict[str, Any] | LlamadError) -> None:
        self._folder = folder
        self._scenarios = list(scenarios) or [{}]
        self.plans = 0
        self.failures: list[Failure] = []
        self.observed: list[Observed] = []
        self.free: dict[str, int] = {}
        self.plan_result = a_plan()
        self.context_tokens = 0
        """What a plan gives without a bound; 0: as `plan_result` has it."""
        self.bounds: list[int | None] = []
        self.offer: Offer | None = None
        self.looks = 0
        self.looked = asyncio.Event()
        self.turns = self.ends = 0
        self.may_go = asyncio.Event()
        self.spawns: list[int] = []
        self.settles: list[int] = []
        self.refuse_check: LlamadError | None = None
        self.planned: list[Loaded] = []
        self.beside_scenario: dict[str, Any] | LlamadError | None = None
        self.calls: list[str] = []

    async def plan(self, loaded: Loaded, previous: Launch | None, most_tokens: int | None = None) -> Launch:
        self.plans += 1
        self.planned.append(loaded)
        self.bounds.append(most_tokens)
        scenario = self._scenarios.pop(0) if len(self._scenarios) > 1 else self._scenarios[0]
        if isinstance(scenario, LlamadError):
            raise scenario
        return self._launch(loaded, scenario, self._folder / "llama.sock", most_tokens)

    def _launch(
        self, loaded: Loaded, scenario: dict[str, Any], path: Path, most_tokens: int | None = None
    ) -> Launch:
        import json

        path.unlink(missing_ok=True)
        env = {"PATH": "/usr/bin:/bin", "FAKE_LLAMA": json.dumps({"lines": LOAD_LINES, **scenario})}
        argv = (sys.executable, str(FAKE_SERVER), "--host", str(path))
        plan = self.plan_result
        context_tokens = min(self.context_tokens, most_tokens or self.context_tokens)
        if context_tokens:
            plan = replace(plan, context_tokens=context_tokens)
        return Launch(loaded, plan, argv, env, str(path), 300, "completion", "fake")

    async def turn(self) -> None:
        self.turns += 1
        await self.may_go.wait()

    def spawned(self, pid: int, observed: Callable[[], Any]) -> None:
        self.spawns.append(pid)

    def settled(self, pid: int) -> None:
        self.settles.append(pid)

    def ended(self) -> None:
        self.ends += 1

    async def beside(self, loaded: Loaded, running: Launch) -> Launch | None:
        scenario = self.beside_scenario
        if scenario is None:
            return None
        if isinstance(scenario, LlamadError):
            raise scenario
        self.calls.append("beside")
        other = "llama-2.sock" if running.socket_path.endswith("llama.sock") else "llama.sock"
        return self._launch(loaded, scenario, self._folder / other)

    def spawned_beside(self, pid: int, observed: Callable[[], Any]) -> None:
        self.calls.append("spawned beside")

    def adopted(self, pid: int) -> None:
        self.calls.append("adopted")

    def retired(self, pid: int) -> None:
        self.calls.append("retired" if pid else "retired last")

    def dismissed(self) -> None:
        self.calls.append("dismissed")

    def failed(self, failure: Failure) -> None:
        self.failures.append(failure)

    def proved(self, launch: Launch, observed: Observed) -> None:
        self.observed.append(observed)

    async def free_bytes(self, launch: Launch) -> dict[str, int]:
        return dict(self.free)

    async def look(self, launch: Launch, *, used: bool, grows: bool) -> Offer | None:
        self.looks += 1
        self.looked.set()
        return self.offer if grows else None

    async def looks_more(self, count: int) -> None:
        """Return after so many more looks."""
        for _ in range(count):
            self.looked.clear()
            await self.looked.wait()

    async def check(self, loaded: Loaded, running: Launch) -> None:
        if self.refuse_check:
            raise self.refuse_check


class FakeEngine:
    """Asks the fake server's real socket for health; warms up as told."""

    def __init__(self) -> None:
        self.warm_ups = 0
        self.slots = "0 0"
        self.fail: ChildError | None = None
        self.prompts: list[str] = []
        self.kept_tokens = 0

    async def healthy(self, socket_path: str) -> bool:
        from llamad.engine.api import Health, health

        return await health(socket_path) is Health.READY

    async def figures(self, socket_path: str) -> str:
        return self.slots

    async def save_prompts(self, launch: Launch) -> None:
        self.prompts.append("save")

    async def restore_prompts(self, launch: Launch) -> int:
        kept, self.kept_tokens = self.kept_tokens, 0
        self.prompts.append("restore")
        return kept

    async def settle(self, socket_path: str, deadline_s: float) -> None:
        return

    async def warm_up(self, launch: Launch, deadline_s: float) -> float:
        self.warm_ups += 1
        if self.fail:
            raise self.fail
        return 0.1


class FakeFront:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.in_flight = 0
        self.working = 0
        self.progressed = 0
        self.may_drain = asyncio.Event()
        self.may_drain.set()
        self.idle_s = 3600.0

    def quiet_s(self) -> float:
        return self.idle_s

    def at_work(self) -> int:
        return self.working

    def progress_count(self) -> int:
        return self.progressed

    def hold(self, reason: str) -> None:
        self.calls.append("hold")

    def open(self, launch: Launch) -> None:
        self.calls.append("open")

    def refuse(self, message: str) -> None:
        self.calls.append("refuse")

    def explain(self, cause: str, message: str) -> None:
        self.calls.append(f"explain {cause}")

    async def farewell(self, deadline_s: float) -> None:
        self.calls.append("farewell")

    async def drain(self, deadline_s: float, *, former: bool = False) -> int:
        self.calls.append("drain former" if former else "drain")
        if former:
            await self.may_drain.wait()
        return self.in_flight

    def cut(self, cause: str, message: str, *, former: bool = False) -> None:
        self.calls.append(f"cut {cause}")

    async def close_upstreams(self, *, former: bool = False) -> None:
        self.calls.append("close_upstreams")


class FakeReporter:
    """Remembers events, states and lines; `until` waits for one."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, dict[str, str]]] = []
        self.states: list[str] = []
        self.texts: list[str] = []
        self.lines: list[tuple[str, str]] = []
        self.extended = 0
        self._changed = asyncio.Event()

    def event(self, name: str, message: str, **fields: str) -> None:
        self.events.append((name, message, fields))
        self._changed.set()

    def state(self, state: str, text: str) -> None:
        self.states.append(state)
        self.texts.append(text)
        self._changed.set()

    def serving(self, launch: Launch) -> None:
        self.event("ready", "")

    def stable(self) -> None:
        self.event("stable", "")

    def extend(self, duration_s: float) -> None:
        self.extended += 1

    def child_line(self, level: str, text: str, pid: int) -> None:
        self.lines.append((level, text))

    def names(self) -> list[str]:
        return [name for name, _, _ in self.events]

    async def until(self, condition: Callable[[], Any], timeout_s: float = 20.0) -> None:
        """Return when the condition holds; it is looked at after every report."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                self._changed.clear()
                await self._changed.wait()
