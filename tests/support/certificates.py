"""Certificates for tests, made by openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path


def make_certificate(folder: Path, name: str = "localhost", password: str = "") -> tuple[Path, Path]:
    """A self-signed certificate of localhost and its key; `name` is its common name and that of the files."""
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    run = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2"]
    run += ["-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    run += ["-passout", f"pass:{password}"] if password else ["-nodes"]
    subprocess.run([*run, "-out", certificate, "-keyout", key], check=True, capture_output=True)
    return certificate, key
