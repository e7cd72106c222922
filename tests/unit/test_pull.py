"""Fetching models from servers that do everything wrong: what has the model's name is whole and right, or not there."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llamad.errors import AccessError, BadModelError, BusyError, LlamadError, ModelMissingError, UsageError
from llamad.models.part import Content, Part
from llamad.models.progress import Progress, time_text
from llamad.models.pull import Order, Pulled, definition_name, pull
from llamad.models.reading import Patience
from llamad.models.sums import written_sum
from tests.support.hub_server import COMMIT, HubServer
from tests.support.models import build_tiny

ROOT = Path(__file__).parents[2]
QUICK = Patience(tries=5, first_tries=3, first_delay_s=0.002, most_delay_s=0.01, slow_window_s=0.3, slow_bytes=3000,
                 checkpoint_s=0.05, show_s=0.01, piece_bytes=1 << 20)  # fmt: skip
REPO = "org/Tiny-GGUF"
FILE = "Tiny-Q4_K_M.gguf"


class Notes:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.shown: list[tuple[str, str, int, int]] = []

    def progress(self, name: str, what: str, done_bytes: int, size_bytes: int) -> None:
        self.shown.append((name, what, done_bytes, size_bytes))

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A real small model of 1.3 MB."""
    path = build_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf", layers=1, embd=256, seed=4)
    return path.read_bytes()


@pytest.fixture
def server(data: bytes) -> Iterator[HubServer]:
    with HubServer({REPO: {FILE: data, "README.md": b"#"}, "plain": {FILE: data}}) as made:
        yield made


@pytest.fixture
def get(server: HubServer, tmp_path: Path) -> Callable[..., Pulled]:
    """Pull from the server into a folder of the test."""

    def pulling(source: str = REPO, *, notes: Notes | None = None, **more: object) -> Pulled:
        order = Order(source, **more)  # type: ignore[arg-type]
        (tmp_path / "models").mkdir(exist_ok=True)
        environ = {"HF_ENDPOINT": server.url, "HOME": str(tmp_path)}
        return pull(order, notes or Notes(), environ, folder=tmp_path / "models", patience=QUICK)

    return pulling


def plain(server: HubServer) -> str:
    return f"{server.url}/plain/{FILE}"


def below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def nothing_looks_whole(folder: Path) -> bool:
    return not [name for name in below(folder) if name.endswith(".gguf")]


# -- what goes well -------------------------------------------------------------------------------------------


def test_a_repository_is_fetched_into_a_folder_of_its_own(get: Callable[..., Pulled], data: bytes, tmp_path: Path) -> None:
    pulled = get()
    path = tmp_path / "models" / "org" / "Tiny-GGUF" / FILE
    assert pulled.model == path and pulled.sure and path.read_bytes() == data
    assert stat.S_IMODE(path.stat().st_mode) == 0o644 and path.stat().st_nlink == 1
    assert below(tmp_path / "models") == {f"org/Tiny-GGUF/{FILE}", f"org/Tiny-GGUF/{FILE}.sha256"}
    assert written_sum(path) == (hashlib.sha256(data).hexdigest(), path.with_name(path.name + ".sha256"))


def test_all_is_fetched_of_one_commit_though_the_branch_may_move(get: Callable[..., Pulled], server: HubServer) -> None:
    get()
    assert all(COMMIT in one.path for one in server.asked("/resolve/"))
    assert [COMMIT in one.path for one in server.asked("/tree/")] == [True]


