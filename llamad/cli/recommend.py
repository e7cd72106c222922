"""`llamad recommend`: which models would be worth having here."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from llamad.cli.plan import BARE, CACHE_ROOT, bare, cache_of, parse_device
from llamad.cli.unprivileged import rerun_in_sandbox
from llamad.errors import UsageError
from llamad.hardware.bandwidth import GB, Bandwidth, card_asked_for, speed_words
from llamad.hardware.device import Device
from llamad.models.recommend import Advice, Machine, rate_text
from llamad.planning.plan import BuildGates
from llamad.service.onlooker import Onlooker
from llamad.service.overview import leases
from llamad.service.paths import RUNTIME_ROOT
from llamad.service.planner import PlanMaker
from llamad.service.recommend import Asked, advice, gates_of, look
from llamad.units import format_bytes, parse_size

_HEADINGS = ("", "MODEL", "QUANTISATION", "WEIGHTS", "CONTEXT", "TOKENS/S", "WHY")


def run(args: argparse.Namespace) -> int:
    """Print the best models for this machine, or for the one that is asked about; or one JSON object of all."""
    asked = _asked(args)
    if asked.devices is None:
        code = rerun_in_sandbox(_same_words(args), f"llamad@{BARE}.service", CACHE_ROOT / BARE)
        if code is not None:
            return code
    machine, gates, onlooker = looked_at(asked, args)
    found = advice(machine, gates, onlooker)
    if args.json:
        print(json.dumps({"machine": _machine_json(machine), "models": [one.content() for one in found]}, indent=2))
        return 0
    _print(machine, found, args)
    return 0


def looked_at(asked: Asked, args: argparse.Namespace) -> tuple[Machine, BuildGates, Onlooker | None]:
    """The machine, what its llama-server does to its buffers, and what others were promised. Raises LlamadError."""
    with tempfile.TemporaryDirectory(prefix="llamad-look-") as scratch:
        cache = cache_of(BARE) or Path(scratch)
        loaded = bare(Path("/nonexistent.gguf"), args.config)
        maker = PlanMaker(loaded, engine=RUNTIME_ROOT / BARE / "engine", cache=cache)
        machine = look(asked, maker if asked.devices is None else None)
        return machine, gates_of(maker), Onlooker(BARE, leases()) if asked.devices is None else None


def _asked(args: argparse.Namespace) -> Asked:
    if args.cpu and args.gpu:
        raise UsageError("--cpu and --gpu contradict each other", fix="write one of them")
    devices: list[Device] = []
    speeds: dict[str, Bandwidth] = {}
    for text in args.gpu:
        device, speed = _device(text, len(devices))
        devices.append(device)
        if speed is not None:
            speeds[device.name] = speed
    return Asked(
        tuple(devices) if args.gpu or args.cpu else None,
        speeds,
        _size("--ram", args.ram),
        _speed(args.ram_bandwidth),
        _speed(args.bandwidth),
        args.allow_cpu,
    )


def _device(text: str, number: int) -> tuple[Device, Bandwidth | None]:
    """A device of `--gpu 24GiB`, `--gpu CUDA0=15.6GiB` or `--gpu "RTX 4090"`. Raises UsageError."""
    if "=" in text:
        return parse_device(text), None
    try:
        return parse_device(f"CUDA{number}={text}"), None
    except UsageError:
        card = card_asked_for(text)
    if card is None:
        fix = "write a size (24GiB), NAME=FREE (CUDA0=15.6GiB) or a card (RTX 4090)"
        raise UsageError(f"--gpu {text}", why="it is no size, and no card that is known", fix=fix)
    backends = (("Radeon", "ROCm"), ("Instinct", "ROCm"), ("Arc", "Vulkan"), ("", "CUDA"))
    backend = next(backend for maker, backend in backends if card.name.startswith(maker))
    device = Device(
        f"{backend}{number}", card.memory_bytes, card.memory_bytes, description=card.name, source="what-if"
    )  # fmt: skip
    return device, Bandwidth(card.bytes_s, "table")


def _size(option: str, text: str | None) -> int | None:
    try:
        return None if text is None else parse_size(text)
    except ValueError as error:
        raise UsageError(f"{option} {text}", why=str(error), fix=f"write for example {option} 32GiB") from None


def _speed(gb_s: float | None) -> float | None:
    if gb_s is not None and not 0 < gb_s < 1e6:
        raise UsageError(f"{gb_s:g} GB/s is no bandwidth", fix="write GB a second, for example 936")
    return None if gb_s is None else gb_s * GB


def _print(machine: Machine, found: Sequence[Advice], args: argparse.Namespace) -> None:
    for line in _machine_lines(machine):
        print(line)
    fitting = [one for one in found if one.fits]
    print()
    if not fitting:
        print("no model of the catalogue fits")
        return
    shown = fitting if args.all else fitting[: args.top]
    rows = [_HEADINGS, *(_row(number, one) for number, one in enumerate(shown, start=1))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS) - 1)]
    for row in rows:
        print("  ".join(f"{text:<{width}}" for text, width in zip(row, [*widths, 0], strict=True)).rstrip())
    left = len(fitting) - len(shown)
    print(f"\n{left} more fit (--all), {len(found) - len(fitting)} do not")
    print(f"fetch one: llamad pull {shown[0].shape.hub}:{shown[0].recipe}")


def _row(number: int, one: Advice) -> tuple[str, ...]:
    assert one.plan is not None
    context = f"{one.plan.context_tokens} of {one.shape.context_tokens}"
    return (
        f"{number:>2}", one.shape.title, one.recipe, format_bytes(one.weights_bytes), context, rate_text(one), one.why,
    )  # fmt: skip


def _machine_lines(machine: Machine) -> list[str]:
    lines = []
    for device in machine.devices:
        name = f" ({device.description})" if device.description else ""
        free = f"{format_bytes(device.free_bytes)} of {format_bytes(device.total_bytes)} free"
        lines.append(f"{device.name}{name}: {free}, {speed_words([machine.speeds[device.name]])}")
    host = machine.host
    free = f"{format_bytes(host.available_bytes)} of {format_bytes(host.total_bytes)} free"
    lines.append(f"host: {free}, {speed_words([machine.host_speed])}")
    return lines


def _machine_json(machine: Machine) -> dict[str, object]:
    return {
        "devices": [
            {
                "name": device.name,
                "description": device.description,
                "free_bytes": device.free_bytes,
                "bytes_s": machine.speeds[device.name].bytes_s,
                "bytes_s_source": machine.speeds[device.name].source,
            }
            for device in machine.devices
        ],
        "host": {
            "available_bytes": machine.host.available_bytes,
            "bytes_s": machine.host_speed.bytes_s,
            "bytes_s_source": machine.host_speed.source,
        },
        "allow_cpu": machine.allow_cpu,
    }


def _same_words(args: argparse.Namespace) -> list[str]:
    words = ["--config", str(args.config.absolute()), "recommend"]
    flags = {"--allow-cpu": args.allow_cpu, "--all": args.all, "--json": args.json}
    words += [flag for flag, given in flags.items() if given]
    values = {"--ram": args.ram, "--ram-bandwidth": args.ram_bandwidth, "--bandwidth": args.bandwidth}
    for option, value in values.items():
        words += [option, str(value)] if value is not None else []
    return [*words, "--top", str(args.top)]
