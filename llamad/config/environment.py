"""`[environment]`: the variables that llama-server and the drivers below it may be given. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from llamad.config.keys import shown

_ALLOWED_PREFIXES = (
    "GGML_",
    "LLAMA_",
    "CUDA_",
    "NVIDIA_",
    "HSA_",
    "HIP_",
    "ROCR_",
    "ROCBLAS_",
    "AMD_",
    "GPU_",
    "VK_",
    "MESA_",
    "RADV_",
    "LP_",
    "SYCL_",
    "ONEAPI_",
    "ZE_",
    "ZES_",
    "OMP_",
    "GOMP_",
    "KMP_",
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_REFUSED: tuple[tuple[re.Pattern[str], str, str], ...] = (
    (
        re.compile(r"LLAMA_ARG_.*"),
        "it would contradict the plan, or be contradicted by it",
        "use the key of that option, or server.extra_args",
    ),
    (re.compile(r"LLAMA_SERVER_.*"), "it is llama-server's own router mode", "delete it"),
    (
        re.compile(r"LLAMA_API_KEY"),
        "an environment can be read in /proc",
        "use api_keys_file or a credential",
    ),
    (
        re.compile(r"LD_.*"),
        "it loads other code into the server",
        "let [host] server name a program that finds its own libraries",
    ),
    (
        re.compile(r"HF_.*|HUGGING.*"),
        "llama-server never downloads here",
        "fetch the file, and name it in `model`",
    ),
    (re.compile(r"AIP_.*"), "it changes where llama-server listens", "delete it"),
    (re.compile(r"PATH|HOME|USER|XDG_.*|TMPDIR|NOTIFY_SOCKET|LISTEN_.*"), "llamad sets it", "delete it"),
    (
        re.compile(r"(?i:https?_proxy|all_proxy|no_proxy)"),
        "llama-server is never let into the network",
        "delete it",
    ),
)


def refused_variables(names: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Name, fault and fix of each variable that may not be set."""
    for name in names:
        fault = _fault(name)
        if fault:
            yield name, *fault


def _fault(name: str) -> tuple[str, str] | None:
    if not _NAME.fullmatch(name):
        return f'"{shown(name)}" is no name of a variable', "write letters, digits and _"
    for pattern, reason, fix in _REFUSED:
        if pattern.fullmatch(name):
            return f"is refused: {reason}", fix
    if name.startswith(_ALLOWED_PREFIXES):
        return None
    allowed = ", ".join(f"{prefix}*" for prefix in _ALLOWED_PREFIXES)
    return "is not a variable for llama-server or a driver", f"allowed are {allowed}"
