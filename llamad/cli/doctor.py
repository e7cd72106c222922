"""`llamad doctor [NAME]`: what is wrong on this host, why, and the command that cures it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from llamad.cli.unprivileged import can_sandbox, own_command, sandbox_command
from llamad.config.names import check_name, definition_names
from llamad.errors import UsageError
from llamad.hardware.nvml import Nvml
from llamad.service.doctor.engine import CACHE_ROOT
from llamad.service.doctor.host import Host, SystemCommands
from llamad.service.doctor.registry import examine
from llamad.service.doctor.sandbox import OwnSandbox, UnitSandbox
from llamad.service.doctor.text import report_text

NVML_S = 8.0


def run(args: argparse.Namespace) -> int:
    """Look at everything, bounded in time, and change nothing: 1 if there is a warning or an error, 0 if not."""
    if args.name is not None and args.name not in definition_names(args.config):
        check_name(args.name, args.config)
        raise UsageError(f"no definition named {args.name}", fix="`llamad list` shows all")
    commands = SystemCommands()
    sandboxed = os.geteuid() == 0 and can_sandbox()
    host = Host(
        UnitSandbox(_in_sandbox, commands) if sandboxed else OwnSandbox(),
        Nvml(deadline_s=NVML_S),
        config=args.config,
        commands=commands,
        own_command=own_command(),
        only=args.name or "",
    )
    report = examine(host)
    if args.json:
        print(report.model_dump_json(indent=2))
    else:
        print(report_text(report, colours=_colours(os.environ)), end="")
    return 0 if report.is_well else 1


def _in_sandbox(name: str, argv: Sequence[str], deadline_s: float) -> list[str]:
    unit = f"llamad@{name}.service" if name else "llamad.service"
    bounds = (f"--property=RuntimeMaxSec={deadline_s:g}", "--property=TimeoutStopSec=2")
    return sandbox_command(argv, unit, Path(CACHE_ROOT, name or ".router"), *bounds)


def _colours(environ: Mapping[str, str]) -> bool:
    return sys.stdout.isatty() and not environ.get("NO_COLOR") and environ.get("TERM", "dumb") != "dumb"
