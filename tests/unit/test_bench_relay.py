"""`bench/relay` measures what it says: not how fast, which a shared machine cannot tell, but that every figure is there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(300)
@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
def test_every_figure_of_the_relay_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    words = [sys.executable, ROOT / "bench/relay", "--rounds", "1", "--scale", "0.03", "--json", out]
    done = subprocess.run(words, capture_output=True, text=True, timeout=280, check=False)
    assert out.exists(), done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert {"direct", "llamad"} <= found["figures"].keys()
    for name, key in product(("llamad", "router"), ("requests/s at 1", "requests/s at 16", "requests/s at 256", "tokens/s at 32 streams", "added p50 ms")):
        own = found["figures"][name]
        assert all(value > 0 for value in own[key]) and len(own[key]) == 1, (name, key)
    assert all(value <= 45 for memory in found["memory"].values() for value in memory.values())
    missed = "A BAR WAS MISSED" in done.stdout
    assert done.returncode == missed and ("all bars held" in done.stdout) is not missed
