"""`llamad serve [NAME]`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from llamad.cli.unprivileged import drop_root
from llamad.config.names import check_name
from llamad.service.start import serve

if TYPE_CHECKING:
    import argparse


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop; returns the service's exit code."""
    return serve_model(args.name, args.config) if args.name else serve_all(args.config)


def serve_model(name: str, config_root: Path) -> int:
    """Serve a model until told to stop; returns the service's exit code. Raises ConfigError, AccessError."""
    check_name(name, config_root)
    if os.geteuid() == 0:
        from llamad.config.load import load_definition  # as root only: the unit's start must not wait for it

        load_definition(name, config_root)  # no folders are made for a name that is only misspelt
    drop_root(name)
    return serve(name, config_root, dict(os.environ))


def serve_all(config_root: Path) -> int:
    """Serve every definition behind one address until told to stop; returns the service's exit code."""
    from llamad.service.router import serve as serve_router

    drop_root(router=True)
    return serve_router(config_root, dict(os.environ))
