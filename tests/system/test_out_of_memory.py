"""Out of memory on a device, for real: one `systemctl start` ends ready, and the next one plans right at once."""

from __future__ import annotations

import json
import subprocess
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.breakdown import rpc_device
from tests.support.models import build_tiny
from tests.system.conftest import MODELS, Bed, chat, free_port, run, wait_for

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


# -- a card whose limit is real: what all buffers take together, and none of it told before ---------------------

ROOM_BYTES = 700_000_000
STEP_TOKENS = 256


class Card:
    """A ggml-rpc-server whose address space is limited: a device that claims the host's memory and has less."""

    def __init__(self, port: int) -> None:
        (self.program,) = Path("/usr/libexec").glob("*/llama/bin/ggml-rpc-server")
        self.port = port
        self.limit_bytes = self._used_bytes() + ROOM_BYTES
        self._context = rpc_device(["prlimit", f"--as={self.limit_bytes}", str(self.program)], port=port)
        self.address = self._context.__enter__()

    def _used_bytes(self) -> int:
        """The address space of one that has served a client."""
        with rpc_device([str(self.program)], port=self.port) as address:
            run("llama-server", "--rpc", address, "--list-devices")
            (pid,) = run("pgrep", "-f", f"ggml-rpc-server .*-p {self.port}").stdout.split()
            status = Path(f"/proc/{pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmPeak")) * 1024

    def close(self) -> None:
        self._context.__exit__(None, None, None)

    def renew(self) -> None:
        """After a load that may have broken it."""
        self.close()
        self._context = rpc_device(["prlimit", f"--as={self.limit_bytes}", str(self.program)], port=self.port)
        self.address = self._context.__enter__()

    def loads(self, argv: Sequence[str], context_tokens: int) -> bool:
        """Whether a bare llama-server with these arguments and that context gets as far as to listen."""
        words = list(argv)
        words[words.index("-c") + 1] = str(context_tokens)
        words[words.index("--host") + 1] = "/tmp/bare.sock"
        Path("/tmp/bare.sock").unlink(missing_ok=True)
        child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert child.stdout
        try:
            return any("listening" in line for line in child.stdout)
        finally:
            child.kill()
            child.wait()
            child.stdout.close()
            self.renew()


@pytest.fixture
def card() -> Iterator[Card]:
    made = Card(free_port())
    yield made
    made.close()


def largest_that_loads(card: Card, argv: Sequence[str], low: int, high: int) -> int:
    """In steps of 256 tokens; `low` loads."""
    while high - low > STEP_TOKENS:
        middle = (low + high) // 2 // STEP_TOKENS * STEP_TOKENS
        low, high = (middle, high) if card.loads(argv, middle) else (low, middle)
    return low


def test_on_a_card_that_claims_more_than_it_has_one_step_suffices(bed: Bed, big: Path, card: Card) -> None:
    placement = f'[placement]\nubatch = 64\nrpc = ["{card.address}"]\n'
    url = bed.define("big", model=big, vulkan=False, extra=placement)
    bed.ctl("start", "llamad@big", timeout=600)
    assert "RPC0" in bed.show("llamad@big", "StatusText")
    assert contexts(bed, "planned")[0] == TRAINED_TOKENS, "the plan did not know"
    served = contexts(bed, "ready")[-1]
    assert len(bed.events("big", "stepped-down")) == 1, story(bed)
    assert len(bed.events("big", "loading")) == 2, story(bed)
    assert chat(url, tokens=2, timeout=300)[0] == 200
    argv = Path(f"/proc/{bed.child_pid('big')}/cmdline").read_text().split("\0")[:-1]

    bed.ctl("restart", "llamad@big", timeout=600)
    assert len(bed.events("big", "loading")) == 3, "the next start is right at once"
    assert contexts(bed, "ready")[-1] == served

    bed.ctl("stop", "llamad@big")
    assert card.loads(argv, served)
    assert not card.loads(argv, TRAINED_TOKENS)
    largest = largest_that_loads(card, argv, served, TRAINED_TOKENS)
    print(f"{served} tokens are served, {largest} load: {served / largest:.1%}")
    assert served >= 0.97 * largest, f"{served} of {largest}: {story(bed)}"

    assert "Forgot" in run("llamad", "forget", "big").stdout
    planned = len(contexts(bed, "planned"))
    bed.ctl("start", "llamad@big", timeout=600)
    assert contexts(bed, "planned")[planned] == TRAINED_TOKENS, "the full context is tried again"


def test_a_remote_device_that_goes_away_is_waited_for_and_never_asked_while_it_serves(bed: Bed, tiny: Path) -> None:
    (program,) = Path("/usr/libexec").glob("*/llama/bin/ggml-rpc-server")
    port = free_port()
    with rpc_device([str(program)], port=port) as address:
        url = bed.define("tiny", vulkan=False, extra=f'[placement]\nrpc = ["{address}"]\n')
        bed.ctl("start", "llamad@tiny", timeout=300)
        assert "RPC0" in bed.show("llamad@tiny", "StatusText")
        child = bed.child_pid("tiny")
        bed.define("tiny", vulkan=False, extra=f'[placement]\ncontext = 4096\nrpc = ["{address}"]\n')
        bed.ctl("reload", "llamad@tiny", timeout=300)
        wait_for(lambda: contexts_of(bed, "tiny", "ready")[-1] == 4096, "another context after the reload", 60)
        assert bed.child_pid("tiny") != child
        assert chat(url, tokens=2)[0] == 200
    wait_for(lambda: bed.show("llamad@tiny", "ActiveState") != "active" or chat(url, tokens=2)[0] != 200, "it is missed", 60)
    wait_for(lambda: "cannot be reached" in bed.show("llamad@tiny", "StatusText"), "the status names it", 60, 0.02)
    assert str(port) in bed.show("llamad@tiny", "StatusText")
    assert not bed.events("tiny", "serving-on-cpu")
    with rpc_device([str(program)], port=port):
        wait_for(lambda: bed.show("llamad@tiny", "ActiveState") == "active", "serves again by itself", 90)
        assert "RPC0" in bed.show("llamad@tiny", "StatusText")


def contexts_of(bed: Bed, name: str, event: str) -> list[int]:
    return [int(record["LLAMAD_CONTEXT"]) for record in bed.events(name, event)]
