"""From a definition to a launch: header, build, devices, plan, llama-server's own confirmation, flags.

It blocks (files on network file systems, drivers, short runs of llama-server) and loads no event loop, so
that `llamad plan` is quick; `background` is the daemon's way to use it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from llamad.config.definition import Definition
from llamad.config.loaded import Loaded
from llamad.engine.build import Capabilities, Mode
from llamad.engine.capabilities import read_capabilities
from llamad.engine.environment import child_environment
from llamad.engine.flags import can_ask, dry_run_args, server_args
from llamad.engine.names import plan_names, visible_uuids
from llamad.errors import DeviceError, LlamadError
from llamad.frozen import dataclass
from llamad.gguf.facts import ModelFacts
from llamad.hardware.device import Device, HostMemory, Probe
from llamad.hardware.host import host_memory
from llamad.planning.confirm import Asked
from llamad.planning.plan import BuildGates, Parts, Plan, Reason
from llamad.planning.problem import Problem
from llamad.planning.refusal import NeverFits, NoRoomNow
from llamad.planning.settle import settled
from llamad.planning.solve import plan as solve
from llamad.planning.terms import LARGEST_AUTO_UBATCH_TOKENS
from llamad.service.direct import endpoint_of, remove_stale
from llamad.service.facts import FactsReader, extras_of, files_key, located_facts
from llamad.supervision.learned import Learned, LearnedFile, in_words, key_of
from llamad.units import MIB

if TYPE_CHECKING:
    from llamad.engine.devices import DeviceFinder
    from llamad.ledger.booking import Booking
    from llamad.planning.extras import Extras
    from llamad.service.onlooker import Onlooker
    from llamad.service.sharing import Sharing
    from llamad.supervision.launch import Launch

SOCKET_NAME = "llama.sock"
SECOND_SOCKET_NAME = "llama-2.sock"
SLOTS = "slots"
ENGINE_SOCKETS = (SOCKET_NAME, SECOND_SOCKET_NAME)
_LOG_ROUNDING_BYTES = MIB // 100
ASK_SOCKET_NAME = "ask.sock"


@dataclass(frozen=True)
class Made:
    """A plan with what it was made from."""

    plan: Plan
    facts: ModelFacts
    caps: Capabilities | None
    args: tuple[str, ...]
    """llama-server's arguments after the program name; empty where no build is known."""
    learned_key: str = ""
    """What a lesson from this plan is about."""
    model_key: str = ""
    """Names everything that is loaded."""


