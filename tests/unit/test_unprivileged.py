"""The unit's sandbox, taken over for a verb that runs the engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamad.cli.unprivileged import parse_sandbox

UNIT = """
# /usr/lib/systemd/system/llamad@.service
[Unit]
ProtectThis=no
[Service]
ExecStart=/usr/bin/llamad serve %i
User=_llamad
ProtectSystem=strict
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
CapabilityBoundingSet=
DeviceAllow=char-drm rw
RuntimeDirectory=llamad/model/%i
MemoryDenyWriteExecute=yes
ReadWritePaths=-/run/llamad/ledger \\
  -/run/llamad/api
# /etc/systemd/system/llamad@.service.d/bed.conf
[Service]
MemoryDenyWriteExecute=no
"""


def test_sandbox_lines_in_their_order_and_nothing_else() -> None:
    assert parse_sandbox(UNIT) == [
        "ProtectSystem=strict",
        "SystemCallFilter=@system-service",
        "SystemCallFilter=~@privileged",
        "CapabilityBoundingSet=",
        "DeviceAllow=char-drm rw",
        "MemoryDenyWriteExecute=yes",
        "ReadWritePaths=-/run/llamad/ledger -/run/llamad/api",
        "MemoryDenyWriteExecute=no",
    ]


def test_a_file_of_this_folder_is_the_same_one_in_the_sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sandbox works in `/`."""
    from llamad.cli.plan import _absolute

    monkeypatch.chdir(tmp_path)
    for word in ("tiny.toml", "tiny.gguf", "./tiny.toml", "a/b.gguf"):
        assert _absolute(word) == str(tmp_path / word)
    assert _absolute("tiny") == "tiny"
