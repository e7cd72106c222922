"""`llamad enable NAME`: serve a model now and after every boot."""

from __future__ import annotations

import argparse

from llamad.service.systemctl import Systemctl
from llamad.service.upkeep import enable


def run(args: argparse.Namespace) -> int:
    """Check the definition, then `systemctl enable --now`."""
    return enable(args.name, args.config, Systemctl(), _say)


def _say(text: str) -> None:
    print(text, flush=True)
