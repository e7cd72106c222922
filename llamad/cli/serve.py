"""`llamad serve NAME`."""

from __future__ import annotations

import argparse
import os

from llamad.cli.unprivileged import drop_root
from llamad.config.names import check_name
from llamad.service.start import serve


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop; returns the service's exit code."""
    check_name(args.name, args.config)
    drop_root(args.name)
    return serve(args.name, args.config, dict(os.environ))
