"""`extra_args`: llama-server's flags that llamad has no key for, and no others. Pure.

Refused are flags that a typed key sets (they would contradict the plan), flags that llamad sets itself, flags
that only print and exit, and flags that give clients a shell, the network or files of this host.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from llamad.config.keys import shown

_TYPED: Mapping[str, str] = {
    "model": "-m --model -mu --model-url -dr --docker-repo -hf -hfr --hf-repo -hff --hf-file -hft --hf-token",
    "aliases": "-a --alias",
    "listen": "--host --port --reuse-port",
    "api_keys_file": "--api-key --api-key-file",
    "placement.context": "-c --ctx-size",
    "placement.parallel": "-np --parallel -kvu --kv-unified -no-kvu --no-kv-unified --kv-unified-per-slot",
    "placement.kv_cache": "-ctk --cache-type-k -ctv --cache-type-v",
    "placement.batch": "-b --batch-size",
    "placement.ubatch": "-ub --ubatch-size",
    "placement.flash_attention": "-fa --flash-attn",
    "placement.gpu_layers": "-ngl --gpu-layers --n-gpu-layers",
    "placement.split_mode": "-sm --split-mode",
    "placement.tensor_split": "-ts --tensor-split",
    "placement.main_gpu": "-mg --main-gpu",
    "placement.gpus": "-dev --device",
    "placement.cpu_moe": "-cmoe --cpu-moe",
    "placement.n_cpu_moe": "-ncmoe --n-cpu-moe",
    "placement.load_mode": "-lm --load-mode --mmap --no-mmap --mlock -dio --direct-io -ndio --no-direct-io",
    "placement.threads": "-t --threads",
    "placement.threads_batch": "-tb --threads-batch",
    "placement.numa": "--numa",
    "placement.vram_margin": "-fitt --fit-target",
    "placement.context_min": "-fitc --fit-ctx",
    "server.chat_template": "--chat-template",
    "server.chat_template_file": "--chat-template-file",
    "server.jinja": "--jinja --no-jinja",
    "server.metrics": "--metrics",
    "server.ui": "--ui --no-ui --webui --no-webui",
    "server.embeddings": "--embedding --embeddings",
    "server.reranking": "--rerank --reranking",
    "server.cache_ram": "-cram --cache-ram",
    "idle.keep_alive": "--sleep-idle-seconds",
}
_NO_SHELL = "it lets clients run commands on this host"
_DOWNLOADS = "it downloads; llama-server is never let into the network"
_OURS: Mapping[str, str] = {
    "-fit --fit -fitp --fit-print": "llamad plans the memory itself",
    "-ot --override-tensor -kvo --kv-offload -nkvo --no-kv-offload -ncffn --n-cpu-ffn --moe-cache-mib": (
        "it moves parts of the model that the plan counts elsewhere"
    ),
    "-v --verbose --log-verbose -lv --verbosity --log-verbosity --log-disable --log-file --log-jsonl "
    "--no-log-jsonl --log-colors --log-prefix --no-log-prefix --log-timestamps --no-log-timestamps": (
        "llamad reads the log, in the form that it chose"
    ),
    "--warmup --no-warmup": "llamad warms the model up itself",
    "--slots --no-slots": "llamad reads /slots",
    "--api-prefix": "llamad speaks to llama-server's own paths",
    "--ssl-key-file --ssl-cert-file": "llama-server listens on a private socket; put TLS in front of llamad",
    "--offline": "llamad always sets it",
    "--models-dir --models-preset --models-max --models-autoload --no-models-autoload": (
        "llamad serves several models itself; write a definition for each"
    ),
    "-h --help --usage --version --license -cl --cache-list --completion-bash --list-devices": (
        "it prints something and exits"
    ),
    "--tools --tools-runtime -ag --agent --mcp-servers-config --mcp-servers-json": _NO_SHELL,
    "--video-ffmpeg-dir": "it lets llama-server run other programs",
    "--ui-mcp-proxy --webui-mcp-proxy": "it lets clients reach the network through this host",
    "-mmu --mmproj-url -hfd -hfrd --hf-repo-draft --spec-draft-hf -hfv -hfrv --hf-repo-v -hffv --hf-file-v": (
        _DOWNLOADS
    ),
}
_PRESET = re.compile(r"--(?!spec-)[a-z0-9.-]+-(?:default|spec)")
_FLAG = re.compile(r"-{1,2}[A-Za-z][A-Za-z0-9._-]*")
_KEY_OF = {flag: key for key, flags in _TYPED.items() for flag in flags.split()}
_REASON_OF = {flag: reason for flags, reason in _OURS.items() for flag in flags.split()}


def refused_args(extra_args: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Index, fault and fix of each element that may not be there.

    Every element that looks like a flag is judged, as llama-server reads it (underscores are dashes); which ones
    are values of the flag before them is not known here.
    """
    for index, element in enumerate(extra_args):
        written = re.split(r"[=\s]", element, maxsplit=1)[0]
        flag = written.replace("_", "-") if written.startswith("--") else written
        if not _FLAG.fullmatch(flag):
            continue
        fault = _fault(flag)
        if fault:
            yield index, *fault
        elif written != element and written.startswith("--"):
            rest = element[len(written) + 1 :].strip()
            fix = f'write two elements: "{shown(written)}", "{shown(rest)}"'
            yield index, f'llama-server does not take "{shown(element)}" as one word', fix


def _fault(flag: str) -> tuple[str, str] | None:
    key = _KEY_OF.get(flag)
    if key:
        return f"{flag} is set by a key of its own", f"use {key}"
    reason = _REASON_OF.get(flag) or (_DOWNLOADS if _PRESET.fullmatch(flag) else None)
    return (f"{flag} is refused: {reason}", "delete it") if reason else None
