"""The unit's sandbox, taken over for a verb that runs the engine."""

from __future__ import annotations

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
