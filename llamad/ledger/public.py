"""The copy of the ledger that everybody may read: `llamad status`, `list` and `plan` need no root.

It says who holds what, and waits for what, as of the last change. Nobody decides by it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from llamad.ledger import folder as files
from llamad.ledger.lease import Lease, from_json, to_json


def write_public(path: Path, leases: Iterable[Lease]) -> None:
    """Replace the copy. One that cannot be written is old: the next change tries again."""
    rows = [to_json(lease) for lease in sorted(leases, key=lambda lease: lease.name)]
    with contextlib.suppress(OSError):
        files.write(path, f"[{','.join(rows)}]\n", 0o644)


def read_public(path: Path) -> list[Lease]:
    """The leases whose processes are there, as far as can be told from process ids; [] without a sane copy."""
    try:
        rows = json.loads(files.read(path))
        leases = [from_json(json.dumps(row), _name(row["name"])) for row in rows]
    except (ValueError, TypeError, LookupError, RecursionError):
        return []
    return [lease for lease in leases if any(os.path.isdir(f"/proc/{pid}") for pid in lease.pids)]


def _name(value: object) -> str:
    """A name that can be shown. Raises ValueError for what no model is named: another user writes the copy."""
    if not isinstance(value, str) or not value.isascii() or not value.isprintable() or not value:
        raise ValueError("no name of a model")
    return value
