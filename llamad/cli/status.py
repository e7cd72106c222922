"""`llamad status [NAME...]`: a line a model."""

from __future__ import annotations

import argparse
import json
import time

from llamad.config.names import definition_names
from llamad.errors import UsageError
from llamad.ledger.lease import Lease
from llamad.service.overview import Overview, leases, memory_table, overview
from llamad.units import mib


def run(args: argparse.Namespace) -> int:
    """Print the state of every definition, or of those named; 3 (as systemctl) if a named one is not ready."""
    known = definition_names(args.config)
    unknown = [name for name in args.names if name not in known]
    if unknown:
        raise UsageError(f"no definition named {', '.join(unknown)}", fix="`llamad list` shows all")
    models = overview(args.names or known)
    held = leases()
    if args.json:
        rows = [lease_json(lease) for lease in held]
        print(json.dumps({"models": [model.content for model in models], "leases": rows}, indent=2))
    elif not models:
        print(f"no definitions in {args.config}; `llamad add NAME FILE.gguf` writes one")
    else:
        print_table(models)
        print_memory(held)
    return 3 if args.names and any(model.state != "ready" for model in models) else 0


def print_table(models: list[Overview]) -> None:
    """Name, state, since when, and what systemd shows as status."""
    width = max(len(model.name) for model in models)
    for model in models:
        since = age(time.time() - model.since) if model.since else ""
        print(f"{model.name:<{width}}  {model.state:<9}  {since:>7}  {model.text}")


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


def age(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h`, `5 d`."""
    for limit, unit, factor in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{max(0, seconds) / factor:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"
