"""`llamad explain NAME`: the story of a model's memory."""

from __future__ import annotations

import argparse
import json
import os

from llamad.config.names import check_name, definition_names
from llamad.errors import UsageError
from llamad.service.overview import leases, overview
from llamad.service.paths import STATE_ROOT, Paths
from llamad.service.story import read_story, story_json, story_text


def run(args: argparse.Namespace) -> int:
    """Tell what runs, what was predicted and learned, what died, and what would help. Changes nothing."""
    if args.name not in definition_names(args.config):
        check_name(args.name, args.config)
        raise UsageError(f"no definition named {args.name}", fix="`llamad list` shows all")
    folders = dict.fromkeys((STATE_ROOT / args.name, Paths.of(args.name, dict(os.environ)).state))
    story = read_story(args.name, overview([args.name])[0], leases(), folders)
    if args.json:
        print(json.dumps(story_json(story), indent=2, default=str))
    else:
        print(story_text(story), end="")
    return 0