class PlanMaker:
    """Plans one definition. Blocking.

    `engine` is the folder of the child's socket, `cache` the model's cache folder, `scratch` the folder for the
    socket of a llama-server that is only asked. With a `booking` the plan's bytes are promised to it; with a
    `sharing` it leaves room for other models. `learned` is what former starts taught. Without a booking, an
    `onlooker` tells what the ledger has of this model and of others. `rpc_in_use`: a child of ours has the remote
    devices, which serve nobody else. `host_returning_bytes`: of the host's memory, will be free as well.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        engine: Path,
        cache: Path,
        read: FactsReader | None = None,
        nvml: Probe | None = None,
        scratch: Path | None = None,
        booking: Booking | None = None,
        sharing: Sharing | None = None,
        learned: LearnedFile | None = None,
        onlooker: Onlooker | None = None,
        rpc_in_use: bool = False,
        socket_name: str = SOCKET_NAME,
        host_returning_bytes: int = 0,
    ) -> None:
        self._rpc_in_use = rpc_in_use
        self._loaded = loaded
        self._booking = booking
        self._sharing = sharing
        self._learned_file = learned
        self._onlooker = onlooker
        self._read = read or FactsReader()
        self._nvml = nvml
        self._hints: tuple[str, ...] = ()
        self._left_out: tuple[str, ...] = ()
        self.engine = engine
        self.scratch = scratch or engine
        self.socket_path = endpoint_of(loaded.definition, engine, socket_name)
        self.slots = cache / SLOTS
        self._host_returning_bytes = host_returning_bytes
        self._cache = cache
        self.env = child_environment(loaded.definition.environment, cache)

    def make(
        self,
        what_if: Sequence[Device] = (),
        *,
        computed: bool = False,
        returning: Sequence[Device] | None = None,
        host: HostMemory | None = None,
        most_tokens: int | None = None,
    ) -> Made:
        """The plan for the memory that is free now, or for `what_if`; confirmed by llama-server unless computed.

        `returning`, `host`: devices and host memory to use as they are here instead of looking (some of it is about
        to be free). `most_tokens`: what a context of `auto` may be at most.
        Raises LlamadError (with a booking also MustWait); a problem of the model file is located at the
        definition's `model`.
        """
        computed = computed or self._rpc_in_use
        facts = stretched(located_facts(self._loaded, self._read), self._loaded.definition)
        extras = extras_of(self._loaded, facts)
        caps = self._capabilities(needed=not what_if)
        if self._booking:
            self._booking.look()
        devices = list(what_if or returning or ())
        if caps and not what_if and returning is None:
            devices = self.devices(caps)
        if self._onlooker:
            counted = self._onlooker.devices(devices)
            # What remote devices said before they were in use is with nothing held.
            before = [self._rpc_in_use and one.backend == "RPC" for one in devices]
            devices = [a if kept else b for a, b, kept in zip(devices, counted, before, strict=True)]
        model_key = self.fingerprint(facts, extras)
        learned = self.learned(self._key(model_key, caps, devices))
        lessons = learned.reserved((one.name, one.uuid, one.free_bytes) for one in devices)
        left_out = in_words(lessons, self._loaded.name)
        try:
            plan = self._solve(
                facts, extras, devices, caps, learned, host or host_memory(), most_tokens,
                here=not what_if, ask=not (computed or what_if),
            )  # fmt: skip
        except DeviceError as error:
            error.why = "; ".join(filter(None, (error.why, *self._hints)))
            raise
        except (NoRoomNow, NeverFits) as error:
            error.why = "; ".join(filter(None, (error.why, left_out)))
            raise
        if left_out:
            plan = replace(plan, reasons=(*plan.reasons, Reason("learned", left_out)))
        if self._left_out:
            plan = replace(plan, warnings=(*plan.warnings, *self._left_out))
        args = self._args(plan, caps) if caps else []
        return Made(plan, facts, caps, tuple(args), learned.key, model_key)

    def devices(self, caps: Capabilities | None = None) -> list[Device]:
        """The devices as they are now, in llama-server's order and by its names."""
        finder = self._finder(caps)
        found = finder.find(trust_none=self._loaded.definition.placement.allow_cpu)
        self._hints, self._left_out = finder.hints, finder.left_out
        return found

    def glance(self) -> list[Device] | None:
        """The devices as far as the drivers tell them, in milliseconds; None where only llama-server could tell.

        Raises LlamadError.
        """
        return self._finder(None).glance()

    def _finder(self, caps: Capabilities | None) -> DeviceFinder:
        from llamad.engine.devices import DeviceFinder  # not for devices that need not be here
        from llamad.hardware.amdgpu import AmdGpus
        from llamad.hardware.nvml import Nvml

        self._nvml = self._nvml or Nvml()
        return DeviceFinder(
            caps or self.capabilities(),
            self.env,
            nvml=self._nvml,
            amdgpu=AmdGpus(),
            cache_file=self._cache / "devices.json",
            deadline_s=self._loaded.host.query_s,
            rpc=self._loaded.definition.placement.rpc,
            rpc_in_use=self._rpc_in_use,
        )

    def capabilities(self) -> Capabilities:
        """What this build of llama-server can do."""
        caps = self._capabilities(needed=True)
        assert caps is not None
        return caps

    def learned(self, key: str) -> Learned:
        """What former starts taught about this model with this engine, driver and these flags."""
        return self._learned_file.load(key) if self._learned_file else Learned(key)

    def keep(self, learned: Learned) -> None:
        """Put what was learned on disk."""
        if self._learned_file is not None:
            self._learned_file.save(learned)

    def environment(self, plan: Plan) -> dict[str, str]:
        """The child's environment for this plan."""
        uuids = visible_uuids(plan.devices)
        return child_environment(self._loaded.definition.environment, self._cache, uuids)

    def _capabilities(self, *, needed: bool) -> Capabilities | None:
        try:
            return read_capabilities(
                self._loaded.host.server,
                self.env,
                self._cache / "capabilities.json",
                self._loaded.host.query_s,
            )
        except LlamadError:
            if needed:
                raise
            return None  # a plan for devices that are not here needs no llama-server either

    def _solve(
        self,
        facts: ModelFacts,
        extras: Extras | None,
        devices: Sequence[Device],
        caps: Capabilities | None,
        learned: Learned,
        host: HostMemory,
        most_tokens: int | None,
        *,
        here: bool,
        ask: bool,
    ) -> Plan:
        definition = self._loaded.definition
        gates = caps.gates if caps else BuildGates()
        problem = Problem(
            facts,
            tuple(devices),
            host,
            definition.placement,
            gates,
            definition.server.cache_ram,
            extras=extras,
        )
        room, others = self._sharing.share(self._loaded.name, problem) if self._sharing and here else (None, ())
        solver = partial(
            solve, facts, devices, host, definition.placement, self._loaded.written, gates,
            cache_ram=definition.server.cache_ram, lessons=learned.corrections, rooms=learned.rooms, extras=extras,
            share=room, others=others, most_tokens=most_tokens,
            measured_overhead=_overheads(learned, definition, gates),
        )  # fmt: skip

        def known(plan: Plan) -> tuple[Mapping[str, Parts], Parts] | None:
            assert caps is not None
            return None if extras else learned.asked(plan, self._args(plan, caps))  # alone, it is all there is

        def asked(plan: Plan) -> Asked | None:
            assert caps is not None
            if found := known(plan):
                return Asked(*found, rounding_bytes=_LOG_ROUNDING_BYTES)
            if any(device.name.startswith("RPC") for device in plan.devices):
                return None  # a server of remote devices dies with a client that is killed while it loads
            return self._ask(plan, facts, extras, caps)

        def confirmed(first: Plan, reserved: Mapping[str, int]) -> Plan:
            if not ask or caps is None or not can_ask(caps):
                return first
            plan = settled(
                lambda found: solver(reserved=reserved, corrections=found) if found else first,
                asked,
                grows=definition.placement.context == "auto",
            )
            return replace(plan, source="learned") if known(plan) else plan

        if self._booking is None:
            reserved = self._onlooker.reserved() if self._onlooker else {}
            return confirmed(solver(reserved=reserved), reserved)
        from llamad.service.desk import Desk  # a plan that nothing is promised for has no use for it

        return Desk(self._booking, self._loaded, devices, host).promised(solver, confirmed)

    def _key(self, fingerprint: str, caps: Capabilities | None, devices: Sequence[Device]) -> str:
        drivers = {device.driver for device in devices}
        return key_of(fingerprint, caps.key, drivers, self._loaded.definition) if caps else ""

    def fingerprint(self, facts: ModelFacts, extras: Extras | None = None) -> str:
        """Names everything that is loaded: the model, and what is there beside it."""
        if extras is None:
            return facts.fingerprint
        from llamad.service.beside import fingerprint  # only where there is something beside the model

        return fingerprint(facts, extras)

    def _ask(self, plan: Plan, facts: ModelFacts, extras: Extras | None, caps: Capabilities) -> Asked | None:
        """llama-server's breakdown for this plan; None where it cannot tell (the computed bytes stand)."""
        socket_path = self.scratch / ASK_SOCKET_NAME
        args = dry_run_args(
            plan, self._loaded.definition, caps, socket_path=str(socket_path), written=self._loaded.written
        )
        from llamad.engine.breakdowns import BreakdownCache  # not for what is only computed

        cache = BreakdownCache(self._cache / "breakdowns.json")
        fingerprint = self.fingerprint(facts, extras)
        draft = extras.draft if extras and extras.draft and extras.draft.has_context else None
        found = cache.get(caps.key, fingerprint, args)
        if found is None:
            from llamad.engine.dry_run import AskError, ask_breakdown  # seldom: the answer is kept

            try:
                found = ask_breakdown(
                    caps.path,
                    args,
                    self.environment(plan),
                    self._loaded.host.query_s,
                    drafted=draft is not None,
                )
            except AskError:
                return None
            cache.put(caps.key, fingerprint, args, found)
        renamed = found.renamed(plan_names(plan.devices))
        asked = Asked(renamed.devices, renamed.host, vision_bytes=renamed.vision_bytes)
        if draft is None or renamed.draft is None:
            return asked
        apart = renamed if draft.facts is not None else renamed.draft_without_weights()
        return replace(asked, draft=apart.draft, draft_host=apart.draft_host)

    def _args(self, plan: Plan, caps: Capabilities) -> list[str]:
        names = (self._loaded.name,)
        return server_args(
            plan, self._loaded.definition, caps,
            socket_path=self.socket_path, alias_names=names, written=self._loaded.written,
        )  # fmt: skip


