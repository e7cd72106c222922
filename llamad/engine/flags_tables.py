"""The sections of a definition as llama-server's arguments: what was written, in the build's spelling. Pure.

What equals its default is left to llama-server, unless the admin wrote it: then it is passed where the build
offers it, as `/etc/llama.cpp/config.ini` could say otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from llamad.engine.arguments import Args
from llamad.engine.names import child_names
from llamad.errors import ConfigError

HOST = "host"  # as Plan.vision_place has it

if TYPE_CHECKING:
    from llamad.config.definition import Definition, Draft, Lora, Server, Table, Vision
    from llamad.planning.plan import Plan

_PLACEMENT: Mapping[str, str] = {
    "kv_offload": "--kv-offload | --no-kv-offload",
    "op_offload": "--op-offload | --no-op-offload",
    "repack": "--repack | --no-repack",
    "no_host": "--no-host |",
    "swa_full": "--swa-full |",
    "ctx_checkpoints": "--ctx-checkpoints --swa-checkpoints",
    "checkpoint_every": "--checkpoint-min-step",
    "lazy_mode": "--lazy-mode",
    "cpu_mask": "--cpu-mask",
    "cpu_range": "--cpu-range",
    "poll": "--poll",
}
_ROPE: Mapping[str, str] = {
    "scaling": "--rope-scaling",
    "scale": "--rope-scale",
    "freq_base": "--rope-freq-base",
    "freq_scale": "--rope-freq-scale",
    "yarn_orig_ctx": "--yarn-orig-ctx",
    "yarn_ext_factor": "--yarn-ext-factor",
    "yarn_attn_factor": "--yarn-attn-factor",
    "yarn_beta_slow": "--yarn-beta-slow",
    "yarn_beta_fast": "--yarn-beta-fast",
}
_SERVER: Mapping[str, str] = {
    "chat_template": "--chat-template",
    "chat_template_file": "--chat-template-file",
    "embeddings": "--embeddings --embedding |",
    "reranking": "--reranking --rerank |",
    "pooling": "--pooling",
    "embd_normalize": "--embd-normalize",
    "skip_chat_parsing": "--skip-chat-parsing | --no-skip-chat-parsing",
    "prefill_assistant": "--prefill-assistant | --no-prefill-assistant",
    "reasoning": "--reasoning",
    "reasoning_format": "--reasoning-format",
    "reasoning_effort": "--reasoning-effort",
    "reasoning_budget": "--reasoning-budget",
    "reasoning_budget_message": "--reasoning-budget-message",
    "reasoning_preserve": "--reasoning-preserve | --no-reasoning-preserve",
    "cache_prompt": "--cache-prompt | --no-cache-prompt",
    "cache_reuse": "--cache-reuse",
    "cache_idle_slots": "--cache-idle-slots | --no-cache-idle-slots",
    "cont_batching": "--cont-batching | --no-cont-batching",
    "context_shift": "--context-shift | --no-context-shift",
    "slot_prompt_similarity": "--slot-prompt-similarity",
    "special": "--special |",
    "spm_infill": "--spm-infill |",
    "check_tensors": "--check-tensors |",
    "tags": "--tags",
    "threads_http": "--threads-http",
    "timeout_s": "--timeout",
    "sse_ping_s": "--sse-ping-interval",
}
_SAMPLING: Mapping[str, str] = {
    "seed": "--seed",
    "max_tokens": "--predict --n-predict",
    "keep": "--keep",
    "ignore_eos": "--ignore-eos |",
    "temperature": "--temp --temperature",
    "dynatemp_range": "--dynatemp-range",
    "dynatemp_exp": "--dynatemp-exp",
    "top_k": "--top-k",
    "top_p": "--top-p",
    "min_p": "--min-p",
    "top_n_sigma": "--top-nsigma --top-n-sigma",
    "typical_p": "--typical --typical-p",
    "xtc_probability": "--xtc-probability",
    "xtc_threshold": "--xtc-threshold",
    "repeat_penalty": "--repeat-penalty",
    "repeat_last_n": "--repeat-last-n",
    "presence_penalty": "--presence-penalty",
    "frequency_penalty": "--frequency-penalty",
    "dry_multiplier": "--dry-multiplier",
    "dry_base": "--dry-base",
    "dry_allowed_length": "--dry-allowed-length",
    "dry_penalty_last_n": "--dry-penalty-last-n",
    "adaptive_target": "--adaptive-target",
    "adaptive_decay": "--adaptive-decay",
    "mirostat": "--mirostat",
    "mirostat_lr": "--mirostat-lr",
    "mirostat_ent": "--mirostat-ent",
    "grammar_file": "--grammar-file",
    "json_schema_file": "--json-schema-file",
    "backend_sampling": "--backend-sampling |",
}
_DRAFT: Mapping[str, str] = {
    "model": "--spec-draft-model --model-draft",
    "n_max": "--spec-draft-n-max --draft-max --draft",
    "n_min": "--spec-draft-n-min --draft-min",
    "p_min": "--spec-draft-p-min --draft-p-min",
    "p_split": "--spec-draft-p-split --draft-p-split",
    "sampling": "--spec-draft-sampling",
    "backend_sampling": "--spec-draft-backend-sampling | --no-spec-draft-backend-sampling",
    "gpu_layers": "--spec-draft-ngl --gpu-layers-draft",
    "ubatch": "--spec-draft-n-ubatch",
    "cpu_moe": "--spec-draft-cpu-moe --cpu-moe-draft |",
    "n_cpu_moe": "--spec-draft-n-cpu-moe --n-cpu-moe-draft",
    "threads": "--spec-draft-threads --threads-draft",
    "threads_batch": "--spec-draft-threads-batch --threads-batch-draft",
    "ngram_cache_file": "--lookup-cache-static",
}
_NGRAM: Mapping[str, Mapping[str, str]] = {
    "ngram-simple": {
        "ngram_lookup": "--spec-ngram-simple-size-n",
        "ngram_draft": "--spec-ngram-simple-size-m",
        "ngram_min_hits": "--spec-ngram-simple-min-hits",
    },
    "ngram-map-k": {
        "ngram_lookup": "--spec-ngram-map-k-size-n",
        "ngram_draft": "--spec-ngram-map-k-size-m",
        "ngram_min_hits": "--spec-ngram-map-k-min-hits",
    },
    "ngram-map-k4v": {
        "ngram_lookup": "--spec-ngram-map-k4v-size-n",
        "ngram_draft": "--spec-ngram-map-k4v-size-m",
        "ngram_min_hits": "--spec-ngram-map-k4v-min-hits",
    },
    "ngram-mod": {
        "ngram_lookup": "--spec-ngram-mod-n-match",
        "ngram_draft": "--spec-ngram-mod-n-max",
        "ngram_draft_min": "--spec-ngram-mod-n-min",
    },
}
_VISION: Mapping[str, str] = {
    "image_min_tokens": "--image-min-tokens",
    "image_max_tokens": "--image-max-tokens",
    "batch_tokens": "--mtmd-batch-max-tokens",
}
_AFTER_SCALED_LISTS = "--sleep-idle-seconds"
"""No flag tells that `--lora-scaled` takes FILE:SCALE,... and no longer FILE SCALE; this one came right after."""


def add_tables(args: Args, plan: Plan, definition: Definition, written: frozenset[str], *, asking: bool) -> None:
    """Add what the sections ask for. `asking` for memory only: then what takes none is left out.

    Raises ConfigError, naming key and flag, for what the build does not offer.
    """
    _add(args, "placement", definition.placement, _PLACEMENT, written)
    _priority(args, definition)
    _add(args, "rope", definition.rope, _ROPE, written)
    _projector(args, plan, definition.vision, written)
    _lora(args, definition.lora)
    _draft(args, plan, definition.draft, written)
    _server(args, definition.server, written)
    if asking:
        return
    _add(args, "sampling", definition.sampling, _SAMPLING, written)
    if definition.sampling.samplers:
        args.need("sampling.samplers", ";".join(definition.sampling.samplers), "--samplers")
    for breaker in definition.sampling.dry_sequence_breakers:
        args.need("sampling.dry_sequence_breakers", breaker, "--dry-sequence-breaker")


def _add(args: Args, name: str, table: Table, flags: Mapping[str, str], written: frozenset[str]) -> None:
    """Add the flags of a section's keys. `ON | OFF` are the spellings of a switch; either may be empty."""
    defaults = type(table)()
    for key, spellings in flags.items():
        value, default = getattr(table, key), getattr(defaults, key)
        if value is None or value == "auto" or (value == default and f"{name}.{key}" not in written):
            continue
        if "|" in spellings:
            on, _, off = spellings.partition("|")
            wanted, text = (on if value else off).split(), None
        else:
            wanted, text = spellings.split(), _text(value)
        if value != default:
            args.need(f"{name}.{key}", text, *wanted)
        else:
            args.offered(text, *wanted)


