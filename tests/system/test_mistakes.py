"""What an admin gets wrong, and what llamad says: one line with file, line, column and a fix."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.conftest import ETC, MODELS, Bed, chat, run


def test_a_name_without_a_definition(bed: Bed) -> None:
    bed.define("phi4")
    assert bed.ctl("start", "llamad@ph4", check=False).returncode != 0
    status = bed.ctl("status", "--no-pager", "llamad@ph4", check=False).stdout
    assert str(ETC / "ph4.toml") in status
    assert "phi4" in status.replace("llamad@ph4", "")
    assert bed.show("llamad@ph4", "ExecMainStatus") == "78"
    assert bed.show("llamad@ph4", "ActiveState") == "failed"


def _truncated(tiny: Path) -> Path:
    path = MODELS / "cut.gguf"
    path.write_bytes(tiny.read_bytes()[:100_000])
    path.chmod(0o644)
    return path


def _not_gguf(_tiny: Path) -> Path:
    path = MODELS / "page.gguf"
    path.write_text("<!DOCTYPE html><title>404</title>")
    path.chmod(0o644)
    return path


Text = Callable[[Bed], str]

MISTAKES: dict[str, tuple[Text, int, str]] = {
    # name: (the definition, the line of the mistake, a pattern of what must be said)
    "misspelt key": (lambda b: f'model = "{b.tiny}"\n[placement]\ncontxt = 4096\n', 3, r"contxt.*did you mean.*context"),
    "wrong type": (lambda b: f'model = "{b.tiny}"\n[placement]\ncontext = "8k"\n', 3, r"context.*8192"),
    "unknown section": (lambda b: f'model = "{b.tiny}"\n[placment]\ncontext = 512\n', 2, r"placment.*did you mean.*placement"),
    "bad size": (lambda b: f'model = "{b.tiny}"\n[placement]\nvram_margin = "lots"\n', 3, r"vram_margin.*512MiB"),
    "missing file": (lambda b: 'model = "/var/lib/llamad/models/tny.gguf"\n', 1, r"model.*tny\.gguf"),
    "not a GGUF": (lambda b: f'model = "{_not_gguf(b.tiny)}"\n', 1, r"model.*(HTML|web page|not a GGUF)"),
    "truncated GGUF": (lambda b: f'model = "{_truncated(b.tiny)}"\n', 1, r"model.*(cut|truncated|incomplete|download)"),
    "duplicate address": (
        lambda b: f'model = "{b.tiny}"\nlisten = "127.0.0.1:{b.ports["good"]}"\n', 2, r"listen.*good"),
    "context above the trained length": (
        lambda b: f'model = "{b.tiny}"\n[placement]\ncontext = 99999744\n', 3, r"context.*trained"),
    "extra_args against a typed key": (
        lambda b: f'model = "{b.tiny}"\n[server]\nextra_args = ["-ngl", "35"]\n', 3, r"extra_args.*-ngl.*gpu_layers"),
    "extra_args that open a shell": (
        lambda b: f'model = "{b.tiny}"\n[server]\nextra_args = ["--tools", "all"]\n', 3, r"extra_args.*--tools"),
    "open to the network without keys": (
        lambda b: f'model = "{b.tiny}"\nlisten = "0.0.0.0:8999"\n', 2, r"listen.*key"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_place_and_fix(bed: Bed, mistake: str) -> None:
    good = bed.define("good", vulkan=False, extra="[placement]\nallow_cpu = true")
    bed.ctl("start", "llamad@good")
    main = bed.main_pid("good")
    text, line, pattern = MISTAKES[mistake]
    (ETC / "bad.toml").write_text(text(bed))

    checked = run("llamad", "check", "bad", check=False)
    assert checked.returncode == 78
    lines = checked.stderr.strip().splitlines()
    assert len(lines) == 1, checked.stderr
    place = re.match(rf"{re.escape(str(ETC))}/bad\.toml:{line}:\d+: ", lines[0])
    assert place, lines[0]
    assert re.search(pattern, lines[0]), lines[0]
    assert ";" in lines[0], "no fix in: " + lines[0]

    assert bed.ctl("start", "llamad@bad", check=False).returncode != 0
    code = bed.show("llamad@bad", "ExecMainStatus")
    assert code == ("66" if mistake == "missing file" else "65" if "GGUF" in mistake else "78")
    said = [str(r.get("MESSAGE")) for r in bed.journal("-u", "llamad@bad")]
    assert any(re.search(rf"bad\.toml:{line}:\d+: ", message) for message in said), said

    assert bed.main_pid("good") == main and bed.show("llamad@good", "ActiveState") == "active"
    assert chat(good)[0] == 200


def test_all_mistakes_at_once(bed: Bed) -> None:
    (ETC / "bad.toml").write_text('modle = "x"\n[placement]\nparalel = 2\nubatch = "big"\n')
    lines = run("llamad", "check", "bad", check=False).stderr.strip().splitlines()
    assert len(lines) >= 3
    assert [int(re.findall(r"toml:(\d+):", line)[0]) for line in lines] == sorted(
        int(re.findall(r"toml:(\d+):", line)[0]) for line in lines
    )


def test_folders_that_the_service_cannot_see_are_named(bed: Bed) -> None:
    for path, word in (("/root/m.gguf", "ProtectHome"), ("/home/m.gguf", "ProtectHome"), ("/tmp/m.gguf", "PrivateTmp")):
        Path(path).write_bytes(bed.tiny.read_bytes())
        try:
            (ETC / "bad.toml").write_text(f'model = "{path}"\n')
            said = run("llamad", "check", "bad", check=False).stderr
            assert word in said and "permission denied" not in said.lower(), said
            refused = run("llamad", "add", "other", path, check=False)
            assert refused.returncode != 0 and word in refused.stderr, refused.stderr
            assert not (ETC / "other.toml").exists()
        finally:
            Path(path).unlink()


def test_add_never_clobbers(bed: Bed) -> None:
    bed.define("tiny")
    before = (ETC / "tiny.toml").read_bytes()
    assert run("llamad", "add", "tiny", str(bed.tiny), check=False).returncode != 0
    assert (ETC / "tiny.toml").read_bytes() == before
