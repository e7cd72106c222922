"""Ways in which the real llama-server ends by itself, each provoked for real: what it says decides its cause.

    python3 -m tests.support.exits OUT-FOLDER [NAME ...]

writes one log a case (both pipes, as they came), to be kept as tests/data/causes/*.log. It needs llama.cpp with
its Vulkan backend, a software Vulkan device, util-linux, and room for a few MB.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from llamad.engine.environment import child_environment
from tests.support.gguf_writer import GgmlType, Tensor, string, u32, write_gguf
from tests.support.models import build_tiny

VULKAN = {"GGML_VK_VISIBLE_DEVICES": "0"}
DEADLINE_S = 120.0


@dataclass(frozen=True)
class Exit:
    """One way to end. `args` follow the socket's; `{dir}` is the folder of the case."""

    name: str
    cause: str
    """The name that the classifier must find."""
    args: tuple[str, ...] = ("-m", "{dir}/tiny.gguf")
    env: dict[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()
    prepare: Callable[[Path], object] = lambda folder: build_tiny(folder / "tiny.gguf")
    code: int = 1
    """Exit status as subprocess gives it."""


def _tiny(**changes: object) -> Callable[[Path], object]:
    return lambda folder: build_tiny(folder / "tiny.gguf", **changes)  # type: ignore[arg-type]


def _partial(folder: Path) -> None:
    whole = build_tiny(folder / "tiny.gguf")
    os.truncate(whole, whole.stat().st_size * 2 // 3)


def _page(folder: Path) -> None:
    (folder / "tiny.gguf").write_text("<!DOCTYPE html><html>404</html>\n" * 100)


def _header_only(folder: Path) -> None:
    whole = build_tiny(folder / "tiny.gguf")
    os.truncate(whole, 2000)


def _patched(old: bytes, new: bytes) -> Callable[[Path], object]:
    """The same length, so that every offset stays right."""

    def prepare(folder: Path) -> None:
        assert len(old) == len(new)
        path = build_tiny(folder / "tiny.gguf")
        data = path.read_bytes()
        assert old in data
        path.write_bytes(data.replace(old, new, 1))

    return prepare


def _clip(folder: Path) -> None:
    metadata = {"general.architecture": string("clip"), "clip.vision.block_count": u32(1)}
    tensors = [Tensor("v.patch_embd.weight", (16, 16), GgmlType.F32)]
    write_gguf(folder / "mmproj.gguf", metadata, tensors, lambda file, one: file.write(b"\0" * one.size_bytes))
    build_tiny(folder / "tiny.gguf")


def _stale_socket(folder: Path) -> None:
    build_tiny(folder / "tiny.gguf")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "llama.sock"))
    listener.close()


def _unreadable(folder: Path) -> None:
    build_tiny(folder / "tiny.gguf").chmod(0)
    folder.chmod(0o777)


def _second_shard_gone(folder: Path) -> None:
    build_tiny(folder / "tiny.gguf", shards=2)
    next(folder.glob("*-00002-of-00002.gguf")).unlink()


def _long(folder: Path) -> None:
    """A hole behind the model: mapped with it, and never read."""
    os.truncate(build_tiny(folder / "tiny.gguf"), 3 << 30)


def _model_args(*more: str) -> tuple[str, ...]:
    return ("-m", "{dir}/tiny.gguf", *more)


_WIDE = {"heads": 16, "kv_heads": 16, "embd": 1024, "layers": 2, "ff": 64, "ctx_train_tokens": 1 << 20}