def _text(value: object) -> str:
    """A value as llama-server reads it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _priority(args: Args, definition: Definition) -> None:
    if definition.placement.priority == "low":
        args.need("placement.priority", "-1", "--prio")
    if definition.placement.cpu_strict:
        args.need("placement.cpu_strict", "1", "--cpu-strict")


# -- weights beside the model ----------------------------------------------------------------------------------


def _projector(args: Args, plan: Plan, vision: Vision, written: frozenset[str]) -> None:
    if vision.mmproj is None:
        return
    args.need("vision.mmproj", vision.mmproj, "--mmproj")
    if not vision.offload or plan.vision_place == HOST:
        args.need("vision.offload", None, "--no-mmproj-offload")
    elif vision.gpu != "auto":
        args.need("vision.gpu", _devices(plan, "vision.gpu", vision.gpu), "--mmproj-device")
    elif plan.vision_place:  # else some builds take the first device that they know, in the plan or not
        args.offered(_devices(plan, "vision.gpu", plan.vision_place), "--mmproj-device")
    _add(args, "vision", vision, _VISION, written)


def _devices(plan: Plan, key: str, *wanted: str) -> str:
    """The child's names of devices of the plan that are named by name or UUID. Raises ConfigError for others."""
    found = []
    names = child_names(plan.devices)
    for word in wanted:
        of_word = [d.name for d in plan.devices if word.lower() in (d.name.lower(), d.uuid.lower())]
        if not of_word:
            there = ", ".join(names) or "none"
            what = f"{key}: {word} is no device that the model is placed on"
            raise ConfigError(what, why=f"the plan uses {there}", fix="name one of them, or change gpus in [placement]")
        found.append(names[of_word[0]])
    return ",".join(found)


