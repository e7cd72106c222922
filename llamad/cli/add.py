"""`llamad add NAME FILE.gguf`: write a definition, show its plan."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from llamad.cli import plan as plan_verb
from llamad.cli.main import print_error
from llamad.cli.rehearsal import plan_of
from llamad.config.access import access_problem
from llamad.config.compose import choices_of, definition_text, parse_assignment
from llamad.config.keys import Path as KeyPath
from llamad.config.load import validate
from llamad.config.names import check_name
from llamad.config.staged import staged
from llamad.config.write import free_listen, port_in_use, require_free_name, write_definition
from llamad.errors import ConfigErrors, LlamadError
from llamad.gguf.read import read_facts


def run(args: argparse.Namespace) -> int:
    """Write `/etc/llamad/NAME.toml`, never over another; what the service could not read is refused before."""
    model = str(Path(args.file).absolute())
    check_name(args.name, args.config)
    require_free_name(args.name, args.config)
    refused = access_problem(model)
    if refused is not None:
        raise refused
    read_facts(model)
    values = _values(args, model)
    _require_valid(args.name, values)
    text = definition_text(args.name, values)
    if not args.no_plan:
        with staged(args.config, {args.config / f"{args.name}.toml": text.encode()}) as folder:
            plan, _ = plan_of(args.name, folder)
        text = definition_text(args.name, values, choices_of(plan)) if plan else text
    path = write_definition(args.name, text, args.config)
    print(f"wrote {path}")
    if not args.no_plan:
        _show_plan(args)
    print(f"start it now and at every boot: llamad enable {args.name}")
    return 0


def _values(args: argparse.Namespace, model: str) -> dict[KeyPath, object]:
    """What was asked for, by key; an option is short for its key."""
    options = {
        "aliases": args.alias or None,
        "listen": args.listen,
        "api_keys_file": args.api_keys_file and str(Path(args.api_keys_file).absolute()),
    }
    found: dict[KeyPath, object] = {("model",): model}
    found |= {(key,): value for key, value in options.items() if value is not None}
    for key in ("context", "parallel", "kv_cache", "memory", "gpus", "start"):
        if (value := getattr(args, key)) is not None:
            found |= dict([parse_assignment(f"{key}={_list_of_gpus(value) if key == 'gpus' else value}")])
    if args.allow_cpu:
        found["placement", "allow_cpu"] = True
    found |= dict(parse_assignment(word) for word in args.assignments)
    found.setdefault(("listen",), free_listen(args.config, port_in_use))
    return found


def _list_of_gpus(text: str) -> str:
    """`0,1` and `GPU-5c1f` as TOML writes them."""
    if text == "auto" or text.startswith("["):
        return text
    words = (word.strip() for word in text.split(","))
    return f"[{', '.join(word if word.isdecimal() else repr(word) for word in words)}]"


def _require_valid(name: str, values: dict[KeyPath, object]) -> None:
    """Raise what is wrong with the values, in the words of the command line: there is no file to point into."""
    try:
        validate(definition_text(name, values).encode(), Path(f"{name}.toml"))
    except LlamadError as error:
        for problem in error.problems if isinstance(error, ConfigErrors) else [error]:
            problem.where = None
        raise


def _show_plan(args: argparse.Namespace) -> None:
    """The plan is a courtesy here: a machine without its GPU yet is no reason to undo the definition."""
    words = argparse.Namespace(model=args.name, config=args.config, gpu=[], computed=False, json=False, compare=None)
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