def test_shards_and_a_projector_are_fetched_together(get: Callable[..., Pulled], server: HubServer, data: bytes) -> None:
    names = [f"Q8_0/Tiny-Q8_0-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    server.repos[REPO] |= dict.fromkeys(names, data) | {"mmproj-Tiny-F16.gguf": data, "mmproj-Tiny-F32.gguf": data}
    pulled = get(f"{REPO}:q8_0", mmproj=True)
    assert [path.name for path in pulled.files] == [name.partition("/")[2] for name in names]
    assert pulled.projector is not None and pulled.projector.name == "mmproj-Tiny-F16.gguf"
    assert pulled.size_bytes == 4 * len(data)


def test_what_is_there_already_is_proved_and_not_fetched_again(get: Callable[..., Pulled], server: HubServer) -> None:
    path = get().model
    before = len(server.asked("/resolve/"))
    notes = Notes()
    assert get(notes=notes).model == path
    path.with_name(path.name + ".sha256").unlink()
    get(notes=notes)
    assert len(server.asked("/resolve/")) == before
    assert "already" in notes.notes[0] and {what for _, what, *_ in notes.shown} == {"checking"}


def test_another_file_of_that_name_is_left_alone(get: Callable[..., Pulled], data: bytes) -> None:
    path = get().model
    path.write_bytes(data[:-1] + b"x")
    path.with_name(path.name + ".sha256").unlink()
    with pytest.raises(UsageError, match=r"there already.*SHA-256"):
        get()
    path.write_bytes(b"short")
    with pytest.raises(UsageError, match="5 bytes"):
        get()
    assert path.read_bytes() == b"short"


def test_the_addresses_of_files_of_a_hub_are_known(get: Callable[..., Pulled], server: HubServer) -> None:
    for word in (f"hf:{REPO}/{FILE}", f"{server.url}/{REPO}/blob/main/{FILE}", f"{server.url}/{REPO}/resolve/main/{FILE}"):
        assert get(word).sure


def test_a_plain_address_with_several_connections(get: Callable[..., Pulled], server: HubServer, data: bytes) -> None:
    big = data + bytes(6 << 20)
    server.repos["plain"]["big.gguf"] = big
    pulled = get(f"{server.url}/plain/big.gguf", connections=4)
    assert hashlib.sha256(pulled.model.read_bytes()).digest() == hashlib.sha256(big).digest()
    assert not pulled.sure
    starts = [one.fields["range"] for one in server.asked("big.gguf")]
    assert len(starts) == 1 + 8  # a look, and pieces of 1 MiB
    assert all("if-range" in one.fields for one in server.asked("big.gguf")[1:])


def test_a_name_for_the_definition() -> None:
    assert definition_name(Path("Qwen3-8B-Q4_K_M.gguf"), []) == "qwen3-8b"
    assert definition_name(Path("Big.Model-UD-Q4_K_XL-00001-of-00002.gguf"), ["big.model"]) == "big.model-2"
    assert definition_name(Path("-Q8_0.gguf"), []) == "model"
    assert definition_name(Path("llamad.gguf"), []) == "llamad-model"
    assert len(definition_name(Path("x" * 150 + ".gguf"), ["x" * 45])) <= 48


# -- what goes wrong on the way --------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["hub", "plain"])
def test_fifty_dropped_connections_and_not_one_byte_wrong(
    address: str, get: Callable[..., Pulled], server: HubServer, data: bytes
) -> None:
    draw = random.Random(7)
    server.faults.drops, server.faults.drop_after_bytes = 50, draw.randrange(5000, 20_000)
    pulled = get(REPO if address == "hub" else plain(server))
    assert pulled.model.read_bytes() == data
    assert server.faults.drops == 0
    assert len(server.asked(FILE)) == 1 + 50 + 1


def test_a_download_that_was_killed_goes_on_where_it_was(server: HubServer, data: bytes, tmp_path: Path) -> None:
    """SIGKILL in the middle: what is written down counts, nothing has the model's name."""
    server.repos["plain"]["big.gguf"] = big = data + random.Random(1).randbytes(6 << 20)
    script = (
        "import sys, time; from pathlib import Path; from llamad.models.pull import *; from tests.unit.test_pull import QUICK, Notes\n"
        "class Slow(Notes):\n"
        "    def progress(self, name, what, done, size):\n"
        "        if Path(sys.argv[2], 'big.gguf.part.json').exists(): print('some', flush=True); time.sleep(60)\n"
        "pull(Order(sys.argv[1]), Slow(), {}, folder=Path(sys.argv[2]), patience=QUICK)"
    )
    url = f"{server.url}/plain/big.gguf"
    server.faults.stall_after_bytes = 3 << 20
    with subprocess.Popen([sys.executable, "-c", script, url, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == b"some\n"
        child.kill()
    assert nothing_looks_whole(tmp_path)
    state = tmp_path / "big.gguf.part.json"
    kept = sum(end - start for start, end in json.loads(state.read_text())["done"])
    assert kept > 0
    server.faults.stall_after_bytes = 0
    notes = Notes()
    pulled = pull(Order(url), notes, {}, folder=tmp_path, patience=QUICK)
    assert pulled.model.read_bytes() == big
    assert notes.notes == [f"goes on after {kept * 100 // len(big)} %"]
    assert server.asked("big.gguf")[-1].fields["range"] == f"bytes={kept}-{len(big) - 1}"
    assert below(tmp_path) == {"big.gguf", "big.gguf.sha256"}


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_hand_it_says_what_is_kept(sign: signal.Signals, server: HubServer, data: bytes, tmp_path: Path) -> None:
    server.repos[REPO][FILE] = data
    server.faults.drip_bytes_s = 2000
    env = dict(os.environ, HF_ENDPOINT=server.url, PYTHONUNBUFFERED="1")
    words = [sys.executable, "-m", "llamad", "pull", REPO, "--to", str(tmp_path)]
    with subprocess.Popen(
        words, cwd=ROOT, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # as in a terminal
    ) as child:  # fmt: skip
        part = tmp_path / f"{FILE}.part"
        until(lambda: part.exists() and part.stat().st_size > 1500)
        child.send_signal(sign)
        out, err = child.communicate(timeout=20)
    assert child.returncode == 130 and out == ""
    assert f"of {FILE} are kept; the same command goes on from there" in err and "Traceback" not in err
    assert below(tmp_path) == {f"{FILE}.part", f"{FILE}.part.json"}
    server.faults.drip_bytes_s = 0
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0 and "goes on after" in done.stderr
    assert done.stdout.endswith(f"serve it: llamad add tiny {tmp_path / FILE}\n")
    assert (tmp_path / FILE).read_bytes() == data


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_server_without_ranges_is_read_again_from_the_start(get: Callable[..., Pulled], server: HubServer, data: bytes) -> None:
    server.faults.ignore_ranges = True
    server.faults.drops, server.faults.drop_after_bytes = 2, 700_000
    assert get(plain(server), connections=4).model.read_bytes() == data
    assert len(server.asked(FILE)) == 3  # the look was cut short too


def test_without_a_mark_of_the_content_nothing_is_put_together(
    get: Callable[..., Pulled], server: HubServer, data: bytes, tmp_path: Path
) -> None:
    server.faults.etags = False
    server.faults.drops, server.faults.drop_after_bytes = 2, 700_000
    notes = Notes()
    assert get(plain(server), connections=4, notes=notes).model.read_bytes() == data
    assert [("begun anew" in note) for note in notes.notes] == [True, True]
    server.faults.drops = 10
    with pytest.raises(BusyError, match="begun 4 times"):
        get(plain(server), to=tmp_path / "other.gguf")
    assert nothing_looks_whole(tmp_path / "other.gguf")


def test_a_hash_makes_up_for_the_mark_that_is_missing(get: Callable[..., Pulled], server: HubServer, data: bytes) -> None:
    server.faults.etags = False
    server.faults.drops, server.faults.drop_after_bytes = 9, 100_000
    pulled = get(plain(server), sha256=hashlib.sha256(data).hexdigest().upper())
    assert pulled.model.read_bytes() == data and pulled.sure


def test_a_file_that_changes_is_never_glued_together(get: Callable[..., Pulled], server: HubServer, data: bytes) -> None:
    changed = data[:400_000] + bytes(len(data) - 400_000)
    server.faults.drops, server.faults.drop_after_bytes = 3, 300_000
    server.faults.change_after_requests, server.faults.changed = 3, changed
    notes = Notes()
    assert get(plain(server), notes=notes).model.read_bytes() == changed
    assert any("changed: begun anew" in note for note in notes.notes)


def test_a_change_is_seen_where_the_server_does_not_look_at_if_range(get: Callable[..., Pulled], server: HubServer, data: bytes) -> None:
    changed = data[:400_000] + bytes(len(data) - 400_000)
    server.faults.ignore_if_range = True
    server.faults.drops, server.faults.drop_after_bytes = 3, 300_000
    server.faults.change_after_requests, server.faults.changed = 3, changed
    assert get(plain(server)).model.read_bytes() == changed


def test_a_change_between_two_calls_begins_anew(get: Callable[..., Pulled], server: HubServer, data: bytes, tmp_path: Path) -> None:
    server.faults.drops = 100
    server.faults.drop_after_bytes = 0
    target = tmp_path / "models" / FILE
    target.parent.mkdir()
    part = Part(target)
    key = hashlib.sha256(plain(server).encode()).hexdigest()
    part.begin(Content(f"url:{key}", '"old"', len(data)))
    part.write(0, bytes(1000), part.generation)
    part.checkpoint()
    part.close()
    server.faults.drops = 0
    notes = Notes()
    assert get(plain(server), notes=notes).model.read_bytes() == data
    assert notes.notes == []


def test_a_slow_server_is_given_up_and_what_came_is_kept(get: Callable[..., Pulled], server: HubServer, tmp_path: Path) -> None:
    server.faults.drip_bytes_s = 1000
    with pytest.raises(BusyError, match=r"cannot fetch.*bytes came in"):
        get(plain(server))
    server.faults.stop.set()
    assert nothing_looks_whole(tmp_path) and (tmp_path / "models" / f"{FILE}.part.json").exists()


def test_a_server_that_asks_for_patience_gets_it(get: Callable[..., Pulled], server: HubServer, data: bytes) -> None:
    server.faults.statuses, server.faults.retry_after = [503, 429], "1"
    began_s = time.monotonic()
    assert get(plain(server)).model.read_bytes() == data
    assert time.monotonic() - began_s >= 2


def test_a_server_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(BusyError, match="refused"):
        pull(Order("http://127.0.0.1:1/x.gguf"), Notes(), {}, folder=tmp_path, patience=QUICK)
    assert below(tmp_path) == set()


# -- what is refused -------------------------------------------------------------------------------------------


def refused(get: Callable[..., Pulled], tmp_path: Path, kind: type[LlamadError], text: str, *words: str, **more: object) -> None:
    with pytest.raises(kind, match=text):
        get(*words, **more)
    assert nothing_looks_whole(tmp_path)


def test_wrong_bytes_are_refused_and_thrown_away(get: Callable[..., Pulled], server: HubServer, tmp_path: Path) -> None:
    server.faults.wrong_at = 777_777
    refused(get, tmp_path, BadModelError, "SHA-256", REPO)
    assert below(tmp_path) == set()
    refused(get, tmp_path, BadModelError, "SHA-256", plain(server), sha256="0" * 64)
    assert below(tmp_path) == set()


def test_wrong_bytes_of_a_former_call_cost_a_second_download(get: Callable[..., Pulled], server: HubServer, data: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "org" / "Tiny-GGUF"
    folder.mkdir(parents=True)
    part = Part(folder / FILE)
    sha256 = hashlib.sha256(data).hexdigest()
    part.begin(Content(f"hub:{REPO}:{FILE}", f"sha256:{sha256}", len(data)))
    part.write(0, bytes(500), part.generation)
    part.checkpoint()
    part.close()
    notes = Notes()
    assert get(notes=notes).model.read_bytes() == data
    assert notes.notes == ["goes on after 0 %", "what was there before is not of this file: begun anew"]


def test_lies_about_sizes_are_refused(get: Callable[..., Pulled], server: HubServer, data: bytes, tmp_path: Path) -> None:
    server.faults.claim_bytes = 5000
    refused(get, tmp_path, BadModelError, "offers", REPO)
    server.faults.ignore_ranges = True
    refused(get, tmp_path, BusyError, "ended early", plain(server))
    server.faults.claim_bytes, server.faults.ignore_ranges = 0, False
    server.sizes[FILE] = len(data) - 1
    refused(get, tmp_path, BadModelError, "published are", REPO)
    server.faults.chunked = server.faults.ignore_ranges = True
    refused(get, tmp_path, BusyError, "does not tell the size", plain(server))
    server.faults.chunked, server.faults.content_encoding = False, "gzip"
    refused(get, tmp_path, BusyError, "compressed", plain(server))


def test_other_bytes_than_those_asked_for_are_not_taken(get: Callable[..., Pulled], server: HubServer, tmp_path: Path) -> None:
    server.faults.drops, server.faults.drop_after_bytes, server.faults.tell_start = 1, 300_000, 7
    refused(get, tmp_path, BusyError, "other bytes", plain(server))


def test_what_is_no_model_is_refused_before_it_is_fetched(get: Callable[..., Pulled], server: HubServer, tmp_path: Path) -> None:
    server.repos["plain"][FILE] = b"<!DOCTYPE html><p>Please log in" + bytes(3_000_000)
    refused(get, tmp_path, BadModelError, "web page", plain(server))
    assert len(server.asked(FILE)) == 1 and below(tmp_path) == set()


def test_a_model_that_was_cut_off_where_it_is_published_is_refused(get: Callable[..., Pulled], server: HubServer, data: bytes, tmp_path: Path) -> None:
    server.repos["plain"][FILE] = data[:-4096]
    refused(get, tmp_path, BadModelError, "cut off", plain(server))
    assert below(tmp_path) == set()


def test_redirects_are_followed_bounded_and_never_in_a_circle(get: Callable[..., Pulled], server: HubServer, data: bytes, tmp_path: Path) -> None:
    faults, path = server.faults, f"/plain/{FILE}"
    faults.redirects = {"/plain/a.gguf": "/plain/b.gguf", "/plain/b.gguf": path}
    assert get(f"{server.url}/plain/a.gguf", to=tmp_path / "one.gguf").model.read_bytes() == data
    (tmp_path / "one.gguf").unlink()
    faults.redirects["/plain/b.gguf"] = "/plain/a.gguf"
    refused(get, tmp_path, AccessError, "circle", f"{server.url}/plain/a.gguf")
    faults.redirects = {f"/plain/{n}.gguf": f"/plain/{n + 1}.gguf" for n in range(20)}
    refused(get, tmp_path, AccessError, "more than 10", f"{server.url}/plain/0.gguf")
    for target in ("file:///etc/passwd", "gopher://x/", "http://user:pw@h/x", "", "http://[::1/x"):
        faults.redirects = {path: target}
        refused(get, tmp_path, AccessError, "no address", plain(server))


@pytest.mark.parametrize(
    ("status", "kind", "text"),
    [(401, AccessError, "--token-file"), (403, AccessError, "--token-file"), (404, ModelMissingError, "404"), (418, BusyError, "418")],
)
def test_statuses_have_their_meaning(
    status: int, kind: type[LlamadError], text: str, get: Callable[..., Pulled], server: HubServer, tmp_path: Path
) -> None:
    server.faults.statuses = [status]
    refused(get, tmp_path, kind, text, plain(server))
    assert len(server.asked(FILE)) == 1 and below(tmp_path) == set()


@pytest.mark.parametrize(
    "name", ["../x.gguf", "..", "a/../../x.gguf", "x\x1b[31m.gguf", "x\n.gguf", ".x.gguf", "-x.gguf", "x" * 300 + ".gguf", "a\\b.gguf"]
)
def test_names_of_a_server_lead_nowhere_else(name: str, get: Callable[..., Pulled], server: HubServer, data: bytes, tmp_path: Path) -> None:
    server.repos[REPO] = {name: data}
    try:
        got = get()
    except LlamadError as error:
        assert str(error).isprintable()
    else:
        assert got.model.parent == tmp_path / "models" / "org" / "Tiny-GGUF"
    assert all(line.startswith("models/org/Tiny-GGUF/") for line in below(tmp_path))


def test_a_file_that_came_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    part = Part(tmp_path / FILE)
    part.begin(Content("k", '"m"', 4))
    part.write(0, b"data", part.generation)
    (tmp_path / FILE).write_bytes(b"other")
    with pytest.raises(UsageError, match="there already"):
        part.publish()
    part.close()
    assert (tmp_path / FILE).read_bytes() == b"other" and (tmp_path / f"{FILE}.part").read_bytes() == b"data"


def test_a_link_in_the_way_is_not_followed(get: Callable[..., Pulled], server: HubServer, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "models" / f"{FILE}.part").symlink_to(victim)
    with pytest.raises(LlamadError):
        get(plain(server))
    (tmp_path / "models" / f"{FILE}.part").unlink()
    (tmp_path / "models" / FILE).symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no file"):
        get(plain(server))
    assert victim.read_text() == "mine" and not (tmp_path / "nowhere").exists()


def test_the_second_of_two_is_told(get: Callable[..., Pulled], server: HubServer, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    part = Part(tmp_path / "models" / FILE)
    with pytest.raises(BusyError, match="is being fetched already"):
        get(plain(server))
    part.close()
    assert get(plain(server)).model.exists()


# -- the disk --------------------------------------------------------------------------------------------------


def test_a_disk_that_is_too_small_is_told_before(get: Callable[..., Pulled], server: HubServer, tmp_path: Path) -> None:
    server.sizes[FILE] = 1 << 49
    refused(get, tmp_path, BusyError, "no room for the model.*are free", REPO)
    assert not server.asked("/resolve/") and below(tmp_path) == set()


def test_room_is_kept_for_what_is_not_there_yet(tmp_path: Path) -> None:
    part = Part(tmp_path / "x.gguf")
    part.begin(Content("k", '"m"', 8 << 20))
    status = os.stat(part.path)
    if status.st_blocks == 0:
        pytest.skip("needs a file system with fallocate")
    assert status.st_size == 0 and status.st_blocks * 512 >= 8 << 20
    part.close()
    assert below(tmp_path) == set()


def test_a_disk_that_becomes_full_leaves_what_can_be_gone_on_with(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: the same place fails with another errno."""
    import resource

    part = Part(tmp_path / "x.gguf")
    part.begin(Content("k", '"m"', 100_000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        part.write(0, bytes(40_000), part.generation)
        with pytest.raises((BusyError, AccessError)):
            part.write(50_000, bytes(10_000), part.generation)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    part.checkpoint()
    part.close()
    again = Part(tmp_path / "x.gguf")
    assert again.begin(Content("k", '"m"', 100_000)) == 40_000
    assert again.missing() == [(40_000, 100_000)]
    again.discard()
    assert below(tmp_path) == set()


def test_state_of_a_disk_is_not_believed_beyond_the_file(tmp_path: Path) -> None:
    content = Content("k", '"m"', 100_000)
    for done in ([[0, 90_000]], [[5, 1]], [[0, 10], [5, 20]], "x", [[0, "1"]], [[-5, 10]]):
        part = Part(tmp_path / "x.gguf")
        part.begin(content)
        part.write(0, bytes(100), part.generation)
        part.checkpoint()
        state = tmp_path / "x.gguf.part.json"
        state.write_text(json.dumps(json.loads(state.read_text()) | {"done": done}))
        part.close()
        again = Part(tmp_path / "x.gguf")
        assert again.begin(content) == 0
        again.discard()


# -- how far it has come -----------------------------------------------------------------------------------------


def test_a_log_gets_plain_lines_and_a_terminal_one_that_moves(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Progress(sys.stderr, terminal=True)
    shown.progress("m.gguf", "fetching", 1 << 30, 4 << 30)
    shown.note("odd \x1b[2J thing")
    text = capsys.readouterr().err
    assert text.startswith("\rfetching m.gguf [#####               ] 1.0 GiB of 4.0 GiB (25%)")
    assert text.endswith("odd \\x1b[2J thing\n") and "\x1b" not in text
    plain_lines = Progress(sys.stderr, terminal=False)
    for done in range(1000):
        plain_lines.progress("m.gguf", "fetching", done, 1000)
    assert capsys.readouterr().err == ""
    assert [time_text(s) for s in (9.4, 200, 7500, 1e6)] == ["9 s", "3 min 20 s", "2 h 5 min", "more than 2 days"]


def test_what_is_to_be_written_into_a_definition_is_toml(server: HubServer, data: bytes, tmp_path: Path) -> None:
    """Whatever the hub calls its files."""
    odd = 'x"y-mmproj-F16.gguf'
    server.repos[REPO] |= {FILE: data, odd: data}
    env = dict(os.environ, HF_ENDPOINT=server.url)
    words = [sys.executable, "-m", "llamad", "pull", f"{REPO}:q4_k_m", "--mmproj", "--to", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=30, check=True)
    assert tomllib.loads(done.stdout.partition("in its definition:\n")[2])["vision"]["mmproj"] == f"{tmp_path}/{odd}"
