"""The grammar of the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from llamad import __version__
from llamad.cli.main import config_root
from llamad.config.names import DEFAULT_ROOT
from llamad.errors import ExitCode
from llamad.units import parse_duration


class _Parser(argparse.ArgumentParser):
    """argparse exits with 2; sysexits has a code for wrong usage."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.print_usage(sys.stderr)
        print(f"{self.prog}: {message}", file=sys.stderr)
        sys.exit(int(ExitCode.USAGE))


if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[_Parser]


def make_parser() -> argparse.ArgumentParser:
    """The whole grammar of the command line."""
    parser = _Parser(prog="llamad", description="llama.cpp's llama-server as a proper Linux service.")
    parser.add_argument("--version", action="version", version=f"llamad {__version__}")
    folder_help = f"the folder of definitions (default: {DEFAULT_ROOT})"
    parser.add_argument("--config", metavar="DIR", type=Path, default=config_root(), help=folder_help)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Parser)

    serve = verbs.add_parser("serve", help="serve a model, or all of them behind one address (what the units run)")
    serve.add_argument("name", metavar="NAME", nargs="?", help="default: all, chosen by the request's model")

    plan = verbs.add_parser("plan", help="show every byte and every flag, and why; nothing is started")
    plan.add_argument("model", metavar="NAME|FILE.toml|FILE.gguf")
    plan.add_argument("--json", action="store_true", help="one JSON object")
    plan.add_argument(
        "--computed", action="store_true", help="from the formulas alone; do not ask llama-server"
    )
    plan.add_argument("--gpu", "--what-if", metavar="NAME=FREE", action="append", default=[],
                      help="plan for this device instead, for example CUDA0=15.6GiB (repeatable)")  # fmt: skip
    plan.add_argument(
        "--compare", metavar="NAME|FILE", help="show this other plan beside it, and what differs"
    )

    check = verbs.add_parser(
        "check", help="check definitions: file:line:column, what is wrong, what to write"
    )
    check.add_argument("names", metavar="NAME", nargs="*", help="default: all")

    show = verbs.add_parser("show", help="the merged definition, with the origin of each value")
    show.add_argument("name", metavar="NAME")
    show.add_argument("--json", action="store_true", help="one JSON object")

    status = verbs.add_parser("status", help="what is served, where, and since when")
    status.add_argument("names", metavar="NAME", nargs="*", help="default: all")
    status.add_argument("--json", action="store_true", help="one JSON object")

    add = verbs.add_parser("add", help="write a new definition and show its plan")
    add.add_argument("name", metavar="NAME")
    add.add_argument("file", metavar="FILE.gguf")
    add.add_argument("--listen", metavar="ADDRESS", help="default: a free port of 127.0.0.1 from 8081 up")
    add.add_argument("--allow-cpu", action="store_true", help="the model may run on the CPU")
    add.add_argument("--no-plan", action="store_true", help="write the definition without showing the plan")

    explain = verbs.add_parser("explain", help="the story of a model's memory: planned, real, learned, lost")
    explain.add_argument("name", metavar="NAME")
    explain.add_argument("--json", action="store_true", help="one JSON object")

    forget = verbs.add_parser("forget", help="forget what lack of memory taught about a model; it is tried again")
    forget.add_argument("name", metavar="NAME")

    _add_bench(verbs)
    _add_tune(verbs)

    listing = verbs.add_parser("list", help="the definitions, and the model files that are there")
    listing.add_argument("--json", action="store_true", help="one JSON object")
    return parser


def _add_bench(verbs: Verbs) -> None:
    bench = verbs.add_parser(
        "bench", help="measure how fast a model reads, writes and begins to answer",
        description="Measure a model through its address; one that does not run is started for it alone.",
        epilog=_BENCH_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    bench.add_argument("name", metavar="NAME")
    bench.add_argument("--prompt", metavar="TOKENS", type=_count(1 << 24), action="append", default=[],
                       help="length of the prompts, repeatable (default: 512, 2048, 8192)")  # fmt: skip
    bench.add_argument("--concurrency", metavar="N", type=_count(1024), action="append", default=[],
                       help="requests at once, repeatable (default: 1, and one a slot)")  # fmt: skip
    bench.add_argument("--generate", metavar="TOKENS", type=_count(1 << 20), default=128,
                       help="length of the answers (default: 128)")  # fmt: skip
    bench.add_argument("--repeats", metavar="N", type=_count(1000), default=5, help="rounds of each (default: 5)")
    _add_measuring(bench, "10min")
    bench.add_argument("-o", "--output", metavar="FILE", help="write the result there, as JSON")


def _add_tune(verbs: Verbs) -> None:
    tune = verbs.add_parser(
        "tune", help="try settings, measure them, and say what is faster",
        description="Try settings of [placement] that nobody wrote down, each in an instance of its own.",
        epilog=_TUNE_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    tune.add_argument("name", metavar="NAME")
    tune.add_argument("--for", dest="goal", choices=("throughput", "latency", "prompt"), default="throughput",
                      help="what is to be faster: all requests together, one alone, or reading a prompt")  # fmt: skip
    tune.add_argument("--apply", action="store_true", help="write what is better to NAME.toml.d/50-tune.toml")
    tune.add_argument("--force", action="store_true", help="replace a 50-tune.toml that was written by hand")
    tune.add_argument("--stop", action="store_true", help="stop the running unit meanwhile")
    tune.add_argument("--may-change", metavar="KEY", action="append", default=[],
                      help="a key of [placement] to try although it is written down, repeatable")  # fmt: skip
    tune.add_argument("--smaller-context", action="store_true", help="the context may fall, down to context_min")
    tune.add_argument("--context-min", metavar="TOKENS", type=_count(1 << 30), default=0,
                      help="no candidate may have a smaller context")  # fmt: skip
    tune.add_argument("--quantised-cache", action="store_true",
                      help="try kv_cache q8_0 as well, which changes answers a little")  # fmt: skip
    tune.add_argument("--repeats", metavar="N", type=_count(100, least=3), default=3,
                      help="rounds of each candidate, at least 3 (default: 3)")  # fmt: skip
    _add_measuring(tune, "30min")


def _add_measuring(verb: argparse.ArgumentParser, timeout: str) -> None:
    verb.add_argument("--timeout", metavar="TIME", type=_duration, default=parse_duration(timeout),
                      help=f"measure no longer than this (default: {timeout})")  # fmt: skip
    if timeout == "10min":
        verb.add_argument("--key-file", metavar="FILE", help="a file with an API key of the model; - is stdin")
    verb.add_argument("--json", action="store_true", help="one JSON object")


def _count(most: int, least: int = 1) -> Callable[[str], int]:
    def count(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no number from {least} to {most}")
        return int(text)

    return count


def _duration(text: str) -> float:
    try:
        found = parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not 1 <= found <= 7 * 86_400:
        raise argparse.ArgumentTypeError("between 1s and 7d")
    return found


_BENCH_EXAMPLES = """\
examples:
  llamad bench phi4                                 all lengths, alone and with all slots busy
  llamad bench phi4 --prompt 4096 --concurrency 8   one case
  llamad bench phi4 -o before.json                  for later; the last results are kept anyway
"""
_TUNE_EXAMPLES = """\
examples:
  llamad tune phi4                                  what is faster with all slots busy; changes nothing
  llamad tune phi4 --for latency --stop --apply     stop the service, find, write it down, start it again
  rm /etc/llamad/phi4.toml.d/50-tune.toml           undo it
"""
