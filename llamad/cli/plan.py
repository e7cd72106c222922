"""`llamad plan NAME|FILE`: every byte and every flag, with the reason; nothing is started."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from llamad.cli.unprivileged import rerun_in_sandbox
from llamad.config.definition import Definition
from llamad.config.kept import load_host_kept, load_kept
from llamad.config.loaded import Loaded
from llamad.config.names import check_name
from llamad.errors import UsageError
from llamad.hardware.device import Device
from llamad.service.facts import CACHE_NAME as FACTS_NAME
from llamad.service.facts import FactsReader
from llamad.service.paths import RUNTIME_ROOT, STATE_ROOT
from llamad.service.planner import Made, PlanMaker
from llamad.store import own_folder
from llamad.supervision.learned import LearnedFile
from llamad.units import parse_size

if TYPE_CHECKING:
    from llamad.service.onlooker import Onlooker
    from llamad.service.sharing import Sharing

CACHE_ROOT = Path("/var/cache/llamad")
BARE = ".bare"
"""What stands for the name of a model without a definition. No definition is named so."""


def run(args: argparse.Namespace) -> int:
    """Plan for this machine's devices, or for those of `--gpu`; print text or one JSON object."""
    what_if = [parse_device(text) for text in args.gpu]
    loaded = load_target(args.model, args.config)
    if not what_if:
        cache = CACHE_ROOT / loaded.name
        code = rerun_in_sandbox(_same_words(args), f"llamad@{loaded.name}.service", cache)
        if code is not None:
            return code
    made = make(loaded, what_if, computed=args.computed)
    if args.compare is not None:
        other = make(load_target(args.compare, args.config), what_if, computed=args.computed)
        _print_both((args.model, args.compare), (made, other), as_json=args.json)
    else:
        print_plan(made, as_json=args.json)
    return 0


def _print_both(names: tuple[str, str], made: tuple[Made, Made], *, as_json: bool) -> None:
    first, second = made
    if as_json:
        print(json.dumps([one.plan.to_json(list(one.args)) for one in made], indent=2))
        return
    from llamad.planning.compare import compare

    print(compare(names, (first.plan, second.plan), (first.args, second.args)), end="")


def make(loaded: Loaded, what_if: list[Device], *, computed: bool) -> Made:
    """The plan, leaving nothing behind but what the model's or the user's own cache keeps."""
    with contextlib.ExitStack() as stack:
        cache = cache_of(loaded.name) or _scratch(stack)
        onlooker = None if what_if else _onlooker(loaded.name)
        maker = PlanMaker(
            loaded,
            engine=RUNTIME_ROOT / loaded.name / "engine",
            cache=cache,
            read=FactsReader(cache / FACTS_NAME),
            scratch=None if what_if or computed else _scratch(stack),
            sharing=_sharing(loaded, cache, onlooker) if onlooker else None,
            onlooker=onlooker,
            learned=LearnedFile(STATE_ROOT / loaded.name),
            rpc_in_use=bool(loaded.definition.placement.rpc) and _runs(loaded.name),
        )
        return maker.make(what_if, computed=computed)


def _runs(name: str) -> bool:
    """Whether the model has a llama-server now."""
    from llamad.service.status import read_status  # seldom

    status = read_status(name, RUNTIME_ROOT)
    return status is not None and status.get("state") not in ("waiting", "backoff", "failed", "stopped")


def cache_of(name: str) -> Path | None:
    """Where to keep what was found out about a model: with its service if we may, else with this user's own caches.

    Never with the service as root, who must not read what others may write. None where nothing can be kept.
    """
    served = CACHE_ROOT / name
    if os.geteuid() != 0 and os.access(served, os.W_OK):
        return served
    return own_folder(os.environ, ".plan", name)


def _scratch(stack: contextlib.ExitStack) -> Path:
    import tempfile  # seldom needed, and it takes as long as the plan

    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llamad-plan-")))


def _onlooker(name: str) -> Onlooker:
    """What the ledger has, as far as everybody may see."""
    from llamad.service.onlooker import Onlooker
    from llamad.service.overview import leases

    return Onlooker(name, leases())


def _sharing(loaded: Loaded, cache: Path, onlooker: Onlooker) -> Sharing | None:
    """With whom the devices are shared; None for a file that is no definition."""
    if not loaded.digest:
        return None
    from llamad.service.sharing import Sharing

    return Sharing(loaded.file.parent, cache, lambda: onlooker.others)


def print_plan(made: Made, *, as_json: bool) -> None:
    """As `llamad plan` prints it."""
    if as_json:
        print(json.dumps(made.plan.to_json(list(made.args)), indent=2))
    else:
        from llamad.planning.explain import explain

        print(explain(made.plan, made.args), end="")


def load_target(word: str, root: Path) -> Loaded:
    """A definition by name or path, or one that names nothing but a GGUF file."""
    if word.endswith(".gguf"):
        return bare(Path(word).absolute(), root)
    if word.endswith(".toml") or "/" in word:
        from llamad.config.load import load_path

        return load_path(Path(word).absolute(), root)
    check_name(word, root)
    cache = cache_of(word)
    return load_kept(word, root, cache / "definition.json" if cache else None)


def bare(file: Path, root: Path) -> Loaded:
    """A definition that names a file and leaves the rest to the planner; `allow_cpu` as everywhere is false."""
    cache = cache_of(BARE)
    host = load_host_kept(root, cache / "host.json" if cache else None)
    return Loaded(BARE, file, Definition(model=str(file)), host, {}, frozenset(), (), "")


def parse_device(text: str) -> Device:
    """A device of `--gpu NAME=FREE`. Raises UsageError."""
    name, _, size = text.partition("=")
    try:
        free_bytes = parse_size(size)
    except ValueError as error:
        raise UsageError(
            f"--gpu {text}", why=str(error), fix="write for example --gpu CUDA0=15.6GiB"
        ) from None
    if not name or not name[-1].isdigit() or not name[0].isalpha():
        fix = "write llama-server's name for the device: CUDA0, ROCm0, Vulkan0, RPC0"
        raise UsageError(f"--gpu {text}", why=f'"{name}" names no device', fix=fix)
    return Device(name, free_bytes, free_bytes, source="what-if")


def _same_words(args: argparse.Namespace) -> list[str]:
    words = ["--config", str(args.config.absolute()), "plan", _absolute(args.model)]
    words += ["--json"] if args.json else []
    words += ["--computed"] if args.computed else []
    words += ["--compare", _absolute(args.compare)] if args.compare is not None else []
    return words


def _absolute(word: str) -> str:
    """A file as seen from anywhere; a name stays a name."""
    return word if "/" not in word and not word.endswith(".gguf") else str(Path(word).absolute())
