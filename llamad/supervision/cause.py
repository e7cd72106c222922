"""Why a child died, from what is known: pure. llama-server exits 1 for every load failure, so lines decide.

Signatures are texts of llama.cpp (llama-model-loader.cpp, ggml-cuda.cu, ggml-vulkan.cpp, common/arg.cpp,
server-http.cpp); the first line that matches names the cause, later ones are generic.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from llamad.errors import ExitCode


@dataclass(frozen=True)
class Cause:
    """A class of death. `final`: trying again with the same definition cannot help."""

    name: str
    text: str
    fix: str
    final: bool = False
    exit_code: ExitCode = ExitCode.CRASH_LOOP


@dataclass(frozen=True)
class Death:
    """What is known of a child that is gone. `returncode` as subprocess gives it: -N for signal N."""

    returncode: int
    lines: Sequence[str]
    """The last log lines, oldest first."""
    oom_kills: int = 0
    """How many the kernel's out-of-memory killer took in our cgroup since the child was started."""
    served: bool = False
    """Whether it had been ready: then its lines may quote clients, who must not be able to have it given up."""
    killed_because: str = ""
    """Why we killed it ourselves: `stop`, `stalled`, `placement`, ...; empty if we did not."""


_GPU_OUT_OF_MEMORY = Cause(
    "gpu-out-of-memory",
    "the GPU had not enough memory",
    "see what else uses the GPU; or lower `context` in [placement], or set a larger `vram_margin`",
)

# (pattern, cause). Order is only a tie-break inside one line: the first line that matches anything decides.
_SIGNATURES: tuple[tuple[re.Pattern[str], Cause], ...] = tuple(
    (re.compile(pattern), cause)
    for pattern, cause in (
        (
            r"^setpriv: |^sh: \d+: ",
            Cause(
                "not-executed",
                "llama-server could not be executed",
                "read the line: setpriv (util-linux) must work in the unit's sandbox, the server must be there",
                final=True,
                exit_code=ExitCode.CONFIG,
            ),
        ),
        (
            r"error: invalid argument: (\S+)|error while handling argument|quantized V cache requires",
            Cause("bad-flag", "llama-server refused an option", "correct `extra_args` or the key named in the line",
                  final=True, exit_code=ExitCode.CONFIG),
        ),
        (
            r"chat template parsing error|failed to parse chat template",
            Cause("bad-template", "the chat template cannot be used", "correct `chat_template` in [server]",
                  final=True, exit_code=ExitCode.CONFIG),
        ),
        (
            r"invalid device: ",
            Cause("no-device", "a planned device is not there",
                  "check the driver and `llama-server --list-devices`; the unit is tried again by itself",
                  final=True, exit_code=ExitCode.NO_DEVICE),
        ),
        (
            r"no backends are loaded",
            Cause("no-backend", "llama-server found no ggml backend", "install libggml0-backend-* or set GGML_BACKEND_PATH",
                  final=True, exit_code=ExitCode.NO_DEVICE),
        ),
        (
            r"failed to load lora adapter",
            Cause("bad-lora", "a LoRA adapter cannot be loaded", "correct the adapter's path or file",
                  final=True, exit_code=ExitCode.BAD_MODEL),
        ),
        (
            r"failed to open GGUF file|failed to open .*\.gguf.*No such file",
            Cause("model-missing", "the model file cannot be opened", "restore the file or correct `model`",
                  final=True, exit_code=ExitCode.NO_MODEL_FILE),
        ),
        (
            r"unknown model architecture|CLIP cannot be used as main model|unknown pre-tokenizer type",
            Cause("model-unsupported", "this llama-server does not know this kind of model", "install a newer llama.cpp",
                  final=True, exit_code=ExitCode.BAD_MODEL),
        ),
        (
            r"invalid magic characters|failed to read magic|data is not within the file bounds|missing tensor|"
            r"wrong number of tensors|error loading model hyperparameters|error loading model vocabulary",
            Cause("model-bad", "the model file is damaged or incomplete", "download the file again and compare its checksum",
                  final=True, exit_code=ExitCode.BAD_MODEL),
        ),
        (
            r"couldn't bind HTTP server socket",
            Cause("address-in-use", "llama-server could not bind its socket",
                  "look for another process that holds the name; `llamad status` shows models"),
        ),
        (
            r"cudaMalloc failed: out of memory|CUDA error: out of memory|ROCm error: out of memory|"
            r"ErrorOutOfDeviceMemory|Requested buffer size exceeds device buffer size limit|"
            r"unable to allocate (CUDA|ROCm|Vulkan|SYCL)\d|failed to allocate (CUDA|ROCm|Vulkan|SYCL|RPC)\d+ buffer|"
            r"cannot run the operation \(NONE\)",
            _GPU_OUT_OF_MEMORY,
        ),
        (
            r"device lost|DeviceLost|CUDA error: (an illegal memory access|unspecified launch failure)|"
            r"CUDA error: (uncorrectable ECC|no CUDA-capable device)",
            Cause("device-lost", "the GPU stopped answering", "see the kernel log for Xid or amdgpu lines; a reset may be needed"),
        ),
        (
            r"CUDA error|ROCm error|MUSA error",
            Cause("gpu-error", "the GPU backend aborted, most often for lack of memory",
                  "see what else uses the GPU; or set a larger `vram_margin`"),
        ),
        (
            r"ggml_aligned_malloc: insufficient memory|mmap failed: Cannot allocate memory|std::bad_alloc|"
            r"failed to allocate CPU buffer|failed to mlock",
            Cause("host-out-of-memory", "the host had not enough memory (or address space)",
                  "lower `cache_ram` in [server], or check LimitAS=, MemoryMax= and other processes"),
        ),
        (
            r"[Pp]ermission denied",
            Cause("permission", "a file or device could not be opened", "give _llamad access to the path in the line",
                  final=True, exit_code=ExitCode.NO_PERMISSION),
        ),
        (
            r"failed to allocate .*buffer|failed to allocate compute",
            Cause("out-of-memory", "a buffer could not be allocated", "lower `context` in [placement]"),
        ),
    )
)  # fmt: skip

