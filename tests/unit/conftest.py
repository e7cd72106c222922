"""Unit tests run as any user. As root, llama-server's stand-ins run as another user, who must reach their files."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("llamad", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("llamad")  # a busy machine is no mistake


@pytest.fixture(autouse=True, scope="session")
def _open_folders(tmp_path_factory: pytest.TempPathFactory) -> None:
    if os.geteuid() == 0:
        base = tmp_path_factory.getbasetemp()
        for folder in (base, base.parent):
            folder.chmod(0o711)


@pytest.fixture(autouse=True)
def _open_folder(request: pytest.FixtureRequest) -> None:
    if os.geteuid() == 0 and "tmp_path" in request.fixturenames:
        request.getfixturevalue("tmp_path").chmod(0o777)
