"""The grammar of the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llamad import __version__
from llamad.cli.main import config_root
from llamad.config.names import DEFAULT_ROOT
from llamad.errors import ExitCode
from llamad.units import parse_duration

Verbs = Callable[..., argparse.ArgumentParser]


class _Parser(argparse.ArgumentParser):
    """argparse exits with 2; sysexits has a code for wrong usage."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.print_usage(sys.stderr)
        print(f"{self.prog}: {message}", file=sys.stderr)
        sys.exit(int(ExitCode.USAGE))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """argparse of Python 3.11 takes a list of words only where it stands before all options."""
        found, rest = super().parse_known_args(args, namespace)
        if hasattr(found, "assignments"):
            found.assignments += [word for word in rest if not word.startswith("-")]
            rest = [word for word in rest if word.startswith("-")]
        return found, rest


def make_parser() -> argparse.ArgumentParser:
    """The whole grammar of the command line."""
    parser = _Parser(
        prog="llamad",
        description="llama.cpp's llama-server as a proper Linux service.",
        epilog="`llamad VERB --help` has examples; man llamad has the rest.",
    )
    parser.add_argument("--version", action="version", version=f"llamad {__version__}")
    folder_help = f"the folder of definitions (default: {DEFAULT_ROOT})"
    parser.add_argument("--config", metavar="DIR", type=Path, default=config_root(), help=folder_help)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Parser)

    def add(verb: str, words: str, *examples: str) -> argparse.ArgumentParser:
        return verbs.add_parser(
            verb,
            help=words,
            description=f"{words[0].upper()}{words[1:]}.",
            epilog="\n".join(("examples:", *(f"  {line}" for line in examples))),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    _add_writers(add)
    _add_unit_verbs(add)
    _add_views(add)
    _add_planners(add)
    _add_models(add)
    _add_measurers(add)
    _add_export(add)
    return parser


def verbs_of() -> dict[str, argparse.ArgumentParser]:
    """Each verb with its part of the grammar."""
    [found] = [one.choices for one in make_parser()._actions if isinstance(one, argparse._SubParsersAction)]
    return dict(found)


def _add_writers(verb: Verbs) -> None:
    """The verbs that write definitions."""
    add = verb(
        "add",
        "write a new definition and show its plan",
        "llamad add phi4 /var/lib/llamad/models/phi-4-Q4_K_M.gguf",
        "llamad add phi4 phi-4.gguf --context 16384 --alias gpt-4o-mini --gpus 0",
        "llamad add phi4 phi-4.gguf context_min=8192 idle.keep_alive=1h",
    )
    add.add_argument("name", metavar="NAME")
    add.add_argument("file", metavar="FILE.gguf", help="the model file; of a split model the first shard")
    set_help = "any key of llamad.toml(5), for example idle.keep_alive=1h; most need no table"
    add.add_argument("assignments", metavar="KEY=VALUE", nargs="*", help=set_help)
    add.add_argument("--context", metavar="TOKENS", help='tokens, or "auto" (the default): as much as fits')
    add.add_argument("--gpus", metavar="GPUS", help="indexes, UUIDs or PCI addresses: 0,1 (default: auto)")
    add.add_argument("--listen", metavar="ADDRESS", help="default: a free port of 127.0.0.1 from 8081 up")
    alias_help = "another name that requests may ask for (repeatable)"
    add.add_argument("--alias", metavar="NAME", action="append", default=[], help=alias_help)
    add.add_argument("--api-keys-file", metavar="FILE", help="API keys, one a line")
    add.add_argument("--parallel", metavar="SLOTS", help="requests at the same time (default: auto)")
    add.add_argument("--kv-cache", metavar="TYPE", help="f16 (the default), q8_0, ... or auto")
    add.add_argument("--memory", metavar="SIZE", help='the most of each device: 10GiB, 60%% (default: auto)')
    add.add_argument("--start", metavar="WHEN", help="behind the router: on-demand (the default), always, manual")
    add.add_argument("--allow-cpu", action="store_true", help="the model may run on the CPU")
    add.add_argument("--no-plan", action="store_true", help="write the definition without making a plan")

    edit = verb(
        "edit",
        "edit a definition: checked before it is put in its place",
        "llamad edit phi4",
        "llamad edit phi4 --drop-in 10-lan      # /etc/llamad/phi4.toml.d/10-lan.toml, new or not",
        "llamad edit llamad                     # the settings of the host, llamad.toml",
    )
    edit.add_argument("name", metavar="NAME", help='a definition, or "llamad" for the settings of the host')
    edit.add_argument("--drop-in", metavar="FILE", help="edit this file of NAME.toml.d instead, new or not")
    edit.add_argument("--no-plan", action="store_true", help="check without making a plan")

    remove = verb(
        "remove",
        "stop a model and remove its definition; the model file stays",
        "llamad remove phi4",
        "llamad remove phi4 --yes --purge       # and what was learned and cached",
    )
    remove.add_argument("name", metavar="NAME")
    remove.add_argument("--yes", action="store_true", help="do not ask")
    remove.add_argument("--purge", action="store_true", help="keep no backup, delete what was learned and cached too")
    remove.add_argument("--no-backup", action="store_true", help="delete the definition instead of renaming it")


def _add_unit_verbs(verb: Verbs) -> None:
    """The verbs that start things, or have units started."""
    enable = verb(
        "enable",
        "check a definition and serve it, now and after every boot",
        "llamad enable phi4                     # systemctl enable --now llamad@phi4, checked first",
    )
    enable.add_argument("name", metavar="NAME")
    disable = verb("disable", "stop a model, now and at boot; its definition stays", "llamad disable phi4")
    disable.add_argument("name", metavar="NAME")
    load = verb(
        "load",
        "have a model loaded now, by the router or its unit; returns when it serves",
        "llamad load phi4",
    )
    load.add_argument("name", metavar="NAME")
    unload = verb(
        "unload",
        "have a model unloaded now, by the router or its unit; requests are finished first",
        "llamad unload phi4",
    )
    unload.add_argument("name", metavar="NAME")
    serve = verb(
        "serve",
        "serve a model, or all of them behind one address (what the units run)",
        "llamad serve phi4                      # one model, in the foreground",
        "llamad serve                           # all definitions behind one address",
    )
    serve.add_argument("name", metavar="NAME", nargs="?", help="default: all, chosen by the request's model")


def _add_views(verb: Verbs) -> None:
    """The verbs that show how things are."""
    status = verb(
        "status",
        "how each model is: state, context, memory, slots, tokens/s, restarts, last cause",
        "llamad status",
        "llamad status phi4 || echo it is not ready",
        "llamad status --watch                  # again every 2 s",
        "llamad status --json | jq -r '.models[] | [.name, .state] | @tsv'",
    )
    status.add_argument("names", metavar="NAME", nargs="*", help="default: all")
    status.add_argument("--json", action="store_true", help="one JSON object")
    watch_help = "again every S seconds (default: 2) until interrupted; with --json an object a line"
    status.add_argument("--watch", metavar="S", nargs="?", type=_seconds, const=2.0, help=watch_help)

    top = verb(
        "top",
        "a live view of models and memory, with keys to sort, load and unload",
        "llamad top",
        "llamad top --every 5",
        "llamad top --once                      # the first picture as text",
    )
    top.add_argument("--every", metavar="S", type=_seconds, default=1.0, help="seconds between looks (default: 1)")
    top.add_argument("--once", action="store_true", help="print one picture and end")

    doctor = verb(
        "doctor",
        "what is wrong on this host, why, and the command that cures it; changes nothing",
        "llamad doctor                          # all models and the host, errors first; as root it sees all",
        "llamad doctor phi4                     # one model and the host; exit status 1 if anything is wrong",
        """llamad doctor --json | jq -r '.findings[] | select(.cure != "") | .cure'""",
    )
    doctor.add_argument("name", metavar="NAME", nargs="?", help="only this model, and the host (default: all)")
    doctor.add_argument("--json", action="store_true", help="one JSON object")

    explain = verb(
        "explain", "the story of a model's memory: planned, real, learned, lost", "llamad explain phi4"
    )
    explain.add_argument("name", metavar="NAME")
    explain.add_argument("--json", action="store_true", help="one JSON object")

    listing = verb(
        "list",
        "the definitions, and the model files that are there",
        "llamad list",
        "llamad list --fit                      # and what each file would get of this machine now",
        "llamad list --json | jq -r '.files[].path'",
    )
    listing.add_argument("--fit", action="store_true", help="what each file would get of this machine now")
    listing.add_argument("--json", action="store_true", help="one JSON object")

    show = verb("show", "the merged definition, with the origin of each value", "llamad show phi4")
    show.add_argument("name", metavar="NAME")
    show.add_argument("--json", action="store_true", help="one JSON object")


def _add_planners(verb: Verbs) -> None:
    """The verbs about what would be started, and what was learned of starts."""
    plan = verb(
        "plan",
        "show every byte and every flag, and why; nothing is started",
        "llamad plan phi4",
        "llamad plan phi-4-Q4_K_M.gguf --what-if CUDA0=23.5GiB   # a card that is not there",
        "llamad plan phi4 --compare phi4-q8",
    )
    plan.add_argument("model", metavar="NAME|FILE.toml|FILE.gguf")
    plan.add_argument("--json", action="store_true", help="one JSON object")
    computed_help = "from the formulas alone; do not ask llama-server"
    plan.add_argument("--computed", action="store_true", help=computed_help)
    gpu_help = "plan for this device instead, for example CUDA0=15.6GiB (repeatable)"
    plan.add_argument("--gpu", "--what-if", metavar="NAME=FREE", action="append", default=[], help=gpu_help)
    compare_help = "show this other plan beside it, and what differs"
    plan.add_argument("--compare", metavar="NAME|FILE", help=compare_help)

    check = verb(
        "check",
        "check definitions: file:line:column, what is wrong, what to write",
        "llamad check                           # all",
        "llamad check phi4 && systemctl reload llamad@phi4",
    )
    check.add_argument("names", metavar="NAME", nargs="*", help="default: all")
    check.add_argument("--json", action="store_true", help="one JSON array")

    forget = verb(
        "forget", "forget what lack of memory taught about a model; it is tried again", "llamad forget phi4"
    )
    forget.add_argument("name", metavar="NAME")


def _add_models(verb: Verbs) -> None:
    """The verbs that get models and judge them."""
    pull = verb(
        "pull",
        "fetch a model, whole and proved by its hash",
        "llamad pull ggml-org/Qwen3-8B-GGUF              # its Q4_K_M, below /var/lib/llamad/models",
        "llamad pull unsloth/Qwen3-8B-GGUF:Q6_K          # another quantisation",
        "llamad pull hf:ggml-org/Qwen3-8B-GGUF/Qwen3-8B-Q8_0.gguf --to /srv/models",
        "llamad pull https://example.org/model.gguf --sha256 9f86d0...",
    )
    pull.add_argument("source", metavar="REPO[:QUANT]|hf:REPO/FILE.gguf|URL")
    pull.add_argument("--to", metavar="FOLDER", type=Path, help="a folder, or FOLDER/NAME.gguf")
    pull.add_argument("--sha256", metavar="HASH", default="", help="refuse a file that has another hash")
    pull.add_argument("--revision", metavar="REV", default="", help="a branch, tag or commit; default: main")
    pull.add_argument("--mmproj", action="store_true", help="fetch the projector for pictures or sound as well")
    pull.add_argument("--connections", metavar="N", type=int, default=1, choices=range(1, 17), help="1 to 16")
    pull.add_argument("--token-file", metavar="FILE", help="a file with a token of the hub, for gated repositories")

    verify = verb(
        "verify",
        "check that model files are whole",
        "llamad verify                          # every model that a definition names: headers, shards, bounds",
        "llamad verify phi4 --full              # every byte of it, against FILE.sha256 or SHA256SUMS",
        "llamad verify --full --hub ggml-org/Qwen3-8B-GGUF /srv/models/Qwen3-8B-Q8_0.gguf",
    )
    verify.add_argument("targets", metavar="NAME|FILE", nargs="*", help="default: all definitions")
    verify.add_argument("--full", action="store_true", help="read every byte and compare its hash")
    verify.add_argument("--hub", metavar="REPO", help="compare with what this repository publishes")
    verify.add_argument("--json", action="store_true", help="one JSON object")

    recommend = verb(
        "recommend",
        "which well-known models would be worth having here",
        "llamad recommend                       # for this machine, as it is now",
        'llamad recommend --gpu "RTX 4090"      # for a card that is not here; also --gpu 24GiB',
        "llamad recommend --gpu 24GiB --allow-cpu --ram 128GiB    # a part of the model may be on the CPU",
        "llamad recommend --cpu --ram 32GiB --ram-bandwidth 80    # without a GPU",
    )
    gpu_help = "for this device instead (repeatable)"
    recommend.add_argument("--gpu", metavar="SIZE|NAME=FREE|CARD", action="append", default=[], help=gpu_help)
    recommend.add_argument("--cpu", action="store_true", help="without a GPU")
    recommend.add_argument("--ram", metavar="SIZE", help="with so much host memory instead")
    recommend.add_argument("--allow-cpu", action="store_true", help="a part of a model may run on the CPU")
    recommend.add_argument("--bandwidth", metavar="GB/s", type=float, help="of the device's memory")
    recommend.add_argument("--ram-bandwidth", metavar="GB/s", type=float, help="of the host's memory")
    recommend.add_argument("--top", metavar="N", type=_count(1000), default=10, help="so many lines; default: 10")
    recommend.add_argument("--all", action="store_true", help="all that fit")
    recommend.add_argument("--json", action="store_true", help="one JSON object, of every model")


def _add_measurers(verb: Verbs) -> None:
    """The verbs that measure."""
    bench = verb(
        "bench",
        "measure how fast a model reads, writes and begins to answer",
        "llamad bench phi4                                 # all lengths, alone and with all slots busy",
        "llamad bench phi4 --prompt 4096 --concurrency 8   # one case",
        "llamad bench phi4 -o before.json                  # for later; the last results are kept anyway",
    )
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

    tune = verb(
        "tune",
        "try settings, measure them, and say what is faster",
        "llamad tune phi4                                  # what is faster with all slots busy; changes nothing",
        "llamad tune phi4 --for latency --stop --apply     # stop the service, find, write it down, start it again",
    )
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


def _add_export(verb: Verbs) -> None:
    export = verb(
        "export",
        "configuration for a load balancer, gateway or Prometheus over several hosts",
        "llamad export haproxy --hosts gpu1,gpu2 --listen 0.0.0.0:8000 > /etc/haproxy/llamad.cfg",
        "llamad export nginx --hosts gpu1:8081,gpu2:8081 --model phi4 > /etc/nginx/conf.d/llamad.conf",
        "llamad export prometheus --hosts gpu1,gpu2,gpu2:8081",
        "llamad export litellm --hosts gpu1,gpu2 --model phi4,qwen3 > config.yaml",
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


def _seconds(text: str) -> float:
    """At least a tenth of a second: looking costs too."""
    value = float(text)
    if not 0.1 <= value <= 86_400:
        raise argparse.ArgumentTypeError("write a number of seconds from 0.1 to 86400")
    return value
