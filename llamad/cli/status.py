"""`llamad status [NAME...]`: a line a model."""

from __future__ import annotations

import argparse
import json
import sys
import time

from llamad.cli.terminal import colour_of, painted, wants_colour
from llamad.config.names import definition_names
from llamad.errors import UsageError
from llamad.ledger.lease import Lease
from llamad.service.overview import memory_table
from llamad.service.scene import UNITS_S, Looker, Scene
from llamad.service.table import STATE_COLUMN, row_of, table_lines
from llamad.units import mib

_HOME_AND_CLEAR = "\x1b[H\x1b[J"


def run(args: argparse.Namespace) -> int:
    """Print the state of every definition, or of those named; 3 (as systemctl) if a named one is not ready."""
    known = definition_names(args.config)
    unknown = [name for name in args.names if name not in known]
    if unknown:
        raise UsageError(f"no definition named {', '.join(unknown)}", fix="`llamad list` shows all")
    looker = Looker(args.config, args.names)
    if args.watch is None:
        scene = looker.look()
        _print(scene, args)
        return _exit_code(scene, args)
    return _watch(Looker(args.config, args.names, units_s=max(UNITS_S, args.watch)), args)


def _exit_code(scene: Scene, args: argparse.Namespace) -> int:
    return 3 if args.names and any(model.state != "ready" for model in scene.models) else 0


def _watch(looker: Looker, args: argparse.Namespace) -> int:
    """Until interrupted, which is no failure."""
    clears = sys.stdout.isatty() and not args.json
    scene = looker.look()
    try:
        while True:
            print(_HOME_AND_CLEAR if clears else "", end="")
            if not args.json:
                print(time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(scene.at_s)))
            _print(scene, args)
            if not args.json and not clears:
                print()
            sys.stdout.flush()
            time.sleep(args.watch)
            scene = looker.look()
    except KeyboardInterrupt:
        return _exit_code(scene, args)


def _print(scene: Scene, args: argparse.Namespace) -> None:
    if args.json:
        print(json.dumps(scene_json(scene), indent=None if args.watch else 2))
    elif not scene.models:
        print(f"no definitions in {args.config}; `llamad add NAME FILE.gguf` writes one")
    else:
        print_table(scene)
        print_memory(list(scene.held))


def scene_json(scene: Scene) -> dict[str, object]:
    """For programs."""
    return {
        "models": [model.content for model in scene.models],
        "leases": [lease_json(lease) for lease in scene.held],
    }


def print_table(scene: Scene) -> None:
    """A line a model, in colours where they are wanted."""
    rows = [row_of(model, scene.at_s) for model in scene.models]
    colours = wants_colour()
    heading, *lines = table_lines(rows)
    print("  ".join(heading).rstrip())
    for row, cells in zip(rows, lines, strict=True):
        colour = colour_of(row.state) if colours else ""
        shown = [painted(cell, colour) if n == STATE_COLUMN else cell for n, cell in enumerate(cells)]
        print("  ".join(shown).rstrip())


def print_memory(held: list[Lease]) -> None:
    """Who was promised what, a line a device; nothing where nothing is."""
    rows = memory_table(held)
    if rows:
        width = max(len(place) for place, _ in rows)
        print("\nMemory promised")
        for place, text in rows:
            print(f"  {place:<{width}}  {text}")


def lease_json(lease: Lease) -> dict[str, object]:
    """A lease for programs; sizes in MiB."""
    return {
        "name": lease.name,
        "phase": str(lease.phase),
        "promised_mib": {place: mib(size) for place, size in lease.promised.items()},
        "names": dict(lease.names),
        "waits_for": lease.why,
        "ticket": lease.ticket,
    }
