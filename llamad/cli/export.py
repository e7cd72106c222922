"""`llamad export haproxy|nginx|prometheus|litellm --hosts A,B`: configuration for what stands before several hosts."""

from __future__ import annotations

import argparse
import importlib
import sys

from llamad.service.fleet import fleet_of


def run(args: argparse.Namespace) -> int:
    """Print the configuration; what could not be put into it is told on stderr."""
    fleet, left_out = fleet_of(args.kind, args.hosts, args.model, args.listen, args.tls_ca, args.config)
    for alias in left_out:
        print(f"llamad: the alias {alias!a} cannot be written there and is left out", file=sys.stderr)
    generate = getattr(importlib.import_module(f"llamad.export.{args.kind}"), args.kind)
    print(generate(fleet), end="")
    return 0