EXITS: tuple[Exit, ...] = (
    Exit("missing-file", "model-missing", ("-m", "{dir}/nothing.gguf")),
    Exit("second-shard-missing", "model-missing", ("-m", "{dir}/tiny-00001-of-00002.gguf"), prepare=_second_shard_gone),
    Exit("no-permission", "permission", prefix=("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"),
         prepare=_unreadable),
    Exit("partial-file", "model-bad", prepare=_partial),
    Exit("partial-header", "model-bad", prepare=_header_only),
    Exit("not-a-gguf", "model-bad", prepare=_page),
    Exit("unknown-architecture", "model-unsupported", prepare=_patched(b"llama", b"lluma")),
    Exit("unknown-tokenizer", "model-unsupported", prepare=_patched(b"gpt-2", b"gpx-2")),
    Exit("mmproj-as-model", "model-unsupported", ("-m", "{dir}/mmproj.gguf"), prepare=_clip),
    Exit("missing-tensor", "model-bad", prepare=_patched(b"blk.1.ffn_up.weight", b"blk.1.ffn_ux.weight")),
    Exit("missing-key", "model-bad", prepare=_patched(b"llama.block_count", b"llama.block_caunt")),
    Exit("bad-flag", "bad-flag", _model_args("--mlock")),
    Exit("bad-flag-value", "bad-flag", _model_args("--ctx-size", "many")),
    Exit("quantised-v-without-flash-attention", "bad-flag",
         _model_args("-ctv", "q8_0", "-ctk", "q8_0", "-fa", "off")),
    Exit("bad-template", "bad-template", _model_args("--jinja", "--chat-template", "{% for x %}")),
    Exit("template-file-missing", "bad-flag", _model_args("--chat-template-file", "{dir}/none.jinja")),
    Exit("socket-in-use", "address-in-use", prepare=_stale_socket),
    Exit("lora-missing", "bad-lora", _model_args("--lora", "{dir}/none.gguf")),
    Exit("lora-of-another-model", "bad-lora", _model_args("--lora", "{dir}/tiny.gguf")),
    Exit("draft-missing", "bad-draft", _model_args("-md", "{dir}/none.gguf")),
    Exit("mmproj-missing", "bad-projector", _model_args("--mmproj", "{dir}/none.gguf")),
    Exit("mmproj-is-no-projector", "bad-projector", _model_args("--mmproj", "{dir}/tiny.gguf")),
    Exit("invalid-device", "no-device", _model_args("--device", "CUDA0")),
    Exit("no-backend", "no-backend", env={"GGML_BACKEND_PATH": "/nonexistent.so", "HIDE_BACKENDS": "1"}),
    Exit("weights-too-large", "gpu-out-of-memory-weights", _model_args("-ngl", "99"),
         env={**VULKAN, "GGML_VK_FORCE_MAX_BUFFER_SIZE": "1000000"}),
    Exit("context-too-large", "gpu-out-of-memory-context", _model_args("-ngl", "99", "-c", "1048576"),
         env={**VULKAN, "GGML_VK_FORCE_MAX_BUFFER_SIZE": "300000000"}, prepare=_tiny(**_WIDE)),
    Exit("compute-too-large", "gpu-out-of-memory-compute", _model_args("-ngl", "99", "-c", "4096", "-ub", "4096", "-b", "4096", "-fa", "off"),
         env={**VULKAN, "GGML_VK_FORCE_MAX_BUFFER_SIZE": "20000000"}),
    Exit("address-space-of-context", "address-space", _model_args("-c", "1048576"),
         prefix=("prlimit", "--as=1500000000"), prepare=_tiny(**_WIDE)),
    Exit("address-space-of-mmap", "address-space", prefix=("prlimit", "--as=1500000000"), prepare=_long),
    Exit("address-space-of-threads", "address-space", prefix=("prlimit", "--as=250000000"), code=-6),
    Exit("without-a-word", "without-a-word", _model_args("-ngl", "99"), env=VULKAN,
         prefix=("prlimit", "--as=650000000"), code=-11),
)  # fmt: skip


def provoke(case: Exit, folder: Path, server: str = "llama-server") -> tuple[int, bytes, bytes]:
    """Run the case in an empty folder: exit status, stdout, stderr."""
    case.prepare(folder)
    environment = child_environment({k: v for k, v in case.env.items() if k != "HIDE_BACKENDS"}, folder / "cache")
    argv = [*case.prefix, server, "--host", f"{folder}/llama.sock", "--fit", "off", "--log-jsonl", "-lv", "4",
            "--log-colors", "off", "--offline", *(word.replace("{dir}", str(folder)) for word in case.args)]  # fmt: skip
    if "HIDE_BACKENDS" in case.env:
        hide = "mount -t tmpfs none /usr/lib/*/ggml/backends0 && exec \"$@\""
        argv = ["unshare", "--mount", "sh", "-c", hide, "sh", *argv]
    done = subprocess.run(argv, env=environment, capture_output=True, timeout=DEADLINE_S, check=False, cwd="/")
    return done.returncode, done.stdout, done.stderr


def main(words: list[str]) -> int:
    """Capture the logs of all cases, or of those named."""
    import tempfile

    out, names = Path(words[0]), words[1:]
    out.mkdir(parents=True, exist_ok=True)
    for case in EXITS:
        if names and case.name not in names:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "case"
            folder.mkdir()
            Path(scratch).chmod(0o755)
            code, stdout, stderr = provoke(case, folder)
            text = (stdout + stderr).replace(str(folder).encode(), b"/case")
        (out / f"{case.name}.log").write_bytes(text)
        print(f"{case.name}: {code} (expected {case.code})")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
