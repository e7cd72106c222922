"""`llamad tune NAME`: which settings are faster here, and with `--apply` writes them down."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator

from llamad.cli.bench import SPARE_S, progress
from llamad.cli.unprivileged import own_command, run_as_service
from llamad.config.load import load_definition
from llamad.config.loaded import Loaded
from llamad.measure.candidates import Machine
from llamad.measure.dropin import apply, require_writable
from llamad.measure.report import tune_text
from llamad.measure.results import TuneResult, read_result
from llamad.measure.runner import Here, to_end
from llamad.measure.stopped import stopped
from llamad.measure.subject import find_service, plan_of
from llamad.measure.tuner import TuneOptions, run_tune


def run(args: argparse.Namespace) -> int:
    """Search; print a table or JSON; with `--apply` write the drop-in."""
    loaded = load_definition(args.name, args.config)
    if args.apply:
        require_writable(loaded, force=args.force)
    with _room(args, loaded) as context_min:
        options = TuneOptions(
            args.goal, tuple(args.may_change), args.smaller_context, context_min, args.quantised_cache, args.repeats,
            args.timeout,
        )  # fmt: skip
        if os.geteuid() == 0:
            words = _same_words(args, options)
            code, text = run_as_service(
                args.config, words, args.name, sandboxed=True, words="", limit_s=args.timeout + SPARE_S
            )
            if code:
                return code
            result = read_result(TuneResult, text)
        else:
            here = Here(loaded, args.config.absolute(), own_command(), os.environ)
            result = to_end(run_tune(here, _machine(), options, progress))
        print(result.model_dump_json(indent=2) if args.json else tune_text(result), end="\n" if args.json else "")
        if args.apply and result.best:
            path = apply(result, loaded, args.config, force=args.force, may_change=args.may_change)
            if not args.json:
                print(f"wrote {path}; undo it with: rm {path}")
    return 0


@contextlib.contextmanager
def _room(args: argparse.Namespace, loaded: Loaded) -> Iterator[int]:
    """The context that no candidate may be below: that of a service that runs on beside. Stops it with `--stop`."""
    service = find_service(loaded, os.environ, "")
    if service is None:
        yield args.context_min
    elif args.stop:
        with stopped(loaded.name, service.by):
            yield args.context_min
    else:
        yield max(args.context_min, plan_of(service.status).context_tokens)


def _machine() -> Machine:
    import psutil

    processors = len(os.sched_getaffinity(0))
    return Machine(min(psutil.cpu_count(logical=False) or processors, processors), processors)


def _same_words(args: argparse.Namespace, options: TuneOptions) -> list[str]:
    words = ["tune", args.name, "--json", f"--for={options.goal}", f"--repeats={options.repeats}"]
    words += [f"--timeout={options.timeout_s:g}s", *(f"--may-change={key}" for key in options.may_change)]
    words += ["--smaller-context"] if options.smaller_context else []
    words += ["--quantised-cache"] if options.quantised_cache else []
    words += [f"--context-min={options.context_min_tokens}"] if options.context_min_tokens else []
    return words
