"""One question to the planner: a model, a machine and a definition. Pure data, with what derives from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from typing import TYPE_CHECKING

from llamad.config.definition import Placement
from llamad.frozen import dataclass
from llamad.gguf.facts import ModelFacts
from llamad.hardware.device import Device, HostMemory
from llamad.planning.architectures import shape_of
from llamad.planning.backends import backend_of
from llamad.planning.demand import Demand, Known
from llamad.planning.layers import ModelShape
from llamad.planning.overhead import shares_host, unpacked_bytes
from llamad.planning.plan import BuildGates
from llamad.planning.search import DeviceRoom, Room, Search
from llamad.planning.select import candidates, device_sets
from llamad.planning.terms import Terms, terms_of
from llamad.planning.weights import WeightMap
from llamad.units import parse_size

if TYPE_CHECKING:
    from llamad.planning.beside import Beside
    from llamad.planning.extras import Extras

HOST = "host"


@dataclass(frozen=True)
class Problem:
    """Everything that a plan depends on; the same problem always gives the same plan.

    The mappings are keyed by a device's name or UUID, or `host`: bytes held back for others, bytes that a former
    load took outside its buffers, how far computed buffers were from a better source; and what former loads taught:
    bytes that a driver claims and nobody can have, and how much there is at most.
    """

    facts: ModelFacts
    devices: tuple[Device, ...]
    host: HostMemory
    placement: Placement
    gates: BuildGates
    cache_ram: str = "auto"
    reserved: Mapping[str, int] = field(default_factory=dict)
    measured_overhead: Mapping[str, int] = field(default_factory=dict)
    corrections: Mapping[str, int] = field(default_factory=dict)
    share: Mapping[str, int] | None = None
    """What this model may take of each device beside all others that are meant to run; None = all that is free."""
    extras: Extras | None = None
    """What is there beside the model."""
    lessons: Mapping[str, int] = field(default_factory=dict)
    rooms: Mapping[str, int] = field(default_factory=dict)
    most_tokens: int | None = None
    """What a context of `auto` may be at most, whatever fits; None = the trained length."""
    _maps: dict[str, WeightMap] = field(default_factory=dict, compare=False, repr=False)
    """Prepared once per backend and shared with every variation of the problem."""
    _unpacked: list[int] = field(default_factory=list, compare=False, repr=False)
    _searches: dict[tuple[Device, ...], Search] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )
    """Of this very problem."""
    _shapes: list[ModelShape] = field(default_factory=list, compare=False, repr=False)

    @property
    def title(self) -> str:
        """What to call the model in messages."""
        return self.facts.name or self.facts.path.rpartition("/")[2]

    @property
    def shape(self) -> ModelShape:
        """The model in numbers."""
        if not self._shapes:
            self._shapes.append(shape_of(self.facts))
        return self._shapes[0]

    def candidates(self) -> tuple[Device, ...]:
        """Devices that the definition allows, the best first. Raises NoDevice if it names none that is here."""
        return candidates(self.devices, self.placement)

    def sets(self) -> tuple[tuple[Device, ...], ...]:
        """Sets of devices to try, in order. Raises NoDevice and PromiseError as `select.device_sets`."""
        return device_sets(self.devices, self.placement)

    def held_back_bytes(self, device: Device) -> int:
        """What of a device's free bytes is promised to others."""
        return _keyed(self.reserved, device)

    def free_bytes(self, device: Device) -> int:
        """Free bytes of a device, less what is held back for others and what was learned not to be had. A promised
        context needs what it needs, whatever share others leave.
        """
        left = device.free_bytes - self.held_back_bytes(device) - _keyed(self.lessons, device)
        room = _keyed_or_none(self.rooms, device)
        free_bytes = left if room is None else min(left, room)
        if self.share is None or self.placement.context != "auto":
            return free_bytes
        return min(free_bytes, _keyed(self.share, device))

    def limit_bytes(self, device: Device) -> int | None:
        """The most that `memory` lets the model take of a device; None = no limit."""
        written = self.placement.memory
        if written == "auto":
            return None
        if written.endswith("%"):
            return device.total_bytes * int(written[:-1]) // 100
        return parse_size(written)

    @property
    def promised_cache_ram_bytes(self) -> int:
        """The prompt cache that the definition asks for; 0 where the planner may choose."""
        return 0 if self.cache_ram == "auto" else parse_size(self.cache_ram)

    def search(self, devices: tuple[Device, ...]) -> Search:
        """The search on these devices, of one backend, or on the CPU alone (none).

        Raises PromiseError for promises that contradict the model.
        """
        if devices not in self._searches:
            self._searches[devices] = self._search(devices)
        return self._searches[devices]

    def _search(self, devices: tuple[Device, ...]) -> Search:
        backend = devices[0].backend if devices else "CPU"
        terms = terms_of(self.facts, self.shape, self.placement, backend, len(devices))
        if self.most_tokens is not None:
            terms = replace(terms, context_most_tokens=self.most_tokens)
        weights = self._weights(backend)
        if self.extras:
            terms = self.extras_terms(terms)
        demand = Demand(
            self.facts,
            devices,
            self.gates,
            weights,
            shape=self.shape,
            vram_margin=self.placement.vram_margin,
            op_offload=self.placement.op_offload,
            checkpoints=0 if self.placement.ctx_checkpoints == "auto" else self.placement.ctx_checkpoints,
            known=[
                Known(_keyed_or_none(self.measured_overhead, device), _keyed(self.corrections, device))
                for device in devices
            ],
            known_host=Known(None, self.corrections.get(HOST, 0)),
            unpacked=self._unpacked_bytes() if backend_of(backend).cache_scratch else 0,
            beside=self._beside(devices, weights) if self.extras else None,
        )
        room = Room(
            tuple(
                DeviceRoom(self.free_bytes(device), self.limit_bytes(device), shares_host(device))
                for device in devices
            ),
            host_bytes=self.host.available_bytes - self.reserved.get(HOST, 0),
            cache_ram_bytes=self.promised_cache_ram_bytes,
        )
        return Search(terms, demand, room)

    def _weights(self, backend: str) -> WeightMap:
        if backend not in self._maps:
            draft = self.extras.draft if self.extras else None
            skipped = self.gates.mtp_skipped and not (draft and draft.multi_token)
            self._maps[backend] = WeightMap(self.facts, backend, mtp_skipped=skipped)
        return self._maps[backend]

    def _unpacked_bytes(self) -> int:
        if not self._unpacked:
            self._unpacked.append(unpacked_bytes(self.facts))
        return self._unpacked[0]

    def extras_terms(self, terms: Terms) -> Terms:
        """The terms with what is guessed ahead."""
        assert self.extras is not None
        draft = self.extras.draft
        rollback = draft.rollback(self.facts.architecture) if draft else 0
        return replace(terms, guessed_tokens=self.extras.guessed_tokens, rollback=rollback)

    def _beside(self, devices: tuple[Device, ...], weights: WeightMap) -> Beside:
        from llamad.planning.beside import Beside, Main  # only where there is something beside the model

        assert self.extras is not None
        return Beside(self.extras, Main(self.facts, self.shape), weights, devices, self.gates)

    def with_vision_on_host(self, *, asked: bool = False) -> Problem | None:
        """The same with the projector on the CPU; None where there is none that may be moved (`asked`: is asked to)."""
        vision = self.extras.vision if self.extras else None
        if self.extras is None or vision is None or not vision.offload or not (vision.movable or asked):
            return None
        return replace(self, extras=replace(self.extras, vision=replace(vision, offload=False)))

    def with_cpu(self) -> Problem:
        """The same with `allow_cpu`. What it needs of each set of devices does not depend on that."""
        problem = replace(self, placement=replace(self.placement, allow_cpu=True))
        problem._searches.update(self._searches)
        return problem

    def emptied(self) -> Problem:
        """The same with nothing else in memory: whether a wait could help. What was learned stays as it is."""
        devices = tuple(
            replace(d, free_bytes=max(d.free_bytes, d.total_bytes), foreign_bytes=0) for d in self.devices
        )
        host = HostMemory(self.host.total_bytes, max(self.host.available_bytes, self.host.total_bytes))
        return replace(self, devices=devices, host=host, reserved={}, share=None)


def _keyed(sizes: Mapping[str, int], device: Device) -> int:
    return _keyed_or_none(sizes, device) or 0


def _keyed_or_none(sizes: Mapping[str, int], device: Device) -> int | None:
    if device.uuid and device.uuid in sizes:
        return sizes[device.uuid]
    return sizes.get(device.name)