def _overheads(learned: Learned, definition: Definition, gates: BuildGates) -> Mapping[str, int]:
    """What a former llama-server was seen to take beyond its buffers, where that holds for any plan that may come."""
    if not gates.scratch_in_graph:  # it grows with the context, which may be a larger one now
        return {}
    ubatch, batch = definition.placement.ubatch, definition.placement.batch
    largest = LARGEST_AUTO_UBATCH_TOKENS if ubatch == "auto" else ubatch
    return learned.overheads(largest if batch == "auto" else min(largest, batch))


def stretched(facts: ModelFacts, definition: Definition) -> ModelFacts:
    """The facts with the length that the definition's `[rope]` stretches the model to."""
    rope = definition.rope
    factor = rope.scale or (1 / rope.freq_scale if rope.freq_scale else 1.0)
    if rope.scaling == "none" or factor <= 1.0:
        return facts
    return replace(facts, n_ctx_train=int((rope.yarn_orig_ctx or facts.n_ctx_train) * factor))


def make_launch(maker: PlanMaker, loaded: Loaded, most_tokens: int | None = None) -> Launch:
    """Plan, with a context of at most `most_tokens`, and put together the command that carries the plan out. Blocking.
    Raises LlamadError.
    """
    return launch_of(maker.make(most_tokens=most_tokens), maker, loaded)


