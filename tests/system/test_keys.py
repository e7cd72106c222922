"""Very many keys at once: the real llama-server takes them all, and does what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.system.conftest import ETC, Bed, post, run

MANY = """
[placement]
allow_cpu = true
context = 1024
parallel = 2
kv_offload = false
op_offload = false
repack = false
no_host = true
swa_full = true
ctx_checkpoints = 2
checkpoint_every = 256
lazy_mode = "off"
threads = 2
threads_batch = 2
cpu_range = "0-1"
cpu_mask = "3"
priority = "low"
poll = 10

[server]
chat_template = "chatml"
chat_template_kwargs = { mood = "calm", depth = 2, quick = true }
reasoning = "off"
reasoning_format = "deepseek"
reasoning_effort = "low"
reasoning_budget = 0
reasoning_budget_message = "Enough."
reasoning_preserve = false
prefill_assistant = false
cache_reuse = 64
cache_idle_slots = false
context_shift = true
slot_prompt_similarity = 0.25
special = true
spm_infill = true
check_tensors = true
override_kv = { "general.name" = "renamed", "tokenizer.ggml.add_bos_token" = false }
tags = ["small", "a test"]
threads_http = 8
timeout_s = 600
sse_ping_s = 5

[draft]
types = ["ngram-simple", "ngram-mod"]
n_max = 4
p_min = 0.5
ngram_lookup = 16
ngram_draft = 24
ngram_draft_min = 2
ngram_min_hits = 1

[rope]
scaling = "yarn"
scale = 2.0
freq_base = 20000.0
yarn_orig_ctx = 2048
yarn_ext_factor = 1.0
yarn_attn_factor = 1.0
yarn_beta_slow = 1.0
yarn_beta_fast = 32.0

[sampling]
samplers = ["penalties", "top_k", "temperature"]
max_tokens = 5
keep = 4
ignore_eos = true
grammar_file = "/etc/llamad/answer.gbnf"
dry_sequence_breakers = ["\\n", "|"]
mirostat = 0
"""
SAMPLED = {
    "seed": 7, "temperature": 0.25, "dynatemp_range": 0.125, "top_k": 11, "top_p": 0.5, "min_p": 0.0625,
    "top_n_sigma": 2.0, "typical_p": 0.75, "xtc_probability": 0.125, "xtc_threshold": 0.25, "repeat_penalty": 1.25,
    "repeat_last_n": 32, "presence_penalty": -0.5, "frequency_penalty": 0.5, "dry_multiplier": 0.5, "dry_base": 2.0,
    "dry_allowed_length": 3, "dry_penalty_last_n": 128, "adaptive_target": 0.5, "adaptive_decay": 0.75,
}  # fmt: skip
"""Keys whose names are those of the API too."""


def test_very_many_keys_at_once(bed: Bed) -> None:
    sampling = "".join(f"{key} = {json.dumps(value)}\n" for key, value in SAMPLED.items())
    grammar = ETC / "answer.gbnf"
    grammar.write_text("root ::= [a-z]+\n")
    url = bed.define("many", extra=MANY + sampling, vulkan=False)
    assert run("llamad", "check", "many").stderr == ""
    bed.ctl("start", "llamad@many")

    status, answer = post(f"{url}/completion", {"prompt": "hello"})
    assert status == 200, answer
    used: dict[str, Any] = answer["generation_settings"]
    assert {key: used[key] for key in SAMPLED} == SAMPLED
    assert (used["samplers"], used["n_keep"], used["max_tokens"]) == (["penalties", "top_k", "temperature"], 4, 5)
    assert used["dry_sequence_breakers"] == ["\n", "|"] and used["ignore_eos"] is True
    assert answer["tokens_predicted"] == 5 and answer["content"].islower() and answer["content"].isalpha()

    lines = "\n".join(str(record["MESSAGE"]) for record in bed.journal("-t", "llama-server@many"))
    command = Path(f"/proc/{bed.child_pid('many')}/cmdline").read_text().split("\0")
    assert command[command.index("--tags") + 1] == "small,a test"
    assert "freq_scale            = 0.5" in lines and "freq_base             = 20000.0" in lines
    assert "context checkpoints enabled, max = 2, min spacing = 256" in lines


def test_what_it_is_not_offered_is_named_before_anything_starts(bed: Bed) -> None:
    bed.define("bad", extra='[vision]\nmmproj = "/var/lib/llamad/models/none.gguf"', vulkan=False)
    said = run("llamad", "check", "bad", check=False)
    assert said.returncode == 78 and "vision.mmproj: /var/lib/llamad/models/none.gguf does not exist" in said.stderr
    assert bed.ctl("start", "llamad@bad", check=False).returncode != 0
    assert bed.show("llamad@bad", "ExecMainStatus") == "66"  # it may be on a file system that comes later
