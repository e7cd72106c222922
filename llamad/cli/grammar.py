"""The grammar of the command line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from llamad import __version__
from llamad.cli.main import config_root
from llamad.config.names import DEFAULT_ROOT
from llamad.errors import ExitCode

_EXPORT_EXAMPLES = """\
examples:
  llamad export haproxy --hosts gpu1,gpu2 --listen 0.0.0.0:8000 > /etc/haproxy/llamad.cfg
  llamad export nginx --hosts gpu1:8081,gpu2:8081 --model phi4 > /etc/nginx/conf.d/llamad.conf
  llamad export prometheus --hosts gpu1,gpu2,gpu2:8081
  llamad export litellm --hosts gpu1,gpu2 --model phi4,qwen3 > config.yaml
"""


class _Parser(argparse.ArgumentParser):
    """argparse exits with 2; sysexits has a code for wrong usage."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.print_usage(sys.stderr)
        print(f"{self.prog}: {message}", file=sys.stderr)
        sys.exit(int(ExitCode.USAGE))


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

    export = verbs.add_parser(
        "export",
        help="configuration for a load balancer, gateway or Prometheus over several hosts",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_EXPORT_EXAMPLES,
    )
    export.add_argument("kind", choices=("haproxy", "nginx", "prometheus", "litellm"))
    export.add_argument("--hosts", metavar="HOST[:PORT],...", action="append", required=True,
                        help="where llamad answers; port 8080, the router's, by default (repeatable)")  # fmt: skip
    export.add_argument("--model", metavar="NAME,...", action="append", default=[],
                        help="the models that are served there (default: all definitions of this host)")  # fmt: skip
    export.add_argument("--listen", metavar="HOST:PORT", default="127.0.0.1:8000",
                        help="where HAProxy or nginx listens (default: 127.0.0.1:8000)")  # fmt: skip

    export.add_argument("--tls-ca", metavar="FILE|system", default="",
                        help="the hosts speak HTTPS, with certificates of this authority")  # fmt: skip

    forget = verbs.add_parser("forget", help="forget what lack of memory taught about a model; it is tried again")
    forget.add_argument("name", metavar="NAME")

    listing = verbs.add_parser("list", help="the definitions, and the model files that are there")
    listing.add_argument("--json", action="store_true", help="one JSON object")
    return parser
