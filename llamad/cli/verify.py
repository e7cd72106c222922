"""`llamad verify [NAME|FILE...]`: whether model files are whole."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator

from llamad.config.load import definition_names, load_definition
from llamad.config.named_files import named_files
from llamad.models.choose import HubFile
from llamad.models.progress import Progress
from llamad.models.verify import exit_code, summary, verify


def run(args: argparse.Namespace) -> int:
    """Print a line a model; 65 if one is damaged, 66 if one is missing, 77 if one cannot be read."""
    paths = list(dict.fromkeys(_paths(args)))
    published = _published(args.hub)
    progress = Progress()
    reports = []
    for path in paths:
        report = verify(
            path, lambda name, done, size: progress.progress(name, "checking", done, size),
            full=args.full, published=published, hub=args.hub or "",
        )  # fmt: skip
        progress.end()
        reports.append(report)
        if not args.json:
            print(summary(report), flush=True)
            for line in (*report.notes, *([f"fix: {report.fix}"] if report.fix else [])):
                print(f"      {line}")
    if args.json:
        print(json.dumps({"models": [report.content() for report in reports]}, indent=2))
    elif not paths:
        print(f"no definitions in {args.config}; name a file")
    return exit_code(reports)


def _paths(args: argparse.Namespace) -> Iterator[str]:
    """The files to look at: those that were named, and those of definitions. Raises ConfigError, UsageError."""
    for word in args.targets or definition_names(args.config):
        if "/" in word or word.endswith(".gguf"):
            yield os.path.abspath(word)
            continue
        definition = load_definition(word, args.config).definition
        yield definition.model
        yield from (named.file for named in named_files(definition) if named.holds_weights)


def _published(repo: str | None) -> list[HubFile] | None:
    if repo is None:
        return None
    from llamad.models.hub import published  # the network is for those who ask for it

    return published(repo, os.environ, wait=time.sleep)
