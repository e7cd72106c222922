"""`llamad remove NAME`: serve a model no more, and forget its definition."""

from __future__ import annotations

import argparse

from llamad.cli.terminal import ask
from llamad.errors import UsageError
from llamad.service.systemctl import Systemctl
from llamad.service.upkeep import describe, removal, remove


def run(args: argparse.Namespace) -> int:
    """Say what will be done, ask, do it. The model file always stays; 1 where the answer was no."""
    units = Systemctl()
    found = removal(args.name, args.config, units)
    backup = not (args.purge or args.no_backup)
    for line in describe(found, purge=args.purge, backup=backup):
        print(line)
    if not args.yes:
        typed = ask(f"Remove {args.name}? [y/N]")
        if typed is None:
            raise UsageError("nobody can be asked", fix="write --yes")
        if typed.lower() not in ("y", "yes"):
            print("nothing was removed")
            return 1
    status = remove(found, units, _say, purge=args.purge, backup=backup)
    print(f"removed {args.name}")
    return status


def _say(text: str) -> None:
    print(text, flush=True)
