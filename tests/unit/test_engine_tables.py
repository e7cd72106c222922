"""The sections of a definition as arguments: each key, in the build's spelling, and only what was written."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest

from llamad.config.definition import Definition, Table
from llamad.engine.build import Capabilities
from llamad.engine.flags import dry_run_args
from llamad.errors import ConfigError
from llamad.planning.plan import DevicePlan
from tests.unit.test_engine_flags import NEW, OLD, args_of, definition, device, plan, value

PLAIN = args_of(plan())


def added(caps: Capabilities = NEW, written: tuple[str, ...] = (), **tables: object) -> list[str]:
    """The arguments that a definition has more than one that says nothing."""
    base = args_of(plan(), None, caps)
    found = []
    for item in args_of(plan(), definition(**tables), caps, *written):
        if base and item == base[0]:
            del base[0]
        else:
            found.append(item)
    assert base == []
    return found


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ({"placement": {"kv_offload": False}}, ["--no-kv-offload"]),
        ({"placement": {"op_offload": False}}, ["--no-op-offload"]),
        ({"placement": {"repack": False}}, ["--no-repack"]),
        ({"placement": {"no_host": True}}, ["--no-host"]),
        ({"placement": {"swa_full": True}}, ["--swa-full"]),
        ({"placement": {"ctx_checkpoints": 0}}, ["--ctx-checkpoints", "0"]),
        ({"placement": {"checkpoint_every": 512}}, ["--checkpoint-min-step", "512"]),
        ({"placement": {"lazy_mode": "off"}}, ["--lazy-mode", "off"]),
        ({"placement": {"cpu_mask": "0xff"}}, ["--cpu-mask", "0xff"]),
        (
            {"placement": {"cpu_range": "0-3", "cpu_strict": True}},
            ["--cpu-range", "0-3", "--cpu-strict", "1"],
        ),
        ({"placement": {"priority": "low", "poll": 0}}, ["--poll", "0", "--prio", "-1"]),
        (
            {"rope": {"scaling": "yarn", "scale": 4.0, "yarn_orig_ctx": 8192}},
            ["--rope-scaling", "yarn", "--rope-scale", "4.0", "--yarn-orig-ctx", "8192"],
        ),
        ({"rope": {"freq_base": 12345678.5}}, ["--rope-freq-base", "12345678.5"]),
        ({"lora": {"adapters": {"/a b.gguf": 1.0}}}, ["--lora", "/a b.gguf"]),
        ({"lora": {"adapters": {"/a": 0.5, "/b": 1}}}, ["--lora-scaled", "/a:0.5,/b:1.0"]),
        (
            {"lora": {"control_vectors": {"/c": -0.5}, "control_vector_layers": [2, 9]}},
            ["--control-vector-scaled", "/c:-0.5", "--control-vector-layer-range", "2", "9"],
        ),
        (
            {"vision": {"mmproj": "/m", "offload": False, "image_max_tokens": 64}},
            ["--mmproj", "/m", "--no-mmproj-offload", "--image-max-tokens", "64"],
        ),
        ({"vision": {"mmproj": "/m", "gpu": "vulkan0"}}, ["--mmproj", "/m", "--mmproj-device", "Vulkan0"]),
        ({"server": {"reasoning": "off"}}, ["--reasoning", "off"]),
        ({"server": {"reasoning_preserve": False}}, ["--no-reasoning-preserve"]),
        ({"server": {"reasoning_budget": 0}}, ["--reasoning-budget", "0"]),
        ({"server": {"chat_template_kwargs": {"a": True, "ü": 1.5}}}, ["--chat-template-kwargs", '{"a": true, "ü": 1.5}']),
        (
            {"server": {"override_kv": {"a.b": True, "c": 1, "d": 0.5, "e": "x y"}}},
            ["--override-kv", "a.b=bool:true,c=int:1,d=float:0.5,e=str:x y"],
        ),
        ({"server": {"tags": ["a", "b c"]}}, ["--tags", "a,b c"]),
        ({"server": {"embeddings": True, "pooling": "mean"}}, ["--embeddings", "--pooling", "mean"]),
        ({"server": {"sse_ping_s": -1, "timeout_s": 60}}, ["--timeout", "60", "--sse-ping-interval", "-1"]),
        ({"sampling": {"temperature": 0, "top_k": 0}}, ["--temp", "0.0", "--top-k", "0"]),
        ({"sampling": {"samplers": ["top_k", "temperature"]}}, ["--samplers", "top_k;temperature"]),
        (
            {"sampling": {"dry_sequence_breakers": ["\n", "x"]}},
            ["--dry-sequence-breaker", "\n", "--dry-sequence-breaker", "x"],
        ),
        ({"sampling": {"max_tokens": 100, "ignore_eos": True}}, ["--predict", "100", "--ignore-eos"]),
    ],
)  # fmt: skip
def test_a_key_is_passed_on(tables: dict[str, object], expected: list[str]) -> None:
    assert added(**tables) == expected


DRAFT = {
    "types": ["draft-simple", "ngram-mod", "ngram-simple"], "model": "/d.gguf", "n_max": 6, "gpu_layers": 4,
    "kv_cache": "q8_0", "gpus": ["GPU-b"], "cpu_moe": True, "backend_sampling": False, "ngram_lookup": 8,
    "ngram_draft_min": 2,
}  # fmt: skip


def test_a_draft_is_passed_on_in_whole() -> None:
    two = plan(devices=(device("CUDA0", "GPU-a"), device("CUDA2", "GPU-b")))
    args = args_of(two, definition(draft=DRAFT))
    assert value(args, "--spec-type") == "draft-simple,ngram-mod,ngram-simple"
    assert value(args, "--spec-draft-model") == "/d.gguf" and value(args, "--spec-draft-n-max") == "6"
    assert value(args, "--spec-draft-ngl") == "4" and value(args, "--spec-draft-device") == "CUDA1"
    assert value(args, "--spec-draft-type-k") == value(args, "--spec-draft-type-v") == "q8_0"
    assert {"--spec-draft-cpu-moe", "--no-spec-draft-backend-sampling"} <= set(args)
    assert value(args, "--spec-ngram-mod-n-match") == value(args, "--spec-ngram-simple-size-n") == "8"
    assert value(args, "--spec-ngram-mod-n-min") == "2"
    assert not [item for item in args if "map-k" in item]


def test_what_an_older_build_calls_otherwise() -> None:
    flags = "--model-draft --draft-max --draft-p-min --gpu-layers-draft --cache-type-k-draft --cache-type-v-draft -kvu"
    caps = replace(OLD, flags=OLD.flags | set(flags.split()))
    draft = {"types": ["draft-simple"], "model": "/d", "n_max": 8, "p_min": 0.5, "gpu_layers": 2, "kv_cache": "q8_0"}
    expected = "--model-draft /d --draft-max 8 --draft-p-min 0.5 --gpu-layers-draft 2 --cache-type-k-draft q8_0"
    assert added(caps, draft=draft) == [*expected.split(), "--cache-type-v-draft", "q8_0"]
    with pytest.raises(ConfigError, match=r"does not offer --spec-type ngram-mod"):
        added(caps, draft={"types": ["ngram-mod"]})
    with pytest.raises(ConfigError, match=r"does not offer --lora-scaled FILE:SCALE"):
        added(replace(caps, flags=caps.flags | {"--lora", "--lora-scaled"}), lora={"adapters": {"/a": 0.5}})


def test_a_default_is_passed_on_only_where_it_was_written_and_is_offered() -> None:
    tables = {"placement": {"kv_offload": True}, "server": {"cache_prompt": True}}
    keys = ("placement.kv_offload", "server.cache_prompt")
    assert added(**tables) == []
    with_both = args_of(plan(), definition(**tables), NEW, *keys)
    assert set(with_both) - set(PLAIN) == {"--kv-offload", "--cache-prompt"}
    assert added(replace(OLD, flags=OLD.flags | {"-kvu"}), keys, **tables) == []


def values_of(annotated: str) -> object:
    """A value that a key of this annotation takes and that is no default."""
    examples = {
        "FilePath": "/srv/x", "bool": True, "Share": 0.625, "Factor": 0.75, "SomeFactor": 3.5, "Penalty": 0.5,
        "Threads": 3, "TokensOrNone": 77, "Tokens": 77, "Layers": 3, "str": "text", "Literal": None,
    }  # fmt: skip
    return next((found for word, found in examples.items() if annotated.startswith(word)), 1)


def test_every_key_changes_the_arguments() -> None:
    """No key of the sections for llama-server is without effect, whatever is added to the schema later."""
    context: dict[str, dict[str, object]] = {
        "draft": {"types": ["draft-simple", "ngram-mod", "ngram-simple", "ngram-cache"], "model": "/d"},
        "vision": {"mmproj": "/m"}, "server": {}, "sampling": {}, "rope": {},
    }  # fmt: skip
    special: dict[str, object] = {
        "types": ["draft-mtp"], "model": "/e", "mmproj": "/n", "jinja": False, "metrics": False, "offload": False,
        "gpus": ["Vulkan0"], "gpu": "Vulkan0", "samplers": ["top_k"], "dry_sequence_breakers": ["x"], "tags": ["x"],
        "override_kv": {"a": 1}, "chat_template_kwargs": {"a": 1}, "extra_args": ["--perf"], "reasoning": "on",
        "reasoning_format": "none", "reasoning_effort": "low", "pooling": "mean", "scaling": "yarn", "kv_cache": "q8_0",
        "embd_normalize": 3, "reasoning_budget_message": "x", "chat_template": "chatml", "adaptive_decay": 0.5,
    }  # fmt: skip
    needed: dict[str, dict[str, object]] = {
        "pooling": {"embeddings": True}, "reasoning_budget_message": {"reasoning_budget": 5},
    }  # fmt: skip
    for table, base in context.items():
        kind: type[Table] = type(getattr(Definition(model="/m"), table))
        for field in fields(kind):
            if field.name == "cache_ram":
                continue  # the plan has it
            before = {**base, **needed.get(field.name, {})}
            default = getattr(kind(), field.name)
            wanted = special.get(field.name, not default if isinstance(default, bool) else values_of(str(field.type)))
            if field.name == "sampling":
                wanted = "probabilistic"
            one = args_of(plan(), definition(**{table: before}))
            two = args_of(plan(), definition(**{table: {**before, field.name: wanted}}))
            assert one != two, f"{table}.{field.name} = {json.dumps(wanted)} changes nothing"


def test_a_device_that_the_plan_does_not_use_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        added(vision={"mmproj": "/m", "gpu": "CUDA7"})
    assert str(caught.value) == (
        "vision.gpu: CUDA7 is no device that the model is placed on: the plan uses Vulkan0; "
        "name one of them, or change gpus in [placement]"
    )


@pytest.mark.parametrize(
    ("tables", "flag", "key"),
    [
        ({"sampling": {"xtc_threshold": 0.1}}, "--xtc-threshold 0.1", "sampling.xtc_threshold"),
        ({"server": {"cache_reuse": 8}}, "--cache-reuse 8", "server.cache_reuse"),
        ({"placement": {"swa_full": True}}, "--swa-full", "placement.swa_full"),
        ({"vision": {"mmproj": "/m"}}, "--mmproj /m", "vision.mmproj"),
        ({"rope": {"scale": 2.0}}, "--rope-scale 2.0", "rope.scale"),
    ],
)
def test_what_the_build_lacks_names_key_and_flag(tables: dict[str, object], flag: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        added(replace(OLD, flags=OLD.flags | {"-kvu"}), **tables)
    assert caught.value.what == f"llama-server 6000 (abcdef) does not offer {flag}"
    assert caught.value.why == f"{key} needs it"


def test_a_kind_of_guessing_that_the_build_does_not_list_is_refused() -> None:
    older = replace(NEW, values={**NEW.values, "--spec-type": frozenset({"none", "draft-simple"})})
    with pytest.raises(ConfigError, match=r"does not offer --spec-type draft-simple,ngram-mod"):
        added(older, draft={"types": ["draft-simple", "ngram-mod"], "model": "/d"})


def test_sampling_does_not_count_for_the_dry_run() -> None:
    plain = dry_run_args(plan(), definition(), NEW, socket_path="/tmp/dry.sock")
    sampled = definition(sampling={"top_k": 3, "samplers": ["top_k"], "dry_sequence_breakers": ["x"]})
    assert dry_run_args(plan(), sampled, NEW, socket_path="/tmp/dry.sock") == plain
    vision = definition(vision={"mmproj": "/m"}, placement={"swa_full": True})
    assert {"--mmproj", "--swa-full"} <= set(dry_run_args(plan(), vision, NEW, socket_path="/tmp/dry.sock"))


def test_a_projector_is_put_where_the_plan_has_it() -> None:
    of_definition = definition(vision={"mmproj": "/m/mm.gguf"})

    def told(place: str, *devices: DevicePlan) -> list[str]:
        args = args_of(plan(vision_place=place, devices=devices or (device("Vulkan0"),)), of_definition)
        placed = [value(args, "--mmproj-device")] if "--mmproj-device" in args else []
        return [word for word in args if "mmproj" in word] + placed

    assert told("host") == ["--mmproj", "--no-mmproj-offload"]
    assert told("Vulkan0") == ["--mmproj", "--mmproj-device", "Vulkan0"]
    cards = (device("CUDA2", "GPU-2"), device("CUDA3", "GPU-3"))
    assert told("CUDA3", *cards) == ["--mmproj", "--mmproj-device", "CUDA1"]
    old = replace(NEW, flags=NEW.flags - {"--mmproj-device"})
    assert "--mmproj-device" not in args_of(plan(vision_place="Vulkan0"), of_definition, old)
