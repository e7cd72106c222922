"""`llamad explain NAME`: the story of a model's memory."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from llamad.config.names import check_name, definition_names
from llamad.errors import UsageError
from llamad.service.overview import leases, overview
from llamad.service.paths import ROUTER, STATE_ROOT, Paths
from llamad.service.router_paths import RouterPaths
from llamad.service.story import read_story, story_json, story_text


def run(args: argparse.Namespace) -> int:
    """Tell what runs, what was predicted and learned, what died, and what would help. Changes nothing."""
    if args.name not in definition_names(args.config):
        check_name(args.name, args.config)
        raise UsageError(f"no definition named {args.name}", fix="`llamad list` shows all")
    found = overview([args.name])[0]
    folders = _folders(args.name, by_router=found.content.get("served_by") == "router")
    story = read_story(args.name, found, leases(), folders)
    if args.json:
        print(json.dumps(story_json(story), indent=2, default=str))
    else:
        print(story_text(story), end="")
    return 0


def _folders(name: str, *, by_router: bool) -> list[Path]:
    """Where what was learned may be: of who serves the model first, then of the other one."""
    environ = dict(os.environ)
    unit = [STATE_ROOT / name, Paths.of(name, environ).state]
    router = [STATE_ROOT.parent / ROUTER / name, RouterPaths.of(environ).state / name]
    return list(dict.fromkeys([*router, *unit] if by_router else [*unit, *router]))
