"""The command line: words in, exit code out, and the one place where an error becomes text.

Verbs are imported when they are used, because `llamad plan` should feel like `ls`; and `llamad serve NAME`, as the
unit runs it, is understood without the parser, because requests wait for it.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from pathlib import Path

from llamad.config.keys import shown
from llamad.config.names import DEFAULT_ROOT
from llamad.errors import ConfigErrors, LlamadError


def entry() -> None:
    """The console script. A verb leaves no garbage worth a tenth of its time; the daemon collects again."""
    gc.disable()
    sys.exit(main(sys.argv[1:]))


def main(argv: list[str]) -> int:
    """Run one verb; returns its exit code. Never raises for an expected failure."""
    try:
        code = _run(argv)
        sys.stdout.flush()
    except LlamadError as error:
        print_error(error)
        return int(error.exit_code)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; Python must not complain about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def config_root() -> Path:
    """The folder of definitions where no option names another."""
    return Path(os.environ.get("LLAMAD_CONFIG", DEFAULT_ROOT))


def _run(argv: list[str]) -> int:
    match argv:
        case ["serve", name] if not name.startswith("-"):
            from llamad.cli.serve import serve_model

            return serve_model(name, config_root())
        case ["serve"]:
            from llamad.cli.serve import serve_all

            return serve_all(config_root())
    from llamad.cli.grammar import make_parser

    args = make_parser().parse_args(argv)
    verb = importlib.import_module(f"llamad.cli.{args.verb}")
    code: int = verb.run(args)
    return code


def print_error(error: LlamadError) -> None:
    """`llamad: what`, then why and fix on lines of their own; problems of a file as compilers print them."""
    if isinstance(error, ConfigErrors) or error.where is not None:
        print(for_terminal(str(error)), file=sys.stderr)
        return
    print(for_terminal(f"llamad: {error.what}"), file=sys.stderr)
    if error.why:
        print(for_terminal(f"  why: {error.why}"), file=sys.stderr)
    if error.fix:
        print(for_terminal(f"  fix: {error.fix}"), file=sys.stderr)


def for_terminal(text: str) -> str:
    """Lines with nothing that a terminal would obey: names of files and answers of servers are in errors."""
    return "\n".join(shown(line, len(line)) for line in text.split("\n"))