_BY_US = {
    "stalled": ("start-stalled", "the load made no progress", "check the disk or the network file system of the model"),
    "placement": ("placement", "bytes were not where the plan puts them", "see the lines before; `llamad plan` shows the plan"),
    "warm-up": ("warm-up", "the warm-up gave no usable token", "see the lines before; the model file may be damaged"),
    "hang": ("hang", "requests made no progress", "see the lines before"),
}  # fmt: skip


def classify(death: Death) -> Cause:
    """The cause of one death; never fails: what cannot be named is `crash`, `exit` or `killed`."""
    if death.killed_because in _BY_US:
        name, text, fix = _BY_US[death.killed_because]
        return Cause(name, text, fix)
    if death.killed_because:
        return Cause("stopped", "stopped by llamad", "")
    if death.returncode == -signal.SIGKILL and death.oom_kills > 0:
        return Cause("host-out-of-memory", "the kernel's out-of-memory killer took llama-server",
                     "lower `cache_ram` in [server], or give the unit more memory")  # fmt: skip
    for line in death.lines:
        for pattern, cause in _SIGNATURES:
            if pattern.search(line) and not (cause.final and death.served):
                return cause
    return _by_exit(death.returncode)


def _by_exit(returncode: int) -> Cause:
    if returncode == 0:
        return Cause("exit", "llama-server ended by itself", "see its last lines")
    if returncode > 0:
        return Cause("exit", f"llama-server exited with status {returncode}", "see its last lines")
    name = (
        signal.Signals(-returncode).name
        if -returncode in {s.value for s in signal.Signals}
        else str(-returncode)
    )
    if returncode in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP):
        return Cause("killed", f"somebody sent llama-server {name}", "find out who; llamad did not")
    return Cause(
        "crash", f"llama-server crashed with {name}", "report it with its last lines; a newer build may help"
    )
