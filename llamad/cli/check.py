"""`llamad check [NAME...]`."""

from __future__ import annotations

import argparse
import sys

from llamad.cli.main import print_error
from llamad.config.load import definition_names
from llamad.errors import ExitCode, LlamadError
from llamad.service.checks import check_name


def run(args: argparse.Namespace) -> int:
    """Check the definitions; a line for each problem, 78 if there is any."""
    names = args.names or definition_names(args.config)
    if not names:
        print(f"no definitions in {args.config}; `llamad add NAME FILE.gguf` writes one")
        return 0
    failed = False
    for name in names:
        problems = _problems(name, args)
        for problem in problems:
            print_error(problem)
        failed = failed or bool(problems)
        if not problems and sys.stdout.isatty():
            print(f"{name}: no problem found")
    return int(ExitCode.CONFIG) if failed else 0


def _problems(name: str, args: argparse.Namespace) -> list[LlamadError]:
    try:
        return check_name(name, args.config)
    except LlamadError as error:
        return [error]
