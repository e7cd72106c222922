"""`llamad add NAME FILE.gguf`: write a definition, show its plan."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from llamad.cli import plan as plan_verb
from llamad.cli.main import print_error
from llamad.config.access import access_problem
from llamad.config.names import check_name
from llamad.config.write import definition_text, free_listen, write_definition
from llamad.errors import LlamadError
from llamad.gguf.read import read_facts


def run(args: argparse.Namespace) -> int:
    """Write `/etc/llamad/NAME.toml`, never over another; what the service could not read is refused before."""
    model = str(Path(args.file).absolute())
    check_name(args.name, args.config)
    refused = access_problem(model)
    if refused is not None:
        raise refused
    read_facts(model)
    listen = args.listen or free_listen(args.config)
    text = definition_text(args.name, model, listen, allow_cpu=args.allow_cpu)
    path = write_definition(args.name, text, args.config)
    print(f"wrote {path}")
    if not args.no_plan:
        _show_plan(args)
    print(f"start it now and at every boot: systemctl enable --now llamad@{args.name}")
    return 0


def _show_plan(args: argparse.Namespace) -> None:
    """The plan is a courtesy here: a machine without its GPU yet is no reason to undo the definition."""
    words = argparse.Namespace(model=args.name, config=args.config, gpu=[], computed=False, json=False)
    sys.stdout.flush()
    try:
        code = plan_verb.run(words)
    except LlamadError as error:
        print_error(error)
        code = int(error.exit_code)
    if code:
        print(
            f"the definition is written, but it cannot be started as things are (see above): llamad plan {args.name}"
        )
