"""What of a definition has changed, and what that takes. Pure.

Every key of the schema is in the table: one that only llamad itself uses is applied in place, an address is bound
anew beside the old one, all else is llama-server's and needs a new one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import NamedTuple

from llamad.config.definition import Table
from llamad.config.loaded import Loaded, values_of


class Takes(StrEnum):
    """What a changed key takes to be in force."""

    NOTHING = "nothing"
    """llamad uses the new value from now on: no request is touched."""
    REBIND = "rebind"
    """Another socket; connections and requests stay."""
    RESTART = "restart"
    """A new llama-server, perhaps with another plan."""


def _each(takes: Takes, table: str, keys: str) -> dict[str, Takes]:
    prefix = f"{table}." if table else ""
    return {f"{prefix}{key}": takes for key in keys.split()}


TAKES: Mapping[str, Takes] = {
    **_each(Takes.RESTART, "", "model front environment"),
    **_each(Takes.REBIND, "", "listen listen_mode"),
    **_each(Takes.NOTHING, "", "aliases start insecure api_keys_file admin_keys_file tls_cert tls_key allowed_hosts"),
    **_each(
        Takes.RESTART,
        "placement",
        """
        context context_min parallel kv_cache batch memory ubatch flash_attention gpu_layers split_mode tensor_split
        main_gpu gpus cpu_moe n_cpu_moe n_cpu_ffn kv_offload op_offload repack no_host swa_full ctx_checkpoints
        checkpoint_every load_mode lazy_mode threads threads_batch cpu_mask cpu_range cpu_strict priority poll numa
        rpc vram_margin allow_cpu
        """,
    ),
    **_each(
        Takes.NOTHING,
        "limits",
        """
        max_concurrent_requests queue_requests wait_s drain_s head_bytes body_bytes replay_bytes client_idle_s
        max_input_tokens max_output_tokens max_total_tokens heartbeat_s
        start_stall_s start_wait_s warmup_s hang_s stop_s restarts stable_s child_log_lines_per_s
        """,
    ),
    **_each(
        Takes.RESTART,
        "server",
        """
        chat_template chat_template_file chat_template_kwargs jinja skip_chat_parsing prefill_assistant reasoning
        reasoning_format reasoning_effort reasoning_budget reasoning_budget_message reasoning_preserve metrics ui
        embeddings reranking pooling embd_normalize cache_ram cache_prompt cache_reuse cache_idle_slots cont_batching
        context_shift slot_prompt_similarity special spm_infill check_tensors override_kv tags threads_http timeout_s
        sse_ping_s extra_args
        """,
    ),
    **_each(
        Takes.RESTART,
        "sampling",
        """
        samplers seed max_tokens keep ignore_eos temperature dynatemp_range dynatemp_exp top_k top_p min_p top_n_sigma
        typical_p xtc_probability xtc_threshold repeat_penalty repeat_last_n presence_penalty frequency_penalty
        dry_multiplier dry_base dry_allowed_length dry_penalty_last_n dry_sequence_breakers adaptive_target
        adaptive_decay mirostat mirostat_lr mirostat_ent grammar_file json_schema_file backend_sampling
        """,
    ),
    **_each(
        Takes.RESTART,
        "draft",
        """
        types model n_max n_min p_min p_split sampling backend_sampling gpus gpu_layers kv_cache ubatch cpu_moe
        n_cpu_moe threads threads_batch ngram_lookup ngram_draft ngram_draft_min ngram_min_hits ngram_cache_file
        """,
    ),
    **_each(
        Takes.RESTART, "lora", "adapters init_without_apply control_vectors control_vector_layers"
    ),
    **_each(
        Takes.RESTART, "vision", "mmproj offload gpu image_min_tokens image_max_tokens batch_tokens"
    ),
    **_each(
        Takes.RESTART,
        "rope",
        """
        scaling scale freq_base freq_scale yarn_orig_ctx yarn_ext_factor yarn_attn_factor yarn_beta_slow
        yarn_beta_fast
        """,
    ),
    **_each(Takes.NOTHING, "cache", "responses response_bytes"),
    **_each(Takes.NOTHING, "log", "requests"),
    **_each(Takes.NOTHING, "idle", "keep_alive"),
    **_each(Takes.RESTART, "host", "server"),
    **_each(
        Takes.NOTHING,
        "host",
        """
        models parallel_loads query_s watch
        listen listen_mode insecure api_keys_file tls_cert tls_key allowed_hosts resident_s unit_grace_s
        """,  # the second line is the router's own
    ),
}
"""By the dotted key, `host.` for the host's own settings."""


class Change(NamedTuple):
    """One key with another value."""

    key: str
    takes: Takes


def changes(old: Loaded, new: Loaded) -> tuple[Change, ...]:
    """The keys whose values differ, in the order of the schema; () where only comments or places do."""
    found = [*differing(old.definition, new.definition, ""), *differing(old.host, new.host, "host.")]
    rebind = Takes.RESTART if new.definition.is_direct else Takes.REBIND  # it is llama-server that is bound
    return tuple(Change(key, rebind if TAKES[key] is Takes.REBIND else TAKES[key]) for key in found)


def takes(found: tuple[Change, ...]) -> frozenset[Takes]:
    """All that these changes take together."""
    return frozenset(change.takes for change in found)


def needs_no_new_child(old: Loaded, new: Loaded) -> bool:
    """Whether the llama-server of one definition serves the other as well."""
    return Takes.RESTART not in takes(changes(old, new))


def in_words(found: tuple[Change, ...], most: int = 8) -> str:
    """`placement.context, aliases`: the changed keys for a sentence."""
    names = [change.key for change in found]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def differing(old: Table, new: Table, prefix: str) -> Iterator[str]:
    """The dotted keys of a table whose values differ, in its order."""
    after = dict(values_of(new))
    for key, value in values_of(old):
        if value == after[key]:
            continue
        if isinstance(value, Table):
            yield from differing(value, after[key], f"{prefix}{key}.")  # type: ignore[arg-type]
        else:
            yield f"{prefix}{key}"
