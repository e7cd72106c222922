"""Every cause of death by name: what to say, what to do about it, what llamad does. Pure data.

Each has a MESSAGE_ID in `service/events.py`, an explanation in the catalog and a row in docs/events.md.
"""

from __future__ import annotations

from enum import StrEnum

from llamad.errors import ExitCode
from llamad.frozen import dataclass


class Policy(StrEnum):
    """What follows a death."""

    RETRY = "retry"
    """The same again, after a growing delay, `limits.restarts` times."""
    STEP_DOWN = "step down"
    """A smaller plan, at once, by what the failure measured."""
    WAIT = "wait"
    """llamad ends with a status that systemd retries for ever: what is missing may come."""
    GIVE_UP = "give up"
    """llamad ends for good: trying again cannot help."""
    NONE = "none"


@dataclass(frozen=True)
class Cause:
    """A class of death. Two causes of one name may differ in their words."""

    name: str
    text: str
    fix: str
    policy: Policy = Policy.RETRY
    exit_code: ExitCode = ExitCode.CRASH_LOOP

    @property
    def final(self) -> bool:
        """Whether trying again from within cannot help."""
        return self.policy in (Policy.WAIT, Policy.GIVE_UP)


_SEE_GPU = "see what else uses the GPU (`llamad status`, nvidia-smi); or lower"


def _given_up(name: str, text: str, fix: str, code: ExitCode) -> Cause:
    return Cause(name, text, fix, Policy.GIVE_UP, code)


def _waits(name: str, text: str, fix: str, code: ExitCode) -> Cause:
    return Cause(name, text, fix, Policy.WAIT, code)


def _steps(name: str, text: str, fix: str) -> Cause:
    return Cause(name, text, fix, Policy.STEP_DOWN)