def launch_of(made: Made, maker: PlanMaker, loaded: Loaded) -> Launch:
    """The command that carries a plan out. Blocking. Raises LlamadError."""
    from llamad.supervision.launch import Launch  # not for what is only planned

    assert made.caps is not None
    remove_stale(maker.socket_path)
    return Launch(
        loaded=loaded,
        plan=made.plan,
        argv=(made.caps.path, *made.args, *slot_args(maker.slots, made.caps, loaded)),
        env=maker.environment(made.plan),
        socket_path=maker.socket_path,
        vocabulary_tokens=made.facts.n_vocab,
        mode=_mode(loaded),
        engine=made.caps.version,
        file_bytes=made.facts.file_bytes,
        learned_key=made.learned_key,
        model_key=made.model_key,
        files_key=files_key(loaded.definition, made.facts),
        engine_key=made.caps.key,
        engine_words=made.caps.words,
    )


def slot_args(folder: Path, caps: Capabilities, loaded: Loaded) -> tuple[str, ...]:
    """Where llama-server may put its slots' prompt caches when it is told to, a folder of the model's own; () where
    it cannot. Clients cannot tell it to: the relay refuses that.
    """
    if _mode(loaded) != "completion" or not caps.has("--slot-save-path"):
        return ()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError:
        return ()  # it only costs prompts that must be read again
    return ("--slot-save-path", str(folder))


def _mode(loaded: Loaded) -> Mode:
    server = loaded.definition.server
    return "embedding" if server.embeddings else "rerank" if server.reranking else "completion"
