"""`llamad export haproxy|nginx|prometheus|litellm --hosts A,B`: configuration for what stands before several hosts."""

from __future__ import annotations

import argparse
import importlib
import sys

from llamad.config.listen import parse_listen
from llamad.errors import UsageError
from llamad.export.fleet import Fleet, parse_hosts, usable
from llamad.service.fleet import models_of

def run(args: argparse.Namespace) -> int:
    """Print the configuration; what could not be put into it is told on stderr."""
    hosts = parse_hosts(args.hosts)
    listen = _listen(args.listen)
    names = [name for text in args.model for name in text.split(",") if name]
    if args.kind == "prometheus" and names:
        raise UsageError("--model is of no use for prometheus", why="each series has the label `model`", fix="leave it out")
    models, left_out = usable(() if args.kind == "prometheus" else models_of(names, args.config))
    for alias in left_out:
        print(f"llamad: the alias {ascii(alias)} cannot be written there and is left out", file=sys.stderr)
    generate = getattr(importlib.import_module(f"llamad.export.{args.kind}"), args.kind)
    print(generate(Fleet(hosts, models, listen)), end="")
    return 0


def _listen(text: str) -> str:
    try:
        listen = parse_listen(text)
    except ValueError as error:
        raise UsageError(f"--listen {text}", why=str(error)) from None
    if listen.kind == "unix":
        raise UsageError(f"--listen {text}", why="a balancer listens on TCP", fix="write for example 127.0.0.1:8000")
    return str(listen)
