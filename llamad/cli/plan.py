"""`llamad plan NAME|FILE`: every byte and every flag, with the reason; nothing is started."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from llamad.cli.unprivileged import rerun_in_sandbox
from llamad.config.definition import Definition
from llamad.config.load import Loaded, load_definition, load_host, load_path
from llamad.errors import UsageError
from llamad.hardware.device import Device
from llamad.planning.explain import explain
from llamad.service.planner import Made, PlanMaker
from llamad.service.status import RUNTIME_ROOT
from llamad.supervision.learned import LearnedFile
from llamad.units import parse_size

if TYPE_CHECKING:
    from llamad.service.sharing import Sharing

CACHE_ROOT = Path("/var/cache/llamad")
STATE_ROOT = Path("/var/lib/llamad/state")
KEPT = ("capabilities.json", "breakdowns.json", "devices.json")


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
    """The plan, leaving nothing behind but what the model's own cache folder keeps; root leaves nothing at all."""
    cache, engine = CACHE_ROOT / loaded.name, RUNTIME_ROOT / loaded.name / "engine"
    with tempfile.TemporaryDirectory(prefix="llamad-plan-") as scratch:
        if os.geteuid() == 0 or not os.access(cache, os.W_OK):
            for kept in KEPT:
                with contextlib.suppress(OSError):
                    shutil.copyfile(cache / kept, Path(scratch) / kept)
            cache = Path(scratch)
        maker = PlanMaker(
            loaded,
            engine=engine,
            cache=cache,
            scratch=Path(scratch),
            sharing=None if what_if else _sharing(loaded, cache),
            learned=LearnedFile(STATE_ROOT / loaded.name),
        )
        return maker.make(what_if, computed=computed)


def _sharing(loaded: Loaded, cache: Path) -> Sharing | None:
    """With whom the devices are shared, as far as everybody may see; None for a file that is no definition."""
    if not loaded.digest:
        return None
    from llamad.service.overview import leases
    from llamad.service.sharing import Sharing

    return Sharing(loaded.file.parent, cache, lambda: [one for one in leases() if one.name != loaded.name])


def print_plan(made: Made, *, as_json: bool) -> None:
    """As `llamad plan` prints it."""
    if as_json:
        print(json.dumps(made.plan.to_json(list(made.args)), indent=2))
    else:
        print(explain(made.plan, made.args), end="")


def load_target(word: str, root: Path) -> Loaded:
    """A definition by name or path, or one that names nothing but a GGUF file."""
    if word.endswith(".gguf"):
        return bare(Path(word).absolute(), root)
    if word.endswith(".toml") or "/" in word:
        return load_path(Path(word).absolute(), root)
    return load_definition(word, root)


def bare(file: Path, root: Path) -> Loaded:
    """A definition that names a file and leaves the rest to the planner; `allow_cpu` as everywhere is false."""
    host = load_host(root).settings.host
    return Loaded("bare", file, Definition(model=str(file)), host, {}, frozenset(), (), "")


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
