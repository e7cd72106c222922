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
