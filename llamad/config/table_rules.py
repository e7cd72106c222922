"""Rules between the keys of one table, beyond the types of the schema. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Set
from typing import Any

from llamad.config.definition import Draft, Lora, Placement, Rope, Sampling, Server, Table, Vision
from llamad.config.keys import shown


class KeyProblem(ValueError):
    """A rule between keys of one table is broken; `key` is the one to point at."""

    def __init__(self, key: str, text: str, fix: str = "change one of the two") -> None:
        super().__init__(text)
        self.key = key
        self.fix = fix


def check_table(table: Table, written: Set[str]) -> None:
    """Raises KeyProblem for the first rule that a table breaks; `written` are the keys that are not defaults."""
    rule = _RULES.get(type(table))
    if rule is not None:
        rule(table, written)


def _placement(placement: Placement, written: Set[str]) -> None:
    context, batch, ubatch = placement.context, placement.batch, placement.ubatch
    if context != "auto" and "context_min" in written and placement.context_min > context:
        raise KeyProblem("context_min", f"{placement.context_min} is above context ({context})")
    if batch != "auto" and ubatch != "auto" and ubatch > batch:
        raise KeyProblem("ubatch", f"{ubatch} is above batch ({batch})")
    quantised = placement.kv_cache not in ("auto", "f32", "f16", "bf16")
    if quantised and placement.flash_attention is False:
        what = f'"{placement.kv_cache}" needs flash attention, which is switched off'
        raise KeyProblem("kv_cache", what)
    if placement.cpu_moe and placement.n_cpu_moe != "auto":
        raise KeyProblem("n_cpu_moe", "cpu_moe is written too, which moves the experts of all layers")
    if placement.tensor_split and not any(placement.tensor_split):
        raise KeyProblem("tensor_split", "all shares are 0", "give one device a share above 0")
    if placement.cpu_strict and placement.cpu_mask is None and placement.cpu_range is None:
        raise KeyProblem("cpu_strict", "no CPUs are named to keep to", "write cpu_range or cpu_mask too")
    if placement.lazy_mode == "on" and placement.load_mode not in ("auto", "mmap", "mmap+mlock"):
        what = f'"on" needs a file that is mapped, and load_mode is "{placement.load_mode}"'
        raise KeyProblem("lazy_mode", what)


def _server(server: Server, written: Set[str]) -> None:
    if server.chat_template is not None and server.chat_template_file is not None:
        raise KeyProblem("chat_template_file", "chat_template is written too; a server takes one of them")
    if server.embeddings and server.reranking:
        raise KeyProblem("reranking", "embeddings is true too; a server does one of them")
    if server.pooling != "auto" and not server.embeddings and not (server.reranking and server.pooling == "rank"):
        needs = '"rank", as reranking is true' if server.reranking else "embeddings = true"
        raise KeyProblem("pooling", f'"{server.pooling}" needs {needs}')
    if server.cache_reuse and not server.cache_prompt:
        raise KeyProblem("cache_reuse", "cache_prompt is false, so there is nothing to use again")
    _reasoning(server, written)
    _jinja_only(server)
    _no_comma("override_kv", server.override_kv)
    for key, value in server.override_kv.items():
        if not 1 <= len(key) <= 127 or "=" in key or (isinstance(value, str) and len(value) > 127):
            what = f'"{shown(key)}" or its value is longer than 127 characters, empty, or has a "="'
            raise KeyProblem("override_kv", what, "shorten it")


def _reasoning(server: Server, written: Set[str]) -> None:
    if server.reasoning == "off" and server.reasoning_budget > 0:
        raise KeyProblem("reasoning_budget", 'reasoning is "off", so there is nothing to limit')
    if server.reasoning_budget_message is not None and server.reasoning_budget < 0:
        what = "no budget is written that could be used up"
        raise KeyProblem("reasoning_budget_message", what, "write reasoning_budget too")
    clash = {"enable_thinking": "reasoning", "reasoning_effort": "reasoning_effort"}
    for name, key in clash.items():
        if name in server.chat_template_kwargs and key in written:
            raise KeyProblem("chat_template_kwargs", f"{name} is set by {key} too", f"write {key} only")


def _jinja_only(server: Server) -> None:
    if server.jinja:
        return
    if server.chat_template_kwargs:
        raise KeyProblem("chat_template_kwargs", "only the template engine uses them, and jinja is false")
    if server.reasoning_effort != "default":
        raise KeyProblem("reasoning_effort", "only the template engine uses it, and jinja is false")


def _no_comma(key: str, values: Mapping[str, object]) -> None:
    """llama-server takes these as one list with commas."""
    for name, value in values.items():
        if "," in f"{name}{value}" or '"' in f"{name}{value}":
            what = f"{shown(json.dumps(name), 100)} or its value has a comma or a quotation mark"
            raise KeyProblem(key, what, "llama-server cannot be given that")


def _sampling(sampling: Sampling, _written: Set[str]) -> None:
    if sampling.grammar_file is not None and sampling.json_schema_file is not None:
        raise KeyProblem("json_schema_file", "grammar_file is written too; an answer follows one of them")
    if len(set(sampling.samplers)) < len(sampling.samplers):
        raise KeyProblem("samplers", "one of them is there twice", "delete it")
    breakers = sampling.dry_sequence_breakers
    if "none" in breakers and len(breakers) > 1:
        raise KeyProblem("dry_sequence_breakers", '"none" stands for none at all', "delete it, or all others")


_NEED_A_MODEL = {"draft-simple", "draft-eagle3", "draft-dflash", "draft-dspark"}
_NGRAM_KEYS: Mapping[str, set[str]] = {
    "ngram_lookup": {"ngram-simple", "ngram-map-k", "ngram-map-k4v", "ngram-mod"},
    "ngram_draft": {"ngram-simple", "ngram-map-k", "ngram-map-k4v", "ngram-mod"},
    "ngram_draft_min": {"ngram-mod"},
    "ngram_min_hits": {"ngram-simple", "ngram-map-k", "ngram-map-k4v"},
    "ngram_cache_file": {"ngram-cache"},
}
_MODEL_KEYS = ("gpus", "gpu_layers", "cpu_moe", "n_cpu_moe", "threads", "threads_batch")


def _draft(draft: Draft, written: Set[str]) -> None:
    if not draft.types:
        for key in sorted(written - {"types"}):
            fix = 'write types, for example ["draft-simple"]'
            raise KeyProblem(key, "has no effect: nothing is guessed without types", fix)
    missing = _NEED_A_MODEL.intersection(draft.types)
    if missing and draft.model is None:
        raise KeyProblem("types", f'"{min(missing)}" needs a model of its own', "write model in [draft]")
    if draft.model is not None and not any(kind.startswith("draft-") for kind in draft.types):
        raise KeyProblem("model", "no type is written that uses a model", 'add "draft-simple" to types')
    for key in _MODEL_KEYS:
        if key in written and draft.model is None:
            raise KeyProblem(key, "is about a draft model, and none is written", "write model in [draft]")
    for key, kinds in _NGRAM_KEYS.items():
        if key in written and not kinds.intersection(draft.types):
            raise KeyProblem(key, "no type is written that uses it", f'add "{min(kinds)}" to types')
    if draft.n_min is not None and draft.n_max is not None and draft.n_min > draft.n_max:
        raise KeyProblem("n_min", f"{draft.n_min} is above n_max ({draft.n_max})")
    low, high = draft.ngram_draft_min, draft.ngram_draft
    if low is not None and high is not None and low > high:
        raise KeyProblem("ngram_draft_min", f"{low} is above ngram_draft ({high})")
    if draft.cpu_moe and draft.n_cpu_moe != "auto":
        raise KeyProblem("n_cpu_moe", "cpu_moe is written too, which moves the experts of all layers")


def _lora(lora: Lora, _written: Set[str]) -> None:
    for key, scales in (("adapters", lora.adapters), ("control_vectors", lora.control_vectors)):
        _no_comma(key, scales)
        for path in scales:
            if ":" in path:
                what = f"{shown(json.dumps(path), 100)} has a colon, where llama-server expects the scale"
                raise KeyProblem(key, what, "rename the file")
    if lora.init_without_apply and not lora.adapters:
        raise KeyProblem("init_without_apply", "there are no adapters", "write adapters, or delete it")
    layers = lora.control_vector_layers
    if layers is not None and not lora.control_vectors:
        raise KeyProblem("control_vector_layers", "there are no control_vectors", "write them, or delete it")
    if layers is not None and layers[0] > layers[1]:
        what = f"the first layer ({layers[0]}) is above the last ({layers[1]})"
        raise KeyProblem("control_vector_layers", what, f"write [{layers[1]}, {layers[0]}]")


def _vision(vision: Vision, written: Set[str]) -> None:
    if vision.mmproj is None:
        for key in sorted(written):
            raise KeyProblem(key, "has no effect without a projector", "write mmproj, or delete it")
    if not vision.offload and vision.gpu != "auto":
        raise KeyProblem("gpu", "offload is false, so the projector is on no GPU")
    low, high = vision.image_min_tokens, vision.image_max_tokens
    if low is not None and high is not None and low > high:
        raise KeyProblem("image_min_tokens", f"{low} is above image_max_tokens ({high})")


def _rope(rope: Rope, _written: Set[str]) -> None:
    if rope.scale is not None and rope.freq_scale is not None:
        raise KeyProblem("freq_scale", "scale is written too; it is 1 / freq_scale", "delete one of the two")


_RULES: dict[type[Table], Callable[[Any, Set[str]], None]] = {
    Placement: _placement,
    Server: _server,
    Sampling: _sampling,
    Draft: _draft,
    Lora: _lora,
    Vision: _vision,
    Rope: _rope,
}
