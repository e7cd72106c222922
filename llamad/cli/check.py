"""`llamad check [NAME...]`."""

from __future__ import annotations

import argparse
import json
import sys

from llamad.cli.main import print_error
from llamad.config.load import definition_names
from llamad.errors import ConfigErrors, ExitCode, LlamadError
from llamad.service.checks import check_name


def run(args: argparse.Namespace) -> int:
    """Check the definitions; a line for each problem, 78 if there is any."""
    names = args.names or definition_names(args.config)
    found = {name: _problems(name, args) for name in names}
    if args.json:
        rows = [{"name": name, "problems": [_json(one) for one in problems]} for name, problems in found.items()]
        print(json.dumps(rows, indent=2))
    elif not names:
        print(f"no definitions in {args.config}; `llamad add NAME FILE.gguf` writes one")
    for name, problems in found.items() if not args.json else ():
        for problem in problems:
            print_error(problem)
        if not problems and sys.stdout.isatty():
            print(f"{name}: no problem found")
    return int(ExitCode.CONFIG) if any(found.values()) else 0


def _problems(name: str, args: argparse.Namespace) -> list[LlamadError]:
    try:
        return check_name(name, args.config)
    except ConfigErrors as error:
        return error.problems
    except LlamadError as error:
        return [error]


def _json(problem: LlamadError) -> dict[str, object]:
    where = problem.where
    return {
        "file": where.path if where else None,
        "line": (where.line or None) if where else None,
        "column": (where.column or None) if where else None,
        "what": problem.what,
        "why": problem.why,
        "fix": problem.fix,
    }
