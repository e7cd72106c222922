"""What is in the bed. A change of this file, of a script or of build.py makes the next run build a new one."""

from __future__ import annotations

import hashlib
from pathlib import Path

SUITE = "forky"
COMPONENTS = "main"

_SYSTEM = (
    "systemd systemd-sysv dbus libpam-systemd procps psmisc iproute2 util-linux util-linux-extra curl ca-certificates"
    " strace git less man-db bash-completion"
)
_ENGINE = (
    "llama.cpp-tools llama.cpp-tools-extra libggml0-backend-vulkan mesa-vulkan-drivers libggml0-backend-rpc libggml-dev"
)
_LLAMAD_NEEDS = "python3 python3-pydantic python3-psutil python3-watchdog python3-sdnotify python3-tomli-w"
_PACKAGE_BUILD = (
    "build-essential debhelper dh-python pybuild-plugin-pyproject python3-all python3-setuptools dpkg-dev fakeroot"
    " lintian scdoc"
)
_TESTS = (
    "python3-venv python3-pip python3-pytest python3-pytest-asyncio python3-pytest-timeout"
    " python3-jsonschema tmux"
    " python3-hypothesis python3-h11 python3-openai mypy ruff"
)
_BESIDE_THE_ADDRESS = "prometheus haproxy nginx"  # who scrapes it, and what it is measured beside
PACKAGES = tuple(
    " ".join((_SYSTEM, _ENGINE, _LLAMAD_NEEDS, _PACKAGE_BUILD, _TESTS, _BESIDE_THE_ADDRESS)).split()
)

# Debian's python3-pynvml needs the non-free driver library, its httptools is of 2020.
PIP_PACKAGES = ("nvidia-ml-py", "httptools>=0.9")

TEST_PYTHON = "/opt/testenv/bin/python"
BUILDER = "builder"  # the unprivileged user of unit tests and package builds


def fingerprint(architecture: str) -> str:
    """Names the bed that this recipe makes: the same recipe, the same name."""
    here = Path(__file__).parent
    digest = hashlib.sha256(architecture.encode())
    for name in ("recipe.py", "setup.sh", "shaders.sh", "build.py"):
        digest.update((here / name).read_bytes())
    return digest.hexdigest()[:16]
