"""`llamad load NAME`: have a model loaded now, by the router or its unit."""

from __future__ import annotations

import argparse

from llamad.service.orders import load
from llamad.service.systemctl import Systemctl


def run(args: argparse.Namespace) -> int:
    """Return when it serves."""
    status = load(args.name, args.config, Systemctl(), _say)
    if status == 0:
        print(f"{args.name} is loaded")
    return status


def _say(text: str) -> None:
    print(text, flush=True)