def _lora(args: Args, lora: Lora) -> None:
    if lora.adapters:
        _scaled(args, "lora.adapters", lora.adapters, "--lora", "--lora-scaled")
    if lora.init_without_apply:
        args.need("lora.init_without_apply", None, "--lora-init-without-apply")
    if lora.control_vectors:
        _scaled(args, "lora.control_vectors", lora.control_vectors, "--control-vector", "--control-vector-scaled")
    if lora.control_vector_layers is not None:
        first, last = map(str, lora.control_vector_layers)
        args.need("lora.control_vector_layers", first, "--control-vector-layer-range")
        args.items.append(last)


def _scaled(args: Args, key: str, scales: Mapping[str, float], plain: str, scaled: str) -> None:
    """Files with scales. Before lists were taken, a file at full scale is all that can be said in one way."""
    if len(scales) == 1 and set(scales.values()) == {1.0}:
        args.need(key, next(iter(scales)), plain)
    elif args.caps.has(_AFTER_SCALED_LISTS):
        args.need(key, ",".join(f"{file}:{scale}" for file, scale in scales.items()), scaled)
    else:
        args.need(f"{key} with several files or scales", None, f"{scaled} FILE:SCALE,...")


def _draft(args: Args, plan: Plan, draft: Draft, written: frozenset[str]) -> None:
    if not draft.types:
        return
    if args.caps.has("--spec-type") or draft.types != ("draft-simple",):  # before, a model was all that was needed
        args.need("draft.types", ",".join(draft.types), "--spec-type")
    _add(args, "draft", draft, _DRAFT, written)
    if draft.gpus != "auto" and draft.gpus:
        args.need(
            "draft.gpus", _devices(plan, "draft.gpus", *draft.gpus),
            "--spec-draft-device", "--device-draft",
        )  # fmt: skip
    if draft.kv_cache != "f16":
        args.need("draft.kv_cache", draft.kv_cache, "--spec-draft-type-k", "--cache-type-k-draft")
        args.need("draft.kv_cache", draft.kv_cache, "--spec-draft-type-v", "--cache-type-v-draft")
    for kind in draft.types:
        _add(args, "draft", draft, _NGRAM.get(kind, {}), written)


# -- the server ------------------------------------------------------------------------------------------------


def _server(args: Args, server: Server, written: frozenset[str]) -> None:
    if server.ui:
        args.need("server.ui", None, "--ui", "--webui")
    else:
        args.offered(None, "--no-ui", "--no-webui")
    args.offered(None, "--offline")
    if server.metrics:
        args.wanted("server.metrics" in written, "server.metrics", None, "--metrics")
    args.offered(None, "--slots")
    if server.jinja:  # before a template: without it only the names of built-in ones are taken
        args.wanted("server.jinja" in written, "server.jinja", None, "--jinja")
    else:
        args.offered(None, "--no-jinja")
    if server.chat_template_kwargs:
        text = json.dumps(server.chat_template_kwargs, ensure_ascii=False)
        args.need("server.chat_template_kwargs", text, "--chat-template-kwargs")
    if server.override_kv:
        args.need("server.override_kv", ",".join(map(_override, server.override_kv.items())), "--override-kv")
    _add(args, "server", server, _SERVER, written)


def _override(item: tuple[str, bool | int | float | str]) -> str:
    """`KEY=TYPE:VALUE`; the type is that of the TOML value."""
    key, value = item
    kind = {bool: "bool", int: "int", float: "float", str: "str"}[type(value)]
    return f"{key}={kind}:{str(value).lower() if kind == 'bool' else value}"
