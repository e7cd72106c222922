"""`llamad disable NAME`: stop a model, now and at boot."""

from __future__ import annotations

import argparse

from llamad.service.systemctl import Systemctl
from llamad.service.upkeep import disable


def run(args: argparse.Namespace) -> int:
    """`systemctl disable --now`, with what follows from it."""
    return disable(args.name, args.config, Systemctl(), _say)


def _say(text: str) -> None:
    print(text, flush=True)
