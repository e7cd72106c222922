"""Asking a hub, choosing files of it, and keeping its token."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import pytest

from llamad.errors import AccessError, BusyError, LlamadError, ModelMissingError, UsageError
from llamad.models.choose import HubFile, choose, label_of, named, offers, projector
from llamad.models.hub import endpoint_of, published
from llamad.models.pull import Order, pull
from llamad.models.reading import Patience
from llamad.models.source import HubSource, UrlSource, file_name, parse_source
from llamad.models.token import find_token
from llamad.models.web import Interrupted, body_of
from tests.support.certificates import make_certificate
from tests.support.hub_server import HubServer
from tests.support.models import build_tiny
from tests.unit.test_pull import QUICK, Notes, below

TOKEN = "hf_secretsecretsecret"
REPO = "org/Tiny-GGUF"
FILE = "Tiny-Q4_K_M.gguf"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return build_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf", layers=1, embd=64).read_bytes()


@pytest.fixture
def server(data: bytes) -> Iterator[HubServer]:
    with HubServer({REPO: {FILE: data}}) as made:
        yield made


def fetched(server: HubServer, folder: Path, source: str = REPO, **more: object) -> Notes:
    notes = Notes()
    environ = {"HF_ENDPOINT": server.url, "HOME": str(folder / "home")}
    patience: Patience = QUICK
    pull(Order(source, to=folder / "to", **more), notes, environ, patience=patience)  # type: ignore[arg-type]
    return notes


# -- words ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "source"),
    [
        ("org/repo", HubSource("org/repo")),
        ("org/repo:Q6_K", HubSource("org/repo", "Q6_K")),
        ("hf:org/repo/a/b.gguf", HubSource("org/repo", file="a/b.gguf")),
        ("hf.co/org/repo:UD-Q4_K_XL", HubSource("org/repo", "UD-Q4_K_XL")),
        ("https://huggingface.co/org/repo", HubSource("org/repo")),
        ("https://huggingface.co/org/repo/blob/v2/a.gguf", HubSource("org/repo", file="a.gguf", revision="v2")),
        ("https://x.org/a%20b.gguf?sig=1", UrlSource("https://x.org/a%20b.gguf?sig=1", "/a b.gguf")),
    ],
)
def test_words_that_name_a_model(word: str, source: object) -> None:
    assert parse_source(word) == source


@pytest.mark.parametrize(
    "word",
    ["", "repo", "../repo", "org/..", "org/re po", "org/repo:", "org/repo:Q4 K", "org/repo/x", "ftp://x/y.gguf", "https://",
     "https://user:pw@x.org/y.gguf", "http://x.org/a\nb.gguf", "http://x:port/y.gguf", "hf:org/repo/../x.gguf",
     "org/repo/a//b.gguf", "https://huggingface.co/o/r/blob/../x/a.gguf", "a" * 200 + "/b"],
)  # fmt: skip
def test_words_that_name_none(word: str) -> None:
    with pytest.raises(UsageError):
        parse_source(word)


def test_a_password_in_an_address_is_not_repeated() -> None:
    with pytest.raises(UsageError) as caught:
        parse_source("https://user:geheim@x.org/y.gguf")
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "/", "a/", ".gguf", "x.gguf\x00", "x\u202e.gguf", "~x.gguf", "x.bin"])
def test_names_that_no_file_gets(name: str) -> None:
    with pytest.raises(UsageError):
        file_name(name)


# -- choosing ------------------------------------------------------------------------------------------------


def files(*paths: str) -> list[HubFile]:
    return [HubFile(path, 1 << 30, "0" * 64) for path in paths]


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("Qwen3-8B-Q4_K_M.gguf", "Q4_K_M"), ("phi-4-q4.gguf", ""), ("x.IQ3_XXS.gguf", "IQ3_XXS"), ("m-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("UD-IQ1_S/m-UD-IQ1_S-00001-of-00003.gguf", "UD-IQ1_S"), ("BF16/m-00001-of-00002.gguf", "BF16"), ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("model-fp16.gguf", "F16"), ("M-Q8_0.gguf", "Q8_0"), ("M-Q6_K_L.gguf", "Q6_K_L"), ("Q4_K_M-is-good-F32.gguf", "F32"),
        ("x-Q4_0_4_8.gguf", "Q4_0_4_8"), ("notaQ4_K_M.gguf", ""), ("m.Q6_K.gguf", "Q6_K"),
    ],
)  # fmt: skip
def test_labels(path: str, label: str) -> None:
    assert label_of(path) == label


def test_the_default_and_what_stands_in_for_it() -> None:
    assert choose(files("m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-F16.gguf"), "o/r").label == "Q4_K_M"
    assert choose(files("m-Q8_0.gguf", "m-Q5_K_M.gguf", "m-Q2_K.gguf"), "o/r").label == "Q5_K_M"
    assert choose(files("m-Q2_K.gguf"), "o/r").label == "Q2_K"
    assert choose(files("m-UD-Q4_K_XL.gguf", "m-Q4_K_XL.gguf"), "o/r", "q4_k_xl").label == "Q4_K_XL"
    assert choose(files("m-UD-Q4_K_XL.gguf"), "o/r", "q4_k_xl").label == "UD-Q4_K_XL"


def test_shards_are_one_model_and_whole_or_none() -> None:
    shards = [f"d/m-Q4_K_M-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    assert [file.path for file in choose(files(*reversed(shards)), "o/r").files] == shards
    assert offers(files(*shards[:2])) == []
    with pytest.raises(ModelMissingError, match="a shard of it is missing"):
        named(files(*shards[:2]), "o/r", shards[0])
    assert [file.path for file in named(files(*shards), "o/r", shards[1]).files] == shards


def test_what_there_is_is_told() -> None:
    with pytest.raises(UsageError, match=r"holds no Q4_K_X: it holds Q4_K_M \(1.0 GiB\), Q8_0 .*did you mean o/r:Q4_K_M"):
        choose(files("m-Q4_K_M.gguf", "m-Q8_0.gguf"), "o/r", "Q4_K_X")
    with pytest.raises(UsageError, match="several models in Q4_K_M"):
        choose(files("a-Q4_K_M.gguf", "b-Q4_K_M.gguf"), "o/r")
    with pytest.raises(ModelMissingError, match="holds no GGUF"):
        choose(files("model.safetensors", "mmproj-F16.gguf", "imatrix.gguf"), "o/r")
    with pytest.raises(ModelMissingError, match=r"did you mean hf:o/r/a-Q4_K_M\.gguf"):
        named(files("a-Q4_K_M.gguf"), "o/r", "a-Q4_K_S.gguf")
    with pytest.raises(ModelMissingError, match="no projector"):
        projector(files("a-Q4_K_M.gguf"), "o/r")


# -- the interface ---------------------------------------------------------------------------------------------


def test_a_listing_of_many_pages(server: HubServer, data: bytes, tmp_path: Path) -> None:
    server.repos[REPO] = {f"m{n}.txt": b"" for n in range(25)} | {FILE: data}
    server.faults.page_rows = 10
    fetched(server, tmp_path)
    assert len(server.asked("/tree/")) == 3


@pytest.mark.parametrize("break_it", ["next_host", "no_repo", "nonsense"])
def test_answers_that_are_none(break_it: str, server: HubServer, tmp_path: Path) -> None:
    kind: type[LlamadError] = BusyError
    if break_it == "next_host":
        server.faults.page_rows, server.faults.next_host = 1, "http://127.0.0.2:1"
    elif break_it == "no_repo":
        server.repos.clear()
        kind = ModelMissingError
    else:
        server.repos[REPO] = {"x" * n: b"" for n in range(1, 60)}
        server.faults.page_rows = 1
    with pytest.raises(kind):
        fetched(server, tmp_path)
    assert below(tmp_path) == set()


def test_the_mirror_of_the_environment() -> None:
    assert endpoint_of({"HF_ENDPOINT": "https://mirror.org/"}) == "https://mirror.org"
    assert endpoint_of({}) == "https://huggingface.co"
    for bad in ("mirror", "file:///x", "https://u:p@x"):
        with pytest.raises(LlamadError):
            endpoint_of({"HF_ENDPOINT": bad})


def test_a_proxy_of_the_environment(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test server is the proxy: it is asked for an address of another host."""
    monkeypatch.setenv("http_proxy", server.url)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ModelMissingError):
        pull(Order("http://nowhere.invalid/a/m.gguf"), Notes(), {}, folder=tmp_path, patience=QUICK)
    assert server.requests[0].path == "http://nowhere.invalid/a/m.gguf"


