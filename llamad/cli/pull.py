"""`llamad pull SOURCE`: fetch a model."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from types import FrameType

from llamad.config.compose import to_toml
from llamad.config.names import definition_names
from llamad.models.fetch import Stopped
from llamad.models.progress import Progress
from llamad.models.pull import Order, Pulled, definition_name, pull
from llamad.units import format_bytes

_INTERRUPTED = 130


def run(args: argparse.Namespace) -> int:
    """Fetch it, and say how it is served. Stopped halfway (Ctrl-C, SIGTERM) it goes on with the next call."""
    order = Order(args.source, args.to, args.sha256, args.revision, args.mmproj, args.connections, args.token_file)
    progress = Progress()
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        pulled = pull(order, progress, os.environ)
    except Stopped as error:
        progress.end()
        kept = f"{format_bytes(error.kept_bytes)} of {format_bytes(error.size_bytes)}"
        print(f"stopped: {kept} of {error.name} are kept; the same command goes on from there", file=sys.stderr)
        return _INTERRUPTED
    except KeyboardInterrupt:
        progress.end()
        print("stopped: what has come is kept; the same command goes on from there", file=sys.stderr)
        return _INTERRUPTED
    finally:
        progress.end()
        signal.signal(signal.SIGTERM, before)
    _tell(pulled, args)
    return 0


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _tell(pulled: Pulled, args: argparse.Namespace) -> None:
    proved = "SHA-256 as published" if pulled.sure else "no hash was published: it is whole by its size and header"
    for path in pulled.files:
        print(path)
    if pulled.projector is not None:
        print(pulled.projector)
    print(f"{format_bytes(pulled.size_bytes)}, {proved}")
    name = definition_name(pulled.model, definition_names(args.config))
    print(f"serve it: llamad add {name} {shlex.quote(str(pulled.model))}")
    if pulled.projector is not None:
        print(f'and for pictures or sound, in its definition:\n[vision]\nmmproj = {to_toml(str(pulled.projector))}')
