"""Out of memory on a device, for real: one `systemctl start` ends ready, and the next one plans right at once."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from tests.support.models import build_tiny
from tests.system.conftest import MODELS, Bed, chat, run

TRAINED_TOKENS = 65536
TOKEN_BYTES = 4 * 2 * 1024 * 2
"""Four layers, keys and values, 1024 wide, f16: the whole context is 1 GiB."""
LIMIT_BYTES = 700_000_000
LARGEST_TOKENS = LIMIT_BYTES // TOKEN_BYTES
pytestmark = pytest.mark.timeout(900)
LEARNED = Path("/var/lib/llamad/state/big/learned.toml")


@pytest.fixture
def big() -> Path:
    path = MODELS / "big.gguf"
    if not path.exists():
        build_tiny(path, layers=4, embd=1024, heads=16, kv_heads=16, ff=1024, ctx_train_tokens=TRAINED_TOKENS)
        path.chmod(0o644)
    for file in (LEARNED, LEARNED.with_name("deaths.json")):
        file.unlink(missing_ok=True)
    return path


def limited(bed: Bed, model: Path, limit_bytes: int = LIMIT_BYTES, placement: str = "") -> str:
    """Vulkan refuses buffers above the limit, and says nothing of it before."""
    environment = f'[environment]\nGGML_VK_VISIBLE_DEVICES = "0"\nGGML_VK_FORCE_MAX_BUFFER_SIZE = "{limit_bytes}"\n'
    placement = f"[placement]\nubatch = 64\n{placement}\n"
    return bed.define("big", model=model, vulkan=False, extra=placement + environment)


def contexts(bed: Bed, event: str) -> list[int]:
    return [int(record["LLAMAD_CONTEXT"]) for record in bed.events("big", event)]


def story(bed: Bed) -> str:
    """What happened, for a failure's message."""
    lines = [record["MESSAGE"].partition("\n")[0] for record in bed.journal("LLAMAD_MODEL=big")]
    return "\n".join(line for line in lines if "tried out" in line or "ended" in line or line[:7] in ("Stepped", "Planned"))


def test_one_start_ends_ready_the_next_is_right_at_once_and_forgetting_tries_anew(bed: Bed, big: Path) -> None:
    url = limited(bed, big)
    bed.ctl("start", "llamad@big", timeout=600)
    assert contexts(bed, "planned")[0] == TRAINED_TOKENS, "the plan did not know"
    starts = len(bed.events("big", "loading"))
    assert 2 <= starts <= 3, story(bed)
    served = contexts(bed, "ready")[-1]
    assert 0.85 * LARGEST_TOKENS <= served <= LARGEST_TOKENS, story(bed)
    assert chat(url, tokens=2, timeout=300)[0] == 200
    steps = bed.events("big", "stepped-down")
    assert len(steps) == starts - 1
    assert (int(steps[0]["LLAMAD_FORMER"]), int(steps[-1]["LLAMAD_CONTEXT"])) == (TRAINED_TOKENS, served)
    died = bed.events("big", "child-exited")
    assert {record["LLAMAD_DEATH"] for record in died} == {"gpu-out-of-memory-context"}
    explained = run("journalctl", "-x", "-b", "--no-pager", "LLAMAD_EVENT=child-exited", "LLAMAD_MODEL=big").stdout
    assert "llamad forget big" in explained
    learned = tomllib.loads(LEARNED.read_text())
    assert len(learned["event"]) == starts - 1 and learned["context_tokens"] == served

    explained = run("llamad", "explain", "big").stdout
    assert f"the context went from {TRAINED_TOKENS} to" in explained, explained
    assert f"to {served} tokens" in explained and f"has a context of {served} tokens of the {TRAINED_TOKENS}" in explained, explained
    assert explained.count("  gpu-out-of-memory-context: ") == starts - 1 and "journalctl -u llamad@big -x" in explained, explained
    assert "(as predicted)" in explained and "llamad forget big" in explained, explained
    everybody = run("runuser", "-u", "nobody", "--", "llamad", "explain", "big").stdout
    assert "can be read by root only" in everybody and f"a context of {served} tokens" in everybody, everybody
    told = json.loads(run("llamad", "explain", "--json", "big").stdout)
    assert [lesson["stepped_to_tokens"] for lesson in told["lessons"]][-1] == served

    bed.ctl("restart", "llamad@big", timeout=600)
    assert len(bed.events("big", "loading")) == starts + 1
    assert contexts(bed, "ready")[-1] == served
    assert len(bed.events("big", "stepped-down")) == starts - 1

    bed.ctl("stop", "llamad@big")
    assert "Forgot" in run("llamad", "forget", "big").stdout
    assert not LEARNED.exists()
    planned = len(contexts(bed, "planned"))
    bed.ctl("start", "llamad@big", timeout=600)
    assert contexts(bed, "planned")[planned] == TRAINED_TOKENS, "the full context is tried again"

    bed.ctl("stop", "llamad@big")
    assert LEARNED.exists()
    bed.ctl("clean", "--what=state", "llamad@big")
    assert not LEARNED.exists()


def test_a_promise_is_refused_and_named(bed: Bed, big: Path) -> None:
    limited(bed, big, placement=f"context = {TRAINED_TOKENS}")
    assert bed.ctl("start", "llamad@big", check=False, timeout=600).returncode != 0
    assert not bed.events("big", "ready")
    assert bed.events("big", "child-exited"), "it was tried"
    assert not bed.events("big", "waiting-for-memory"), "no wait brings what nobody can have"
    refused = bed.events("big", "config-refused")[0]["MESSAGE"]
    assert f"{TRAINED_TOKENS} tokens of context" in refused.replace(",", ""), "the promise is named"
    assert "llamad forget big" in refused
    bed.ctl("stop", "llamad@big", check=False)
