"""`llamad unload NAME`: have a model unloaded now, its requests finished first."""

from __future__ import annotations

import argparse
import os

from llamad.cli.unprivileged import drop_root
from llamad.config.load import load_definition
from llamad.service.orders import unload_from_router
from llamad.service.router_paths import RouterPaths
from llamad.service.systemctl import Systemctl, unit_of
from llamad.service.upkeep import require_definition


def run(args: argparse.Namespace) -> int:
    """Stop the unit where that serves it; else ask the router, as its user: root leaves nothing in the ledger."""
    require_definition(args.name, args.config)
    loaded = load_definition(args.name, args.config)
    units = Systemctl()
    if units.are_there() and units.is_active(unit_of(args.name)):
        status = units.order("stop", unit_of(args.name))
        if status == 0:
            print(f"llamad@{args.name} is stopped")
        return status
    drop_root()
    if unload_from_router(args.name, RouterPaths.of(dict(os.environ)).ledger, loaded):
        print(f"{args.name} is unloaded; the router loads it again with the next request for it")
    else:
        print(f"{args.name} is not loaded")
    return 0