_ALL = (
    # memory of a device
    _steps("gpu-out-of-memory", "the GPU had not enough memory", f"{_SEE_GPU} `context` in [placement]"),
    _steps(
        "gpu-out-of-memory-weights",
        "the GPU had not enough memory for the weights",
        "free memory of the GPU; or use a smaller quantisation, or `allow_cpu = true` in [placement]",
    ),
    _steps(
        "gpu-out-of-memory-context",
        "the GPU had not enough memory for the context",
        f"{_SEE_GPU} `context` or `kv_cache` in [placement]",
    ),
    _steps(
        "gpu-out-of-memory-compute",
        "the GPU had not enough memory for the compute buffer",
        f"{_SEE_GPU} `ubatch` or `context` in [placement]",
    ),
    _steps(
        "gpu-out-of-memory-vision",
        "the GPU had not enough memory for the vision projector",
        f"{_SEE_GPU} `context` in [placement]",
    ),
    _steps(
        "gpu-out-of-memory-draft",
        "the GPU had not enough memory for the draft model",
        f"{_SEE_GPU} `context`, or serve without the draft model",
    ),
    _steps(
        "gpu-out-of-memory-warm-up",
        "the GPU had not enough memory for the first computation",
        f"{_SEE_GPU} `context`, or set a larger `vram_margin` in [placement]",
    ),
    _steps(
        "gpu-out-of-memory-running",
        "the GPU ran out of memory while it served",
        f"{_SEE_GPU} `context`, or set a larger `vram_margin` in [placement]",
    ),
    _steps(
        "gpu-out-of-memory-requests",
        "the GPU had not enough memory for the batches of requests",
        f"{_SEE_GPU} `context`, or set a larger `vram_margin` in [placement]",
    ),
    # memory of the host
    Cause(
        "host-out-of-memory",
        "the host had not enough memory",
        "lower `cache_ram` in [server], check MemoryMax= and other processes",
    ),
    Cause(
        "address-space",
        "a limit on address space (LimitAS=, ulimit -v) stopped llama-server",
        "remove or raise LimitAS= of the unit: a GPU driver alone maps many GiB",
    ),
    Cause(
        "too-many-tasks",
        "llama-server could not start a thread",
        "raise TasksMax= or LimitNPROC= of the unit; remove LimitAS=",
        Policy.RETRY,
    ),
    # devices
    Cause(
        "device-lost",
        "the GPU stopped answering",
        "see the kernel log (`journalctl -k`) for Xid or amdgpu lines; a reset may be needed",
    ),
    _waits(
        "device-lost-at-load",
        "the GPU does not answer",
        "see the kernel log (`journalctl -k`) for Xid or amdgpu lines; reset the GPU (nvidia-smi --gpu-reset) or "
        "reboot; it is tried again by itself",
        ExitCode.NO_DEVICE,
    ),
    Cause(
        "gpu-error",
        "the GPU backend aborted",
        "see the kernel log (`journalctl -k`); lack of memory is the usual reason: "
        "see what else uses the GPU, or set a larger `vram_margin`",
    ),
    _waits(
        "no-device",
        "a planned device is not there",
        "check the driver and `llama-server --list-devices`; the unit is tried again by itself",
        ExitCode.NO_DEVICE,
    ),
    _waits(
        "no-backend",
        "llama-server found no ggml backend",
        "install libggml0-backend-* or set GGML_BACKEND_PATH",
        ExitCode.NO_DEVICE,
    ),
    _given_up(
        "gpu-unsupported",
        "this build of llama.cpp has no code for this GPU",
        "install a backend that was built for it, or take another with `gpus` in [placement]",
        ExitCode.CONFIG,
    ),
    # files and options
    _waits(
        "model-missing",
        "the model file cannot be opened",
        "restore the file or correct `model`",
        ExitCode.NO_MODEL_FILE,
    ),
    _given_up(
        "model-bad",
        "the model file is damaged or incomplete",
        "download the file again and compare its checksum",
        ExitCode.BAD_MODEL,
    ),
    _given_up(
        "model-unsupported",
        "this llama-server does not know this kind of model",
        "install a newer llama.cpp",
        ExitCode.BAD_MODEL,
    ),
    _given_up(
        "bad-lora",
        "a LoRA adapter cannot be loaded",
        "correct the adapter's path or file",
        ExitCode.BAD_MODEL,
    ),
    _given_up(
        "bad-draft",
        "the draft model cannot be loaded",
        "correct the draft model's path or file",
        ExitCode.BAD_MODEL,
    ),
    _given_up(
        "bad-projector",
        "the vision projector cannot be loaded",
        "correct the projector's path or file",
        ExitCode.BAD_MODEL,
    ),
    _given_up(
        "bad-flag",
        "llama-server refused an option",
        "correct `extra_args` or the key named in the line",
        ExitCode.CONFIG,
    ),
    _given_up(
        "bad-template",
        "the chat template cannot be used",
        "correct `chat_template` in [server]",
        ExitCode.CONFIG,
    ),
    Cause(
        "address-in-use",
        "llama-server could not bind its socket",
        "look for another process that holds the name; `llamad status` shows models",
        Policy.RETRY,
        ExitCode.TEMPORARY,
    ),
    _given_up(
        "permission",
        "a file or device could not be opened",
        "give _llamad access to the path in the line",
        ExitCode.NO_PERMISSION,
    ),
    _given_up(
        "not-executed",
        "llama-server could not be executed",
        "read the line: setpriv (util-linux) must work in the unit's sandbox, the server must be there",
        ExitCode.CONFIG,
    ),
    Cause("not-spawned", "no process could be made", "check the limits on processes and open files"),
    # without a telling line
    Cause("crash", "llama-server crashed", "report it with its last lines; a newer build may help"),
    Cause(
        "without-a-word",
        "llama-server died without a word",
        "see the kernel log (`journalctl -k`) and the unit's limits (LimitAS=): drivers crash so for lack of memory",
    ),
    Cause("exit", "llama-server ended by itself", "see its last lines"),
    Cause("killed", "somebody killed llama-server", "find out who; llamad did not"),
    # done by llamad
    Cause("hang", "requests made no progress", "see the lines before; `hang_s` in [limits] is the bound"),
    Cause(
        "start-stalled",
        "the load made no progress",
        "check the disk or the network file system of the model",
    ),
    Cause(
        "placement",
        "bytes were not where the plan puts them",
        "see the lines before; `llamad plan` shows the plan",
    ),
    Cause(
        "warm-up", "the warm-up gave no usable token", "see the lines before; the model file may be damaged"
    ),
    Cause("stopped", "stopped by llamad", "", Policy.NONE),
)

CAUSES: dict[str, Cause] = {cause.name: cause for cause in _ALL}
