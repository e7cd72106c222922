"""Deaths and their names."""

from __future__ import annotations

import pytest

from llamad.errors import ExitCode
from llamad.supervision.cause import Death, classify

CASES = [
    (1, ["E ggml_backend_cuda_buffer_type_alloc_buffer: allocating 1024.00 MiB on device 0: cudaMalloc failed: out of memory"],
     "gpu-out-of-memory"),
    (1, ["ggml_vulkan: Requested buffer size exceeds device buffer size limit: ErrorOutOfDeviceMemory",
         "E srv  llama_server: exiting due to model loading error"], "gpu-out-of-memory"),
    (-6, ["/build/ggml-cuda.cu:109: CUDA error"], "gpu-error"),
    (-6, ["ggml_vulkan: device lost on Vulkan0"], "device-lost"),
    (1, ["error: invalid argument: --mlock"], "bad-flag"),
    (1, ["E failed to open GGUF file 'x.gguf' (No such file or directory)"], "model-missing"),
    (1, ["E gguf_init_from_file: invalid magic characters: '<!DO', expected 'GGUF'"], "model-bad"),
    (1, ["E llama_model_load: error loading model: unknown model architecture: 'foo'"], "model-unsupported"),
    (1, ["error: invalid device: CUDA0"], "no-device"),
    (1, ["E couldn't bind HTTP server socket, hostname: /run/x.sock, port: 0"], "address-in-use"),
    (1, ["E llama_mmap: mmap failed: Cannot allocate memory"], "host-out-of-memory"),
    (-11, [], "crash"),
    (-9, [], "killed"),
    (0, [], "exit"),
    (3, ["some words"], "exit"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "lines", "name"), CASES)
def test_names(code: int, lines: list[str], name: str) -> None:
    assert classify(Death(code, lines)).name == name


def test_the_first_telling_line_decides() -> None:
    lines = ["cudaMalloc failed: out of memory", "error loading model vocabulary"]
    assert classify(Death(1, lines)).name == "gpu-out-of-memory"


def test_the_kernels_killer_is_told_from_a_persons_kill() -> None:
    assert classify(Death(-9, [], oom_kills=1)).name == "host-out-of-memory"


def test_what_we_did_ourselves_is_not_blamed_on_others() -> None:
    assert classify(Death(-9, ["cudaMalloc failed: out of memory"], killed_because="stop")).name == "stopped"
    assert classify(Death(-9, [], killed_because="stalled")).name == "start-stalled"


def test_final_causes_name_the_exit_code_of_the_service() -> None:
    cause = classify(Death(1, ["error: invalid device: CUDA0"]))
    assert cause.final and cause.exit_code is ExitCode.NO_DEVICE


def test_lines_of_a_server_that_served_may_quote_clients_and_are_never_final() -> None:
    quoted = ['got exception: {"message": "cannot resolve $ref #/unknown model architecture"}', "Permission denied"]
    assert classify(Death(-9, quoted, served=True)).name == "killed"
    assert classify(Death(1, quoted)).final
    assert classify(Death(-6, [*quoted, "CUDA error: out of memory"], served=True)).name == "gpu-out-of-memory"
