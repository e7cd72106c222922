"""`llamad list`: the definitions, and the model files that are there to be served."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence

from llamad.config.definition import Host
from llamad.config.load import definition_names, load_definition, load_host
from llamad.errors import LlamadError
from llamad.gguf.glance import Glance
from llamad.gguf.header import shown
from llamad.service.models import ModelFile, model_files
from llamad.service.overview import overview
from llamad.store import cache_folder
from llamad.units import format_bytes

_OTHER_KINDS = {
    "mmproj": "vision or audio projector (mmproj)",
    "adapter": "LoRA adapter",
    "imatrix": "importance matrix",
    "controlvector": "control vector",
    "image": "image or video model",
    "vocabulary": "vocabulary only",
}
_HEADINGS = ("FILE", "ARCHITECTURE", "PARAMETERS", "QUANTISATION", "SIZE", "CONTEXT", "")
_LONGEST_PROBLEM = 300


def run(args: argparse.Namespace) -> int:
    """Print every definition with its file, address and state, then every model file; one that cannot be read says
    so in its line.
    """
    names = definition_names(args.config)
    rows = [_row(name, model.state, args) for name, model in zip(names, overview(names), strict=True)]
    folders = _folders(args)
    used_by: dict[str, list[str]] = {}
    for row in rows:
        if row["valid"]:
            used_by.setdefault(str(row["model"]), []).append(str(row["name"]))
    files = model_files(folders, cache_folder(os.environ), used_by)
    if args.json:
        print(json.dumps({"models": rows, "files": [file.content() for file in files]}, indent=2))
        return 0
    _print_definitions(rows, args)
    if files:
        print()
        _print_files(files, folders)
    return 0


def _folders(args: argparse.Namespace) -> Sequence[str]:
    """The folders of models; the default ones where llamad.toml has a mistake, which every definition's line tells."""
    try:
        return load_host(args.config).settings.host.models
    except LlamadError:
        return Host().models


def _row(name: str, state: str, args: argparse.Namespace) -> dict[str, object]:
    try:
        definition = load_definition(name, args.config).definition
    except LlamadError as error:
        return {
            "name": name,
            "state": state,
            "listen": "-",
            "model": str(error).splitlines()[0],
            "valid": False,
        }
    return {
        "name": name,
        "state": state,
        "listen": definition.listen or "-",
        "model": definition.model,
        "aliases": list(definition.aliases),
        "valid": True,
    }


def _print_definitions(rows: Sequence[dict[str, object]], args: argparse.Namespace) -> None:
    if not rows:
        print(f"no definitions in {args.config}; `llamad add NAME FILE.gguf` writes one")
        return
    widths = {key: max(len(str(row[key])) for row in rows) for key in ("name", "state", "listen")}
    for row in rows:
        print(
            f"{row['name']!s:<{widths['name']}}  {row['state']!s:<{widths['state']}}  "
            f"{row['listen']!s:<{widths['listen']}}  {row['model']}"
        )


def _print_files(files: Sequence[ModelFile], folders: Sequence[str]) -> None:
    table = [_HEADINGS, *(_columns(file, folders) for file in files)]
    widths = [max((len(row[n]) for row in table if len(row) > 2), default=0) for n in range(len(_HEADINGS))]
    widths[0] = max(len(row[0]) for row in table)
    for row in table:
        print("  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=False)).rstrip())


def _columns(file: ModelFile, folders: Sequence[str]) -> tuple[str, ...]:
    """The words of a line; two of a file that is of no use."""
    name = shown(_short(file.path, folders), 200)
    if file.glance is None:
        return name, shown(file.problem, _LONGEST_PROBLEM)
    about = file.glance
    context = str(about.context_tokens) if about.context_tokens else ""
    size = format_bytes(about.file_bytes)
    architecture, quantisation = shown(about.architecture, 24), shown(about.quantisation, 16)
    return name, architecture, count_words(about.parameters), quantisation, size, context, _notes(file, about)


def _short(path: str, folders: Sequence[str]) -> str:
    """Below its folder where there is but one, in full where there are several."""
    return os.path.relpath(path, folders[0]) if len(folders) == 1 and path != folders[0] else path


def _notes(file: ModelFile, about: Glance) -> str:
    notes = [_OTHER_KINDS.get(about.kind, "")]
    if about.experts:
        notes.append(f"{about.experts_used} of {about.experts} experts")
    if about.shards > 1:
        notes.append(f"{about.shards} shards")
    if file.used_by:
        notes.append(f"served as {', '.join(file.used_by)}")
    return ", ".join(filter(None, notes))


def count_words(parameters: int) -> str:
    """`14.7B`, `600M`, `12K`: as models are called."""
    for unit, factor in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if parameters >= factor:
            value = parameters / factor
            return f"{value:.1f}{unit}" if value < 100 else f"{value:.0f}{unit}"
    return str(parameters)
