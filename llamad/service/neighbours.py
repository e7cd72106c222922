"""Which other models of this host are meant to run."""

from __future__ import annotations

import os
from pathlib import Path

from llamad.config.names import name_of_file

ENABLED_UNITS = Path("/etc/systemd/system/llamad.target.wants")


def enabled_names(units: Path = ENABLED_UNITS) -> list[str]:
    """The models whose units are enabled, by the links that `systemctl enable` makes."""
    try:
        files = os.listdir(units)
    except OSError:
        return []
    words = [file.removeprefix("llamad@") for file in files if file.startswith("llamad@")]
    return sorted(filter(None, (name_of_file(f"{word.removesuffix('.service')}.toml") for word in words)))
