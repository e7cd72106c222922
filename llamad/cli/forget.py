"""`llamad forget NAME`: have what lack of memory taught tried again."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from llamad.config.names import check_name
from llamad.errors import os_error
from llamad.service.paths import Paths
from llamad.service.router_paths import RouterPaths
from llamad.supervision.learned import LearnedFile


def run(args: argparse.Namespace) -> int:
    """Remove what was learned about a model, whether it is served or not; its next plan is made afresh."""
    check_name(args.name, args.config)
    environ = dict(os.environ)
    folders = (Paths.of(args.name, environ).state, RouterPaths.of(environ).state / args.name)
    forgot = [folder for folder in folders if _forget(folder)]
    if forgot:
        print(f"Forgot what was learned about {args.name}; its next start plans by formulas again.")
    else:
        print(f"Nothing was learned about {args.name}.")
    return 0


def _forget(folder: Path) -> bool:
    try:
        return LearnedFile(folder).forget()
    except OSError as error:
        raise os_error(f"cannot remove what is in {folder}", error, "run it as root") from error
