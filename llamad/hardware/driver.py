"""Whether NVIDIA's libraries on disk are still those of the module that the kernel runs.

An unattended upgrade replaces the libraries and leaves the loaded module. What runs has the old libraries mapped and
works on, NVML of such a process too; every program that is started from then on gets no GPU. So the files tell it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

_LIBRARY = "libnvidia-ml.so.1"
_FOLDERS = (Path("/usr/lib"), Path("/usr/lib64"))
_MODULE = Path("/sys/module/nvidia/version")
_PROC = Path("/proc/driver/nvidia/version")
_VERSION = re.compile(r"\d+\.\d+(?:\.\d+)?")


def driver_upgrade(
    folders: Sequence[Path] = _FOLDERS, module: Path = _MODULE, proc: Path = _PROC
) -> tuple[str, str] | None:
    """The versions of the loaded module and of the libraries, where they differ: a reboot or a reload is due.

    None where they agree, where either is not told (no driver, or one in the middle of its installation), and where
    one of several libraries (another architecture's) agrees. About 0.1 ms.
    """
    running = _running(module, proc)
    installed = sorted(set(_installed(folders)))
    if not running or not installed or running in installed:
        return None
    return running, installed[-1]


def _running(module: Path, proc: Path) -> str:
    for path, label in ((module, ""), (proc, "Kernel Module")):
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue
        found = _VERSION.search(text.partition(label)[2] if label else text)
        if found:
            return found[0]
    return ""


def _installed(folders: Sequence[Path]) -> Iterator[str]:
    """Versions by the names of the files that the link `libnvidia-ml.so.1` leads to."""
    for folder in folders:
        for link in (folder / _LIBRARY, *folder.glob(f"*-linux-*/{_LIBRARY}")):
            _, _, version = link.resolve().name.partition(".so.")
            if _VERSION.fullmatch(version) and link.exists():
                yield version
