"""Capabilities: the recorded help of build 11669, older spellings, and the cache's identity."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from llamad.engine.capabilities import gates_of, parse_capabilities, parse_help, read_capabilities
from llamad.engine.files import identity
from llamad.errors import ConfigError, DeviceError
from llamad.planning.plan import BuildGates

DATA = Path(__file__).parents[1] / "data" / "engine"
HELP = (DATA / "help_11669.txt").read_text()
VERSION = (DATA / "version_11669.txt").read_text()
ENV = {"PATH": "/usr/bin:/bin"}

OLD_HELP = """\
----- common params -----

-h,    --help, --usage                  print usage and exit
-c,    --ctx-size N                     size of the prompt context (default: 4096, 0 = loaded from model)
                                        (env: LLAMA_ARG_CTX_SIZE)
-fa,   --flash-attn                     enable Flash Attention (default: disabled)
--mlock                                 force system to keep model in RAM
--no-mmap                               do not memory-map model
-sm,   --split-mode {none,layer,row}    how to split the model across multiple GPUs, one of:
                                        - none: use one GPU only
                                        - layer (default): split layers and KV across GPUs
-m,    --model FNAME                    model path
-lv,   --verbosity, --log-verbosity N   Set the verbosity threshold. Messages with a higher verbosity will be
                                        ignored.
--host HOST                             ip address to listen, or bind to an UNIX socket if the address ends
                                        with .sock (default: 127.0.0.1)
"""


def installed(folder: Path, help_text: str = HELP, version: str = VERSION) -> str:
    """A program that answers as a llama-server does, and counts how often it is run."""
    (folder / "help").write_text(help_text)
    (folder / "version").write_text(version)
    server = folder / "llama-server"
    server.write_text(
        f'#!/bin/sh\necho "$1" >>{folder}/runs\n'
        f"case $1 in --help) cat {folder}/help;; --version) cat {folder}/version >&2;; esac\n"
    )
    server.chmod(0o755)
    return str(server)


def runs(folder: Path) -> list[str]:
    return sorted((folder / "runs").read_text().split())


def test_what_build_11669_offers() -> None:
    found = parse_capabilities("/usr/bin/llama-server", HELP, VERSION, "key")
    assert (found.build, found.version) == (11669, "0.7.0 (build 11669, commit Debian)")
    assert all(
        found.has(flag) for flag in ("-m", "-kvu", "--no-kv-unified", "--load-mode", "--log-jsonl", "--fit")
    )
    assert not any(
        found.has(flag) for flag in ("--mlock", "--draft-max", "--draft", "--defrag-thold", "-dt")
    )
    assert found.values["--load-mode"] == {"auto", "none", "mmap", "mlock", "mmap+mlock", "dio"}
    assert found.values["-fa"] == {"on", "off", "auto"}
    assert {"q8_0", "f16"} <= found.values["-ctk"] == found.values["--cache-type-v"]
    assert "trace" in found.values["-lv"]
    assert found.gates == BuildGates.of_build(11669)


def test_older_spellings() -> None:
    found = parse_capabilities(
        "/opt/llama-server", OLD_HELP, "version: 8763 (ff5ef8278)\nbuilt with cc", "key"
    )
    assert found.build == 8763
    assert "-fa" not in found.values and "trace" not in found.values.get("-lv", ())
    assert found.has("--mlock") and not found.has("--load-mode")
    assert found.values["--split-mode"] == {"none", "layer", "row"}
    assert not found.gates.outputs_limited


@pytest.mark.parametrize(
    ("version", "build"),
    [
        (
            "ggml_cuda_init: found 1 CUDA devices:\nversion: 0.5.0-dev (build 10488, commit 0c1e57098)\n",
            10488,
        ),
        ("version: 1 (unknown)\n", 0),
        ("version: 0.7.0-dev (build 0, commit unknown)\n", 0),
        ("nothing of the kind\n", 0),
    ],
)
def test_version_forms(version: str, build: int) -> None:
    assert parse_capabilities("/x", OLD_HELP, version, "").build == build


def test_a_build_without_a_number_is_dated_by_its_flags() -> None:
    assert gates_of(0, parse_help(HELP)[0]) == BuildGates.of_build(0)
    old = gates_of(0, parse_help(OLD_HELP)[0])
    assert not old.mask_f16 and not old.outputs_limited and old.scratch_in_graph


def test_something_else_is_refused() -> None:
    with pytest.raises(ConfigError, match="no llama-server that llamad can run"):
        parse_capabilities("/usr/bin/llama-bench", "usage: llama-bench [options]\n", "", "")


def test_asked_once_then_cached_until_a_library_changes(tmp_path: Path) -> None:
    server, cache = installed(tmp_path), tmp_path / "cache" / "capabilities.json"
    first = read_capabilities(server, ENV, cache)
    assert read_capabilities(server, ENV, cache) == first
    assert runs(tmp_path) == ["--help", "--version"]
    (tmp_path / "libggml-vulkan.so").write_text("a backend package was installed")
    second = read_capabilities(server, ENV, cache)
    assert second.key != first.key and second.flags == first.flags
    assert len(runs(tmp_path)) == 4


@pytest.mark.parametrize(
    "garbage", ["", "{", "[]", "null", '{"format":1}', '{"format":1,"key":"KEY","flags":7}']
)
def test_a_garbage_cache_is_ignored_and_replaced(tmp_path: Path, garbage: str) -> None:
    server, cache = installed(tmp_path), tmp_path / "capabilities.json"
    cache.write_text(garbage.replace("KEY", identity(server, ENV)))
    assert read_capabilities(server, ENV, cache).build == 11669
    assert json.loads(cache.read_text())["build"] == 11669


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    server = installed(tmp_path)
    (tmp_path / "file").write_text("")
    assert read_capabilities(server, ENV, tmp_path / "file" / "capabilities.json").build == 11669
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_identity_sees_libraries_of_the_system_and_only_those(tmp_path: Path) -> None:
    server = installed(tmp_path)
    backends = tmp_path / "usr" / "lib" / "x86_64-linux-gnu" / "ggml" / "backends0"
    backends.mkdir(parents=True)
    system = (str(tmp_path / "usr" / "lib"),)
    keys = {identity(server, {}, system)}
    (backends / "libggml-cuda.so").write_text("1")
    keys.add(identity(server, {}, system))
    os.utime(backends / "libggml-cuda.so", ns=(5, 5))
    keys.add(identity(server, {}, system))
    (backends.parents[1] / "libllama.so.0").symlink_to("libllama.so.0.7.0")  # dangling
    (backends.parents[1] / "libllama.so.0.7.0").write_text("1")
    keys.add(identity(server, {}, system))
    assert len(keys) == 4
    (backends.parents[1] / "libfoo.so").write_text("not ours")
    assert identity(server, {}, system) in keys


def test_a_server_that_hangs_or_cannot_load_its_libraries(tmp_path: Path) -> None:
    server = tmp_path / "llama-server"
    server.write_text("#!/bin/sh\nexec sleep 1000\n")
    server.chmod(0o755)
    with pytest.raises(DeviceError, match=r"did not answer within 0\.3 s"):
        read_capabilities(str(server), ENV, None, 0.3)
    server.write_text("#!/bin/sh\necho 'libllama.so.0: cannot open shared object file' >&2\nexit 127\n")
    with pytest.raises(ConfigError) as caught:
        read_capabilities(str(server), ENV, None)
    assert "libllama.so.0: cannot open shared object file" in str(caught.value)
