"""Which settings `llamad tune` tries, in which order. Pure.

A value that the admin wrote is a promise: its key is left alone, unless it was said that it may change.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from llamad.measure.results import Key, PlanInForce, Setting

Goal = Literal["throughput", "latency", "prompt"]
Settings = Mapping[Key, Setting]

KEYS: tuple[Key, ...] = get_args(Key)
"""All keys of `[placement]` that are tried."""

_ORDER: Mapping[Goal, Sequence[Key]] = {
    "throughput": ("parallel", "threads", "flash_attention", "ubatch", "kv_cache"),
    "latency": ("threads", "threads_batch", "flash_attention", "ubatch", "kv_cache"),
    "prompt": ("ubatch", "threads_batch", "flash_attention", "kv_cache"),
}
"""What matters most to a goal first: what is tried later is tried with the best of what came before."""
_UBATCHES_TOKENS = (64, 128, 256, 512, 1024, 2048)
_SLOTS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Machine:
    """What the values of `threads` depend on."""

    cores: int
    processors: int
    """Cores with their hyper-threads."""


@dataclass(frozen=True)
class Axis:
    """A key with the values that it may have, in their order; `current` is the place of the one in force."""

    key: Key
    values: tuple[Setting, ...]
    current: int


@dataclass(frozen=True)
class Question:
    """What candidates depend on."""

    goal: Goal
    plan: PlanInForce
    machine: Machine
    threads: int | None
    """As written; None: llama-server's choice."""
    threads_batch: int | None
    batch_tokens: int | None
    """As written; a micro-batch cannot be larger."""
    host_computes: bool
    """Whether some layer runs on the CPU."""
    quantised_cache: bool = False
    """Whether a quantised cache may be tried: it changes answers a little."""


def axes(
    question: Question, written: Callable[[str], str], may_change: Collection[str]
) -> tuple[list[Axis], list[str]]:
    """What to try, and which keys are left alone and why. `written` says where a key was written; "" for a default."""
    found, untouched = [], []
    for key in _ORDER[question.goal]:
        where = written(key)
        if where and key not in may_change:
            untouched.append(f"{key}: written in {where} (--may-change {key} tries it all the same)")
            continue
        axis, reason = _axis(key, question)
        if axis is not None and len(axis.values) > 1:
            found.append(axis)
        elif reason:
            untouched.append(f"{key}: {reason}")
    return found, untouched


def _axis(key: Key, question: Question) -> tuple[Axis | None, str]:
    plan = question.plan
    match key:
        case "parallel":
            return _ordered(key, _SLOTS, plan.slots), ""
        case "ubatch":
            most = min(question.batch_tokens or plan.context_tokens, plan.context_tokens)
            return _ordered(key, [n for n in _UBATCHES_TOKENS if n <= most], plan.ubatch_tokens or 512), ""
        case "flash_attention":
            if plan.flash_attention is None:
                return None, "the service does not say whether it is on"
            if plan.cache_type_v not in ("", "f16", "f32", "bf16"):
                return None, "a quantised cache needs it"
            return Axis(key, (False, True), int(plan.flash_attention)), ""
        case "kv_cache":
            return _cache_axis(question)
        case "threads" | "threads_batch":
            return _threads_axis(key, question)


def _cache_axis(question: Question) -> tuple[Axis | None, str]:
    if question.plan.cache_type_k != "f16" or question.plan.cache_type_v != "f16":
        return None, "it is quantised already"
    if not question.quantised_cache:
        return None, "q8_0 changes answers a little (--quantised-cache tries it)"
    return Axis("kv_cache", ("f16", "q8_0"), 0), ""


def _threads_axis(key: Key, question: Question) -> tuple[Axis | None, str]:
    if not question.host_computes:
        return None, "no layer runs on the CPU"
    machine = question.machine
    own = question.threads_batch if key == "threads_batch" else question.threads
    current = own or question.threads or machine.cores
    values = {max(1, machine.cores // 2), machine.cores, machine.processors}
    return _ordered(key, sorted(values), current), ""


def _ordered(key: Key, values: Sequence[int], current: int) -> Axis:
    """The axis with the value in force put in its place."""
    found = tuple(sorted({*values, current}))
    return Axis(key, found, found.index(current))
