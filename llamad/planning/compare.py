"""Two plans beside each other, as text for people: what differs, in bytes and in choices. Pure, plain ASCII."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from llamad.planning.explain import WIDTH, plain
from llamad.planning.plan import BESIDE, Parts, Plan
from llamad.units import MIB

_LABEL = 26
_PARTS = ("weights", "context", "compute", *BESIDE, "overhead", "margin", "total")


def compare(
    names: tuple[str, str], plans: tuple[Plan, Plan], args: tuple[Sequence[str], Sequence[str]]
) -> str:
    """A table of both plans; a row that differs is marked. Then the flags that only one of them has."""
    first, second = plans
    rows = [_row("", *map(plain, names))]
    rows += [_row(label, left, right) for label, left, right in _choices(first, second)]
    rows += _bytes(first, second)
    text = "\n".join(rows) + "\n"
    flags = list(_flags(names, args))
    return text + ("\n" + "\n".join(flags) + "\n" if flags else "")


def _choices(first: Plan, second: Plan) -> Iterator[tuple[str, str, str]]:
    for label, value in (
        ("context", lambda plan: f"{plan.context_tokens} of {plan.context_train_tokens}"),
        ("slots", lambda plan: str(plan.slots)),
        ("cache", lambda plan: plan.cache_type_k),
        ("batch / micro-batch", lambda plan: f"{plan.batch_tokens} / {plan.ubatch_tokens}"),
        ("flash attention", lambda plan: "on" if plan.flash_attention else "off"),
        ("layers on devices", lambda plan: f"{plan.layers} of {plan.layers_total}"),
        ("layers a device", lambda plan: ", ".join(f"{d.name} {d.layers}" for d in plan.devices) or "-"),
        ("experts on the CPU", lambda plan: f"{plan.host_experts} layers" if plan.host_experts else "-"),
        ("prompt cache, MiB", lambda plan: str(plan.cache_ram_mib)),
    ):
        left, right = value(first), value(second)
        if (left, right) != ("-", "-"):
            yield label, left, right


def _bytes(first: Plan, second: Plan) -> list[str]:
    places = dict.fromkeys(device.name for plan in (first, second) for device in plan.devices)
    rows = []
    for place in (*places, "host"):
        left, right = _parts(first, place), _parts(second, place)
        for part in _PARTS:
            sizes = [getattr(parts, f"{part}_bytes") if parts else 0 for parts in (left, right)]
            if any(sizes):
                rows.append(_row(f"{place} {part}, MiB", *(f"{size / MIB:.1f}" for size in sizes)))
    return rows


def _parts(plan: Plan, place: str) -> Parts | None:
    if place == "host":
        return plan.host
    return next((device.parts for device in plan.devices if device.name == place), None)


def _row(label: str, left: str, right: str) -> str:
    mark = "  <>" if left != right and label else ""
    return f"{label:<{_LABEL}}{left:>20}{right:>20}{mark}"


def _flags(names: tuple[str, str], args: tuple[Sequence[str], Sequence[str]]) -> Iterator[str]:
    first, second = (_groups(words) for words in args)
    for name, own, other in ((names[0], first, second), (names[1], second, first)):
        only = [group for group in own if group not in other]
        if only:
            text = f"only {plain(name)}: {plain('  '.join(only))}"
            yield from textwrap.wrap(text, WIDTH, subsequent_indent="    ", break_long_words=False)


def _groups(words: Sequence[str]) -> list[str]:
    """An option with its value each."""
    groups: list[str] = []
    for word in words:
        if groups and not word.startswith("-") and " " not in groups[-1]:
            groups[-1] += f" {word}"
        else:
            groups.append(word)
    return groups