# -- the token -------------------------------------------------------------------------------------------------


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    path.chmod(0o600)
    return path


def test_the_token_goes_to_the_hub_and_to_nobody_else(server: HubServer, data: bytes, token_file: Path, tmp_path: Path) -> None:
    with HubServer({"plain": {FILE: data}}) as other:
        path = server.asked("")  # nothing yet
        assert path == []
        commit_path = f"/{REPO}/resolve/0123456789abcdef0123456789abcdef01234567/{FILE}"
        server.faults.redirects = {commit_path: f"{other.url}/plain/{FILE}?signed=1"}
        fetched(server, tmp_path, token_file=str(token_file))
        assert {one.fields.get("authorization") for one in server.requests} == {f"Bearer {TOKEN}"}
        assert len(other.requests) == 2
        assert not [one for one in other.requests if "authorization" in one.fields]


def test_a_redirect_within_the_hub_keeps_the_token(server: HubServer, token_file: Path, tmp_path: Path) -> None:
    server.repos["org/New"] = server.repos.pop(REPO)
    server.faults.redirects = {f"/api/models/{REPO}/revision/main": f"{server.url}/api/models/org/New/revision/main"}
    with pytest.raises(ModelMissingError):
        fetched(server, tmp_path, token_file=str(token_file))  # its tree is asked for under the old name
    assert all("authorization" in one.fields for one in server.requests) and len(server.requests) == 3


