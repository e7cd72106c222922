"""`llamad list`: the definitions, and the model files that are there to be served."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from llamad.config.definition import Host
from llamad.config.load import definition_names, load_definition, load_host
from llamad.errors import LlamadError
from llamad.gguf.glance import Glance
from llamad.service.models import ModelFile, model_files
from llamad.service.overview import overview
from llamad.store import cache_folder
from llamad.text import shown
from llamad.units import format_bytes

if TYPE_CHECKING:
    from llamad.service.fitting import Fit

_OTHER_KINDS = {
    "mmproj": "vision or audio projector (mmproj)",
    "adapter": "LoRA adapter",
    "imatrix": "importance matrix",
    "controlvector": "control vector",
    "image": "image or video model",
    "vocabulary": "vocabulary only",
}
_HEADINGS = ("FILE", "ARCHITECTURE", "PARAMETERS", "QUANTISATION", "SIZE", "CONTEXT", "")
_FITS = "FITS HERE"
_LONGEST_PROBLEM = 300
_LONGEST_LINE = 4200


def run(args: argparse.Namespace) -> int:
    """Print every definition with its file, address and state, then every model file; one that cannot be read says
    so in its line.
    """
    if args.fit and (code := _in_sandbox(args)) is not None:
        return code
    names = definition_names(args.config)
    rows = [_row(name, model.state, args) for name, model in zip(names, overview(names), strict=True)]
    folders = _folders(args)
    used_by: dict[str, list[str]] = {}
    for row in rows:
        if row["valid"]:
            used_by.setdefault(str(row["model"]), []).append(str(row["name"]))
    files = model_files(folders, cache_folder(os.environ), used_by)
    fits = _fits(files, args) if args.fit else {}
    if args.json:
        contents = [file.content() | _fit_json(fits.get(file.path)) for file in files]
        print(json.dumps({"models": rows, "files": contents}, indent=2))
        return 0
    _print_definitions(rows, args)
    if files:
        print()
        _print_files(files, folders, fits)
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
            f"{row['listen']!s:<{widths['listen']}}  {shown(str(row['model']), _LONGEST_LINE)}"
        )


def _in_sandbox(args: argparse.Namespace) -> int | None:
    """As root: devices that only llama-server can tell are asked for where it may run."""
    from llamad.cli.plan import BARE, CACHE_ROOT  # only who wants to know what fits looks at devices
    from llamad.cli.unprivileged import rerun_in_sandbox

    words = ["--config", str(args.config.absolute()), "list", "--fit", *(["--json"] if args.json else [])]
    return rerun_in_sandbox(words, f"llamad@{BARE}.service", CACHE_ROOT / BARE)


def _fits(files: Sequence[ModelFile], args: argparse.Namespace) -> Mapping[str, Fit]:
    """What each model among the files would get now."""
    from llamad.cli.recommend import looked_at
    from llamad.service.fitting import fit_of
    from llamad.service.recommend import Asked

    machine, gates, onlooker = looked_at(Asked(host_bytes_s=1.0), args)
    models = [file.path for file in files if file.glance is not None and file.glance.kind == "model"]
    return {path: fit_of(path, machine, gates, onlooker) for path in models}


def _fit_json(fit: Fit | None) -> dict[str, object]:
    return {} if fit is None else {"fits_here_tokens": fit.context_tokens, "fits_here": fit.words}


def _print_files(files: Sequence[ModelFile], folders: Sequence[str], fits: Mapping[str, Fit]) -> None:
    headings = (*_HEADINGS[:-1], _FITS, "") if fits else _HEADINGS
    table = [headings, *(_columns(file, folders, fits) for file in files)]
    widths = [max((len(row[n]) for row in table if len(row) > 2), default=0) for n in range(len(headings))]
    widths[0] = max(len(row[0]) for row in table)
    for row in table:
        print("  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=False)).rstrip())


def _columns(file: ModelFile, folders: Sequence[str], fits: Mapping[str, Fit]) -> tuple[str, ...]:
    """The words of a line; two of a file that is of no use."""
    name = shown(_short(file.path, folders), 200)
    if file.glance is None:
        return name, shown(file.problem, _LONGEST_PROBLEM)
    about = file.glance
    context = str(about.context_tokens) if about.context_tokens else ""
    size = format_bytes(about.file_bytes)
    architecture, quantisation = shown(about.architecture, 24), shown(about.quantisation, 16)
    row = (name, architecture, count_words(about.parameters), quantisation, size, context)
    return (*row, *([_fit_words(fits.get(file.path))] if fits else []), _notes(file, about))


def _fit_words(fit: Fit | None) -> str:
    if fit is None:
        return ""
    return f"{fit.context_tokens} on {fit.words}" if fit.context_tokens else "no"  # `llamad plan FILE` says why


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
