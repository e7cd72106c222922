"""`llamad verify`: whole files are good, and whatever is wrong with one is found and told."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from llamad.cli.main import main
from llamad.models.choose import HubFile
from llamad.models.sums import written_sum
from llamad.models.verify import Report, verify
from tests.support.gguf_fuzz import keys, model
from tests.support.gguf_writer import string, write_gguf
from tests.support.hub_server import HubServer
from tests.support.models import build_tiny


def quiet(_name: str, _done: int, _size: int) -> None:
    return


def look(path: Path, *, full: bool = False, **more: Any) -> Report:
    return verify(str(path), quiet, full=full, **more)


@pytest.fixture(scope="module")
def tiny_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return build_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", layers=1, embd=64).read_bytes()


@pytest.fixture
def tiny(tmp_path: Path, tiny_bytes: bytes) -> Path:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(tiny_bytes)
    return path


def sum_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def flip(path: Path, at: int = -100) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def test_a_whole_file(tiny: Path) -> None:
    report = look(tiny)
    assert (report.problem, report.exit_code, report.kind, report.quantisation) == ("", 0, "model", "F16")
    assert not report.proved and report.files[0].sha256 == ""
    report = look(tiny, full=True)
    assert report.files[0].sha256 == sum_of(tiny) and not report.proved


@pytest.mark.parametrize("form", ["sidecar", "bare", "binary", "list"])
def test_every_byte_against_a_written_sum(form: str, tiny: Path) -> None:
    sidecar = tiny.with_name("tiny.gguf.sha256")
    right = sum_of(tiny)
    texts = {"sidecar": f"{right}  tiny.gguf\n", "bare": right.upper(), "binary": f"{right} *tiny.gguf\r\n"}
    if form == "list":
        sidecar = tiny.with_name("SHA256SUMS")
        texts["list"] = f"{'0' * 64}  other.gguf\n# a remark\n{right}  ./tiny.gguf\n"
    sidecar.write_text(texts[form])
    assert look(tiny).files[0].against == str(sidecar) and not look(tiny).proved
    assert look(tiny, full=True).proved
    flip(tiny)
    assert look(tiny).problem == ""
    report = look(tiny, full=True)
    assert report.exit_code == 65 and report.problem.startswith("its SHA-256 is") and right in report.problem


def test_what_is_no_list_of_sums_promises_nothing(tiny: Path) -> None:
    for text in ("", "hello", "0" * 63, f"{'0' * 64}  other.gguf\n{'1' * 64}  another.gguf", "\x00" * 100):
        tiny.with_name("tiny.gguf.sha256").write_text(text)
        assert written_sum(tiny) is None, text
    tiny.with_name("tiny.gguf.sha256").unlink()
    os.mkfifo(tiny.with_name("tiny.gguf.sha256"))
    assert written_sum(tiny) is None


def test_what_a_hub_publishes(tiny: Path) -> None:
    right = HubFile("Q8/tiny.gguf", tiny.stat().st_size, sum_of(tiny))
    assert look(tiny, full=True, published=[right], hub="o/r").proved
    assert "publishes no file" in look(tiny, published=[], hub="o/r").problem
    assert "publishes 5" in look(tiny, published=[HubFile("tiny.gguf", 5, "")], hub="o/r").problem
    wrong = HubFile("tiny.gguf", tiny.stat().st_size, "0" * 64)
    assert look(tiny, full=True, published=[wrong, right], hub="o/r").exit_code == 65


def test_shards(tmp_path: Path) -> None:
    first = build_tiny(tmp_path / "s.gguf", layers=2, embd=64, shards=3)
    last = tmp_path / "s-00003-of-00003.gguf"
    report = look(last)  # any shard names the model
    assert report.problem == "" and report.path == str(first) and len(report.files) == 3
    (tmp_path / "SHA256SUMS").write_text("".join(f"{sum_of(p)}  {p.name}\n" for p in sorted(tmp_path.glob("*.gguf"))))
    assert look(first, full=True).proved
    flip(last)
    assert str(last) in look(first, full=True).problem
    other = build_tiny(tmp_path / "o.gguf", layers=3, embd=64, shards=3)
    os.replace(tmp_path / "o-00003-of-00003.gguf", last)
    assert look(first).exit_code == 65 and "shards hold" in look(first).problem
    last.unlink()
    assert look(first).exit_code == 66 and str(last) in look(first).problem
    assert look(other).exit_code == 66


def test_what_is_wrong_with_a_file(tiny: Path, tmp_path: Path) -> None:
    raw = tiny.read_bytes()
    cases = {
        raw[:-5000]: "cut off",
        raw[:100]: "ends inside its header",
        b"": "empty",
        b"<html>": "web page",
        b"GGUF" + struct.pack("<IQQ", 3, 1 << 40, 1): "claims",
    }
    for data, text in cases.items():
        tiny.write_bytes(data)
        report = look(tiny, full=True)
        assert text in report.problem and report.exit_code == 65, text
    assert look(tmp_path / "none.gguf").exit_code == 66
    assert look(tmp_path).exit_code == 65


def patched(path: Path, offsets: dict[int, int]) -> None:
    """Give tensors of a file other offsets: the n-th one of the table."""
    raw = bytearray(path.read_bytes())
    at = {}
    for number, tensor in enumerate(model()):
        name = tensor.name.encode()
        found = raw.find(struct.pack("<Q", len(name)) + name)
        at[number] = found + 8 + len(name) + 4 + 8 * len(tensor.dims) + 4
    for number, offset in offsets.items():
        struct.pack_into("<Q", raw, at[number], offset)
    path.write_bytes(raw)


def test_tensors_that_overlap_and_lie_outside(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, keys("llama"), model(), None)
    assert look(path).problem == ""
    patched(path, {1: 0})
    report = look(path)
    assert report.exit_code == 65 and "overlap" in report.problem
    write_gguf(path, keys("llama"), model(), None)
    patched(path, {1: 1 << 40})
    assert "outside the file" in look(path).problem
    write_gguf(path, keys("llama"), model(), None)
    patched(path, {1: 33})
    assert "not aligned" in look(path).problem


def test_bytes_behind_the_last_tensor_are_noted(tiny: Path) -> None:
    tiny.write_bytes(tiny.read_bytes() + bytes(5000))
    assert look(tiny).problem == "" and "after the last tensor" in look(tiny).notes[0]


def test_a_projector_is_looked_at_as_one(tmp_path: Path) -> None:
    write_gguf(tmp_path / "mmproj.gguf", {"general.architecture": string("clip")}, model()[:2], None)
    assert look(tmp_path / "mmproj.gguf").kind == "mmproj"


def test_the_verb(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "etc"
    root.mkdir()
    assert main(["--config", str(root), "verify"]) == 0
    write_gguf(tmp_path / "mmproj.gguf", {"general.architecture": string("clip")}, model()[:2], None)
    (root / "one.toml").write_text(f'model = "{tiny}"\n[vision]\nmmproj = "{tmp_path}/mmproj.gguf"\n')
    capsys.readouterr()
    assert main(["--config", str(root), "verify"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"good  {tiny}", f"good  {tmp_path}/mmproj.gguf"]
    gone, bad = str(tmp_path / "gone.gguf"), tmp_path / "b\x1bd.gguf"
    bad.write_bytes(b"no model")
    assert main(["--config", str(root), "verify", "one", gone]) == 66
    capsys.readouterr()
    assert main(["--config", str(root), "verify", "one", gone, str(bad)]) == 65
    assert "\x1b" not in capsys.readouterr().out
    assert main(["--config", str(root), "verify", "--json", "--full", str(tiny), gone]) == 66
    whole, missing = json.loads(capsys.readouterr().out)["models"]
    assert whole["good"] and whole["files"][0]["sha256"] == sum_of(tiny) and not whole["proved"]
    assert not missing["good"] and missing["problem"]
    with HubServer({"o/r": {"tiny.gguf": tiny.read_bytes()}}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        words = ["--config", str(root), "verify", "--full", "--hub", "o/r", str(tiny)]
        assert main(words) == 0
        assert "every byte as o/r says" in capsys.readouterr().out
        flip(tiny)
        assert main(words) == 65


def test_a_pipe_beside_a_model_is_no_list_of_sums(tiny: Path) -> None:
    os.mkfifo(tiny.with_name(tiny.name + ".sha256"))
    fd = os.open(tiny.with_name(tiny.name + ".sha256"), os.O_RDWR)
    try:
        assert written_sum(tiny) is None
    finally:
        os.close(fd)
