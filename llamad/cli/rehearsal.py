"""Planning a definition in another folder, as `llamad plan` does it: never as root."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from llamad.cli.unprivileged import own_command


def plan_of(name: str, folder: Path) -> tuple[dict[str, object], str]:
    """The plan as `llamad plan --json` prints it, or {} and why there is none."""
    command = [*own_command(), "--config", str(folder), "plan", "--json", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        return {}, done.stderr.strip() or f"llamad plan ended with {done.returncode}"
    found = json.loads(done.stdout)
    return (found, "") if isinstance(found, dict) else ({}, "llamad plan printed no plan")


def refusal_of(name: str, folder: Path) -> str:
    """Why no plan can be made; empty where one can."""
    return plan_of(name, folder)[1]
