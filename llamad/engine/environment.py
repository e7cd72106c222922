"""The environment of a child: built from nothing, so that no setting reaches llama-server by accident.

llama-server reads every `LLAMA_ARG_*`, `~/.config/llama.cpp/config.ini` and more of its environment; drivers read
theirs. What a model needs goes into the definition's `[environment]`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

_INHERITED = ("PATH", "TZ")
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HIDE_ALL = "-1"
"""As CUDA_VISIBLE_DEVICES: no GPU (an empty value is taken as unset by some runtimes)."""


def child_environment(
    definition_env: Mapping[str, str],
    cache_dir: Path,
    cuda_uuids: Sequence[str] | None = None,
    inherited: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The whole environment of llama-server for one model, for a query as for the child that serves.

    `cache_dir` is the model's own and becomes its HOME and shader caches, which cost 20 s when cold. `cuda_uuids` is
    what `names.visible_uuids` says of the plan; None (no plan yet) leaves the GPUs to `definition_env`.
    `inherited` is where PATH and TZ come from, this process's environment if not given.
    """
    source = os.environ if inherited is None else inherited
    home = os.fspath(cache_dir)
    env = {name: source[name] for name in _INHERITED if source.get(name)}
    env.setdefault("PATH", _DEFAULT_PATH)
    env |= {
        "LANG": "C.UTF-8",
        "HOME": home,
        "XDG_CACHE_HOME": home,
        "XDG_CONFIG_HOME": f"{home}/config",
        "MESA_SHADER_CACHE_DIR": home,
        "CUDA_CACHE_PATH": f"{home}/cuda",
        "LLAMA_CACHE": f"{home}/llama.cpp",
        # A backtrace forks a debugger, which keeps the dead server's memory for as long as it looks.
        "GGML_NO_BACKTRACE": "1",
        # NVML's order, so that CUDA0 is the same GPU to the planner and to the server.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
    env |= definition_env
    if cuda_uuids is not None:
        # Chosen by the planner among what the definition's own value shows, so it stands above it.
        env["CUDA_VISIBLE_DEVICES"] = ",".join(cuda_uuids) or HIDE_ALL
    return env