def test_the_token_goes_through_no_proxy_without_encryption(
    server: HubServer, token_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", server.url)
    fetched(server, tmp_path, token_file=str(token_file))  # the test server is the proxy of its own address
    assert server.requests[0].path.startswith(server.url)
    assert not [one for one in server.requests if "authorization" in one.fields]


def test_no_token_without_encryption(token_file: Path, tmp_path: Path) -> None:
    environ = {"HF_ENDPOINT": "http://192.0.2.1"}
    with pytest.raises(UsageError, match="not encrypted"):
        pull(Order(REPO, to=tmp_path, token_file=str(token_file)), Notes(), environ, patience=QUICK)


def test_where_a_token_is_looked_for(token_file: Path, tmp_path: Path) -> None:
    home = tmp_path / "home/.cache/huggingface"
    home.mkdir(parents=True)
    shutil.copy(token_file, home / "token")
    environ = {"HOME": str(tmp_path / "home")}
    found = find_token(None, environ)
    assert found is not None and found.text == TOKEN and TOKEN not in repr(found)
    assert find_token(None, environ, for_mirror=True) is None
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "llamad.hub-token").write_text("other")
    (credentials / "llamad.hub-token").chmod(0o400)
    found = find_token(None, environ | {"CREDENTIALS_DIRECTORY": str(credentials)}, for_mirror=True)
    assert found is not None and found.text == "other"
    assert find_token(None, {}) is None


@pytest.mark.parametrize("content", ["", "two words", "x\x1b", "x" * 5000, "zwei\nzeilen"])
def test_what_is_no_token(content: str, token_file: Path) -> None:
    token_file.write_text(content)
    with pytest.raises(UsageError) as caught:
        find_token(str(token_file), {})
    assert not content or content not in str(caught.value)


def test_tokens_that_everybody_may_read_and_folders(token_file: Path, tmp_path: Path) -> None:
    token_file.chmod(0o644)
    with pytest.raises(AccessError, match="everybody may read"):
        find_token(str(token_file), {})
    with pytest.raises(LlamadError):
        find_token(str(tmp_path), {})
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="no file"):
        find_token(str(tmp_path / "pipe"), {})
    with pytest.raises(AccessError, match="No such file"):
        find_token(str(tmp_path / "none"), {})


# -- encryption --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    made = make_certificate(tmp_path_factory.mktemp("tls"))
    return str(made[0]), str(made[1])


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_certificates_are_checked_and_encryption_is_not_left(
    certificate: tuple[str, str], server: HubServer, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HubServer({REPO: {FILE: data}, "plain": {FILE: data}}, certificate) as safe:
        with pytest.raises(AccessError, match="is not trusted"):
            fetched(safe, tmp_path)
        assert safe.requests == []
        monkeypatch.setenv("SSL_CERT_FILE", certificate[0])
        fetched(safe, tmp_path)
        safe.faults.redirects = {"/plain/x.gguf": f"{server.url}/plain/{FILE}"}
        with pytest.raises(AccessError, match="from https to http"):
            pull(Order(f"{safe.url}/plain/x.gguf"), Notes(), {}, folder=tmp_path, patience=QUICK)
    assert server.requests == []
    assert below(tmp_path / "to") == {FILE, f"{FILE}.sha256"}


def test_what_a_repository_publishes(server: HubServer, data: bytes) -> None:
    found = published(REPO, {"HF_ENDPOINT": server.url}, wait=lambda _: None)
    assert [(file.path, file.size_bytes, len(file.sha256)) for file in found] == [(FILE, len(data), 64)]
    with pytest.raises(UsageError):
        published(f"{REPO}:Q4_K_M", {"HF_ENDPOINT": server.url}, wait=lambda _: None)


class _Drop:
    """An answer that comes byte by byte, without an end."""

    status = 200
    headers = Message()

    def read(self, most_bytes: int) -> bytes:
        return b" "[:most_bytes]

    def close(self) -> None:
        """Nothing to let go of."""


def test_an_answer_that_does_not_end_is_given_up() -> None:
    with pytest.raises(Interrupted, match="does not end"):
        body_of(_Drop(), 1 << 40, most_s=0.05)
