"""A plan as text for people: bytes per part and device, what is used and left, the command, the reasons. Pure.

Plain ASCII, at most 80 columns but for single words that are longer.
"""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator, Sequence

from llamad.planning.plan import BESIDE, DevicePlan, Parts, Plan
from llamad.units import MIB, format_bytes, listed

WIDTH = 80
_BAR_CELLS = 50
_PARTS = ("weights", "context", "compute", "overhead", "margin", "total", "free")
_SOURCES = {
    "learned": "measured when this model last ran with these flags",
    "asked": "llama-server's own figures for these flags",
    "computed": "computed from the file's header",
}


def explain(plan: Plan, args: Sequence[str] = (), *, program: str = "llama-server") -> str:
    """The text of a plan. `args` is the argv after the program's name; left out if empty."""
    sections = [_head(plan), _table(plan), _bars(plan)]
    if args:
        sections.append(_command(program, args))
    sections.append(_why(plan))
    if plan.remarks:
        sections.append(["Warnings:", *_items(plan.remarks)])
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def _head(plan: Plan) -> list[str]:
    where = f"on {listed(device.name for device in plan.devices)}"
    layers = (
        f"{plan.layers} of {plan.layers_total} layers {where}" if plan.devices else "all layers on the CPU"
    )
    slots = f"{plan.slots} slot{'s' if plan.slots > 1 else ''}"
    return [
        plain(plan.model),
        f"  context {plan.context_tokens} of {plan.context_train_tokens}, {slots}, {plan.cache_type_k} cache, {layers}",
    ]


def _table(plan: Plan) -> list[str]:
    rows = [_row(device.name, device.parts, device.free_bytes) for device in plan.devices]
    rows.append(_row("host", plan.host, plan.host_available_bytes))
    head = f"{'MiB':<10}" + "".join(f"{word:>10}" for word in _PARTS)
    rows += _beside(plan)
    cache = f"  and up to {plan.cache_ram_mib} MiB of host memory for the prompt cache"
    return [head, *rows, cache, f"  ({_SOURCES[plan.source]})"]


def _beside(plan: Plan) -> Iterator[str]:
    """What is in the totals beside the model, a line a place."""
    for name, parts in (*((device.name, device.parts) for device in plan.devices), ("host", plan.host)):
        sizes = {part: getattr(parts, f"{part}_bytes") for part in BESIDE}
        listed = ", ".join(f"{part} {size / MIB:.1f}" for part, size in sizes.items() if size)
        if listed:
            yield f"  in the total of {name}: {listed}"


def _row(name: str, parts: Parts, free_bytes: int) -> str:
    sizes = (
        parts.weights_bytes,
        parts.context_bytes,
        parts.compute_bytes,
        parts.overhead_bytes,
        parts.margin_bytes,
        parts.total_bytes,
        free_bytes,
    )
    return f"{name:<10}" + "".join(f"{size / MIB:>10.1f}" for size in sizes)


def _bars(plan: Plan) -> list[str]:
    lines = [_bar(device) for device in plan.devices]
    if not lines:
        available = plan.host_available_bytes
        drawn = _drawn(available, (("#", plan.host.total_bytes),))
        lines.append(f"{'host':<10}[{drawn}] {format_bytes(available - plan.host.total_bytes)} left")
    legend = "# this model   + its margin   x others   . left" if plan.devices else "# this model   . left"
    following = plan.next_context
    if following:
        need = -(-following.missing_bytes // MIB)
        legend += (
            f"\nnext larger context: {following.context_tokens} needs {need} MiB more on {following.device}"
        )
    return [*lines, f"{'':<10} {legend}"]


def _bar(device: DevicePlan) -> str:
    parts = device.parts
    whole = max(device.total_device_bytes, device.free_bytes)
    others = whole - device.free_bytes
    used = parts.total_bytes - parts.margin_bytes
    drawn = _drawn(whole, (("x", others), ("#", used), ("+", parts.margin_bytes)))
    return f"{device.name:<10}[{drawn}] {format_bytes(device.free_bytes - parts.total_bytes)} left"


def _drawn(whole: int, shares: Sequence[tuple[str, int]]) -> str:
    """A bar of cells; each share ends where the sum up to it ends, so rounding does not add up."""
    drawn, end = "", 0
    for sign, size in shares:
        end += max(0, size)
        cells = min(_BAR_CELLS, round(end * _BAR_CELLS / max(1, whole)))
        drawn += sign * (cells - len(drawn))
    return drawn.ljust(_BAR_CELLS, ".")


def _command(program: str, args: Sequence[str]) -> list[str]:
    """The command, an option and its value never torn apart."""
    words = [shlex.quote(plain(word)) for word in (program, *args)]
    groups: list[str] = []
    for word in words:
        if groups and not word.startswith("-") and groups[-1].startswith("-") and " " not in groups[-1]:
            groups[-1] += f" {word}"
        else:
            groups.append(word)
    lines = [groups[0]]
    for group in groups[1:]:
        if len(lines[-1]) + len(group) + 3 > WIDTH:
            lines[-1] += " \\"
            lines.append(f"    {group}")
        else:
            lines[-1] += f" {group}"
    return lines


def _why(plan: Plan) -> list[str]:
    width = max((len(reason.topic) for reason in plan.reasons), default=0)
    lines = ["Why:"]
    for reason in plan.reasons:
        indent = " " * (width + 4)
        first = f"  {reason.topic:<{width}}  "
        lines += textwrap.wrap(plain(reason.text), WIDTH, initial_indent=first, subsequent_indent=indent)
    return lines


def _items(texts: Sequence[str]) -> Iterator[str]:
    for text in texts:
        yield from textwrap.wrap(plain(text), WIDTH, initial_indent="  - ", subsequent_indent="    ")


def plain(text: str) -> str:
    """Printable ASCII: a model's name comes from its file and may hold anything."""
    return "".join(char if char.isascii() and char.isprintable() else "?" for char in text)
