"""Owns the mounts of one booted bed. It is process 1 of a pid namespace, in a mount namespace of its own.

When it ends, however it ends, the kernel kills every process of the bed, and with the last of them go the mounts.
It ends when the container does, and when its standard input is closed: the runner holds the other end of that pipe.

Run by container.py, never by hand.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any


def main(spec: dict[str, Any]) -> int:
    """Mount, boot, wait. `spec` is what container.py wrote. The exit status is systemd-nspawn's."""
    work = Path(spec["mount_point"])
    _mount("tmpfs", "llamad-testbed", work, "mode=0755,size=75%")
    for name in ("upper", "work", "root"):
        (work / name).mkdir(mode=0o755)
    layers = f"lowerdir={spec['lower']},upperdir={work}/upper,workdir={work}/work"
    _mount("overlay", "llamad-testbed", work / "root", layers)
    # systemd-nspawn keeps locks and sockets there that a kill would leave behind.
    nspawn = Path("/run/systemd/nspawn")
    nspawn.mkdir(parents=True, exist_ok=True)
    _mount("tmpfs", "llamad-testbed", nspawn, "mode=0755")
    if spec["cgroup"]:
        (Path(spec["cgroup"]) / "cgroup.procs").write_text("0")
    os.environ.update(spec["environment"])
    container = subprocess.Popen([*spec["nspawn"], f"--directory={work}/root"], stdin=subprocess.DEVNULL)
    return _wait(container, watch_stdin=spec["watch_stdin"])


def _mount(kind: str, source: str, target: Path, options: str) -> None:
    subprocess.run(
        ["mount", "-t", kind, "-o", options, source, str(target)], check=True, stdin=subprocess.DEVNULL
    )


def _wait(container: subprocess.Popen[bytes], *, watch_stdin: bool) -> int:
    ended = os.pidfd_open(container.pid)
    watched = [ended, *([0] if watch_stdin else [])]
    ready, _, _ = select.select(watched, [], [])
    return container.wait() if ended in ready else 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
