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

_DOCTOR_EXAMPLES = """\
exit status: 0 if nothing is wrong, 1 if there is a warning or an error

examples:
  sudo llamad doctor              all models and the host, errors first
  sudo llamad doctor phi4         one model and the host
  llamad doctor                   without root: says what it could not see
  sudo llamad doctor --json | jq -r '.findings[] | select(.cure != "") | .cure'
"""


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

    _add_models(verbs)

    doctor = verbs.add_parser(
        "doctor", help="what is wrong on this host, why, and the command that cures it; changes nothing",
        formatter_class=argparse.RawDescriptionHelpFormatter, epilog=_DOCTOR_EXAMPLES,
    )  # fmt: skip
    doctor.add_argument("name", metavar="NAME", nargs="?", help="only this model, and the host (default: all)")
    doctor.add_argument("--json", action="store_true", help="one JSON object: /usr/share/llamad/schema/doctor.json")

    listing = verbs.add_parser("list", help="the definitions, and the model files that are there")
    listing.add_argument("--fit", action="store_true", help="what each file would get of this machine now")
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


def _add_models(verbs: argparse._SubParsersAction[_Parser]) -> None:
    """The verbs that get models and judge them."""
    pull = verbs.add_parser(
        "pull",
        help="fetch a model, whole and proved by its hash",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  llamad pull ggml-org/Qwen3-8B-GGUF              its Q4_K_M, below /var/lib/llamad/models
  llamad pull unsloth/Qwen3-8B-GGUF:Q6_K          another quantisation
  llamad pull hf:ggml-org/Qwen3-8B-GGUF/Qwen3-8B-Q8_0.gguf --to /srv/models
  llamad pull https://example.org/model.gguf --sha256 9f86d0...""",
    )
    pull.add_argument("source", metavar="REPO[:QUANT]|hf:REPO/FILE.gguf|URL")
    pull.add_argument("--to", metavar="FOLDER", type=Path, help="a folder, or FOLDER/NAME.gguf")
    pull.add_argument("--sha256", metavar="HASH", default="", help="refuse a file that has another hash")
    pull.add_argument("--revision", metavar="REV", default="", help="a branch, tag or commit; default: main")
    pull.add_argument("--mmproj", action="store_true", help="fetch the projector for pictures or sound as well")
    pull.add_argument("--connections", metavar="N", type=int, default=1, choices=range(1, 17), help="1 to 16")
    pull.add_argument("--token-file", metavar="FILE", help="a file with a token of the hub, for gated repositories")

    verify = verbs.add_parser(
        "verify",
        help="check that model files are whole",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  llamad verify                       every model that a definition names: headers, shards, bounds
  llamad verify phi4 --full           every byte of it, against FILE.sha256 or SHA256SUMS
  llamad verify --full --hub ggml-org/Qwen3-8B-GGUF /srv/models/Qwen3-8B-Q8_0.gguf""",
    )
    verify.add_argument("targets", metavar="NAME|FILE", nargs="*", help="default: all definitions")
    verify.add_argument("--full", action="store_true", help="read every byte and compare its hash")
    verify.add_argument("--hub", metavar="REPO", help="compare with what this repository publishes")
    verify.add_argument("--json", action="store_true", help="one JSON object")

    recommend = verbs.add_parser(
        "recommend",
        help="which well-known models would be worth having here",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  llamad recommend                           for this machine, as it is now
  llamad recommend --gpu "RTX 4090"          for a card that is not here; also --gpu 24GiB
  llamad recommend --gpu 24GiB --allow-cpu --ram 128GiB    a part of the model may be on the CPU
  llamad recommend --cpu --ram 32GiB --ram-bandwidth 80    without a GPU""",
    )
    recommend.add_argument("--gpu", metavar="SIZE|NAME=FREE|CARD", action="append", default=[],
                           help="for this device instead (repeatable)")  # fmt: skip
    recommend.add_argument("--cpu", action="store_true", help="without a GPU")
    recommend.add_argument("--ram", metavar="SIZE", help="with so much host memory instead")
    recommend.add_argument("--allow-cpu", action="store_true", help="a part of a model may run on the CPU")
    recommend.add_argument("--bandwidth", metavar="GB/s", type=float, help="of the device's memory")
    recommend.add_argument("--ram-bandwidth", metavar="GB/s", type=float, help="of the host's memory")
    recommend.add_argument("--top", metavar="N", type=int, default=10, help="so many lines; default: 10")
    recommend.add_argument("--all", action="store_true", help="all that fit")
    recommend.add_argument("--json", action="store_true", help="one JSON object, of every model")
