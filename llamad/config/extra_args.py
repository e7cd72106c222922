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
    "tls_cert": "--ssl-cert-file",
    "tls_key": "--ssl-key-file",
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
    "placement.rpc": "--rpc",
    "placement.cpu_moe": "-cmoe --cpu-moe",
    "placement.n_cpu_moe": "-ncmoe --n-cpu-moe",
    "placement.n_cpu_ffn": "-ncffn --n-cpu-ffn",
    "placement.kv_offload": "-kvo --kv-offload -nkvo --no-kv-offload",
    "placement.op_offload": "--op-offload --no-op-offload",
    "placement.repack": "--repack -nr --no-repack",
    "placement.no_host": "--no-host",
    "placement.swa_full": "--swa-full",
    "placement.ctx_checkpoints": "-ctxcp --ctx-checkpoints --swa-checkpoints",
    "placement.checkpoint_every": "-cms --checkpoint-min-step",
    "placement.load_mode": "-lm --load-mode --mmap --no-mmap --mlock -dio --direct-io -ndio --no-direct-io",
    "placement.lazy_mode": "-lzm --lazy-mode",
    "placement.threads": "-t --threads",
    "placement.threads_batch": "-tb --threads-batch",
    "placement.cpu_mask": "-C --cpu-mask",
    "placement.cpu_range": "-Cr --cpu-range",
    "placement.cpu_strict": "--cpu-strict",
    "placement.priority": "--prio",
    "placement.poll": "--poll",
    "placement.numa": "--numa",
    "placement.vram_margin": "-fitt --fit-target",
    "placement.context_min": "-fitc --fit-ctx",
    "server.chat_template": "--chat-template",
    "server.chat_template_file": "--chat-template-file",
    "server.chat_template_kwargs": "--chat-template-kwargs",
    "server.jinja": "--jinja --no-jinja",
    "server.skip_chat_parsing": "--skip-chat-parsing --no-skip-chat-parsing",
    "server.prefill_assistant": "--prefill-assistant --no-prefill-assistant",
    "server.reasoning": "-rea --reasoning",
    "server.reasoning_format": "--reasoning-format",
    "server.reasoning_effort": "--reasoning-effort",
    "server.reasoning_budget": "--reasoning-budget",
    "server.reasoning_budget_message": "--reasoning-budget-message",
    "server.reasoning_preserve": "--reasoning-preserve --no-reasoning-preserve",
    "server.metrics": "--metrics",
    "server.ui": "--ui --no-ui --webui --no-webui",
    "server.embeddings": "--embedding --embeddings",
    "server.reranking": "--rerank --reranking",
    "server.pooling": "--pooling",
    "server.embd_normalize": "--embd-normalize",
    "server.cache_ram": "-cram --cache-ram",
    "server.cache_prompt": "--cache-prompt --no-cache-prompt",
    "server.cache_reuse": "--cache-reuse",
    "server.cache_idle_slots": "--cache-idle-slots --no-cache-idle-slots",
    "server.cont_batching": "-cb --cont-batching -nocb --no-cont-batching",
    "server.context_shift": "--context-shift --no-context-shift",
    "server.slot_prompt_similarity": "-sps --slot-prompt-similarity",
    "server.special": "-sp --special",
    "server.spm_infill": "--spm-infill",
    "server.check_tensors": "--check-tensors",
    "server.override_kv": "--override-kv",
    "server.tags": "--tags",
    "server.threads_http": "--threads-http",
    "server.timeout_s": "-to --timeout",
    "server.sse_ping_s": "--sse-ping-interval",
    "sampling.samplers": "--samplers --sampler-seq --sampling-seq",
    "sampling.seed": "-s --seed",
    "sampling.max_tokens": "-n --predict --n-predict",
    "sampling.keep": "--keep",
    "sampling.ignore_eos": "--ignore-eos",
    "sampling.temperature": "--temp --temperature",
    "sampling.dynatemp_range": "--dynatemp-range",
    "sampling.dynatemp_exp": "--dynatemp-exp",
    "sampling.top_k": "--top-k",
    "sampling.top_p": "--top-p",
    "sampling.min_p": "--min-p",
    "sampling.top_n_sigma": "--top-nsigma --top-n-sigma",
    "sampling.typical_p": "--typical --typical-p",
    "sampling.xtc_probability": "--xtc-probability",
    "sampling.xtc_threshold": "--xtc-threshold",
    "sampling.repeat_penalty": "--repeat-penalty",
    "sampling.repeat_last_n": "--repeat-last-n",
    "sampling.presence_penalty": "--presence-penalty",
    "sampling.frequency_penalty": "--frequency-penalty",
    "sampling.dry_multiplier": "--dry-multiplier",
    "sampling.dry_base": "--dry-base",
    "sampling.dry_allowed_length": "--dry-allowed-length",
    "sampling.dry_penalty_last_n": "--dry-penalty-last-n",
    "sampling.dry_sequence_breakers": "--dry-sequence-breaker",
    "sampling.adaptive_target": "--adaptive-target",
    "sampling.adaptive_decay": "--adaptive-decay",
    "sampling.mirostat": "--mirostat",
    "sampling.mirostat_lr": "--mirostat-lr",
    "sampling.mirostat_ent": "--mirostat-ent",
    "sampling.grammar_file": "--grammar --grammar-file",
    "sampling.json_schema_file": "-j --json-schema -jf --json-schema-file",
    "sampling.backend_sampling": "-bs --backend-sampling",
    "draft.types": "--spec-type --spec-default",
    "draft.model": "-md --model-draft --spec-draft-model",
    "draft.n_max": "--spec-draft-n-max --draft --draft-n --draft-max",
    "draft.n_min": "--spec-draft-n-min --draft-min --draft-n-min",
    "draft.p_min": "--spec-draft-p-min --draft-p-min",
    "draft.p_split": "--spec-draft-p-split --draft-p-split",
    "draft.sampling": "--spec-draft-sampling",
    "draft.backend_sampling": "--spec-draft-backend-sampling --no-spec-draft-backend-sampling",
    "draft.gpus": "-devd --device-draft --spec-draft-device",
    "draft.gpu_layers": "-ngld --gpu-layers-draft --n-gpu-layers-draft --spec-draft-ngl",
    "draft.kv_cache": "-ctkd --cache-type-k-draft --spec-draft-type-k -ctvd --cache-type-v-draft --spec-draft-type-v",
    "draft.ubatch": "--spec-draft-n-ubatch",
    "draft.cpu_moe": "-cmoed --cpu-moe-draft --spec-draft-cpu-moe",
    "draft.n_cpu_moe": "-ncmoed --n-cpu-moe-draft --spec-draft-n-cpu-moe --spec-draft-ncmoe",
    "draft.threads": "-td --threads-draft --spec-draft-threads",
    "draft.threads_batch": "-tbd --threads-batch-draft --spec-draft-threads-batch",
    "draft.ngram_lookup": "--spec-ngram-simple-size-n --spec-ngram-map-k-size-n --spec-ngram-map-k4v-size-n"
    " --spec-ngram-mod-n-match --spec-ngram-size-n",
    "draft.ngram_draft": "--spec-ngram-simple-size-m --spec-ngram-map-k-size-m --spec-ngram-map-k4v-size-m"
    " --spec-ngram-mod-n-max --spec-ngram-size-m",
    "draft.ngram_draft_min": "--spec-ngram-mod-n-min",
    "draft.ngram_min_hits": "--spec-ngram-simple-min-hits --spec-ngram-map-k-min-hits --spec-ngram-map-k4v-min-hits"
    " --spec-ngram-min-hits",
    "draft.ngram_cache_file": "-lcs --lookup-cache-static",
    "lora.adapters": "--lora --lora-scaled",
    "lora.init_without_apply": "--lora-init-without-apply",
    "lora.control_vectors": "--control-vector --control-vector-scaled",
    "lora.control_vector_layers": "--control-vector-layer-range",
    "vision.mmproj": "-mm --mmproj --mmproj-auto --no-mmproj --no-mmproj-auto",
    "vision.offload": "--mmproj-offload --no-mmproj-offload",
    "vision.gpu": "-mmdev --mmproj-device",
    "vision.image_min_tokens": "--image-min-tokens",
    "vision.image_max_tokens": "--image-max-tokens",
    "vision.batch_tokens": "--mtmd-batch-max-tokens",
    "rope.scaling": "--rope-scaling",
    "rope.scale": "--rope-scale",
    "rope.freq_base": "--rope-freq-base",
    "rope.freq_scale": "--rope-freq-scale",
    "rope.yarn_orig_ctx": "--yarn-orig-ctx",
    "rope.yarn_ext_factor": "--yarn-ext-factor",
    "rope.yarn_attn_factor": "--yarn-attn-factor",
    "rope.yarn_beta_slow": "--yarn-beta-slow",
    "rope.yarn_beta_fast": "--yarn-beta-fast",
    "idle.keep_alive": "--sleep-idle-seconds",
}
_NO_SHELL = "it lets clients run commands on this host"
_DOWNLOADS = "it downloads; llama-server is never let into the network"
_OURS: Mapping[str, str] = {
    "-fit --fit -fitp --fit-print": "llamad plans the memory itself",
    "-ot --override-tensor -otd --override-tensor-draft --spec-draft-override-tensor --moe-cache-mib": (
        "it moves parts of the model that the plan counts elsewhere"
    ),
    "-v --verbose --log-verbose -lv --verbosity --log-verbosity --log-disable --log-file --log-jsonl "
    "--no-log-jsonl --log-colors --log-prefix --no-log-prefix --log-timestamps --no-log-timestamps": (
        "llamad reads the log, in the form that it chose"
    ),
    "--warmup --no-warmup": "llamad warms the model up itself",
    "--slots --no-slots": "llamad reads /slots",
    "--api-prefix": "llamad speaks to llama-server's own paths",
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
    "--media-path": "it lets clients read files of this host",
    "--slot-save-path": "llamad sets it, to hand prompt caches over when llama-server is replaced",
    "--log-prompts-dir": "it writes what clients ask into files",
    "-lcd --lookup-cache-dynamic": "llama-server may write no files here",
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
