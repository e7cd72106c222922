"""From headers to the planner's facts, and what is refused as no model."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest

from llamad.errors import BadModelError
from llamad.gguf.facts import ModelFacts
from llamad.gguf.ggml_types import type_id
from llamad.gguf.read import read_facts
from tests.support.gguf_bytes import (
    EMBEDDING,
    LLAMA_KEYS,
    Gguf,
    key_array,
    key_i32s,
    key_text,
    key_u32,
    tensor,
    text,
)
from tests.support.models import LLAMA32_3B, PHI4_14B, QWEN3_8B, build_hollow, build_tiny
from tests.support.shapes import HollowShape


def facts_of(
    tmp_path: Path, *keys: bytes, tensors: list[bytes] | None = None, data_bytes: int = 1 << 16
) -> ModelFacts:
    gguf = Gguf(keys=[*LLAMA_KEYS, *keys], tensors=tensors or [EMBEDDING], data_bytes=data_bytes)
    return read_facts(gguf.write(tmp_path / "model.gguf"))


def refused(tmp_path: Path, *keys: bytes, tensors: list[bytes] | None = None) -> str:
    gguf = Gguf(keys=list(keys), tensors=[EMBEDDING] if tensors is None else tensors)
    with pytest.raises(BadModelError) as caught:
        read_facts(gguf.write(tmp_path / "model.gguf"))
    assert caught.value.fix
    return caught.value.why


@pytest.mark.parametrize("shape", [PHI4_14B, QWEN3_8B, LLAMA32_3B], ids=lambda shape: shape.title)
def test_shapes_of_real_models(tmp_path: Path, shape: HollowShape) -> None:
    facts = read_facts(str(build_hollow(tmp_path / "m.gguf", shape)))
    assert facts.architecture == shape.arch
    assert facts.name == shape.title
    assert facts.file_type == "Q4_K_M"
    assert facts.n_layers == shape.layers
    assert facts.n_layers_nextn == 0
    assert facts.n_embd == shape.embd
    assert facts.n_vocab == shape.vocab
    assert facts.n_ctx_train == shape.ctx_train_tokens
    assert facts.n_head == (shape.heads,) * shape.layers
    assert facts.n_head_kv == (shape.kv_heads,) * shape.layers
    assert (facts.head_k, facts.head_v) == (shape.head_dim, shape.head_dim)
    assert facts.n_ff == (shape.ff,) * shape.layers
    assert facts.n_expert == facts.n_expert_used == facts.n_ff_expert == facts.sliding_window == 0
    assert facts.tied_embeddings is shape.tied
    assert sum(tensor.size_bytes for tensor in facts.tensors) == pytest.approx(facts.file_bytes, rel=0.001)
    assert facts.hparams[f"{shape.arch}.block_count"] == shape.layers


def test_shards_make_one_model(tmp_path: Path) -> None:
    whole = read_facts(str(build_tiny(tmp_path / "tiny.gguf")))
    split = read_facts(str(build_tiny(tmp_path / "tiny.gguf", shards=3)))
    assert len(split.shards) == 3
    assert split.path == split.shards[0]
    assert split.tensors == whole.tensors
    assert split.file_bytes == sum(Path(shard).stat().st_size for shard in split.shards)
    assert split.has_chat_template is True


def test_the_fingerprint_follows_the_layout_not_the_place(tmp_path: Path) -> None:
    one = read_facts(str(build_tiny(tmp_path / "one.gguf"))).fingerprint
    again = read_facts(str(build_tiny(tmp_path / "again.gguf"))).fingerprint
    deeper = read_facts(str(build_tiny(tmp_path / "deeper.gguf", layers=5))).fingerprint
    trained = read_facts(str(build_tiny(tmp_path / "trained.gguf", seed=2))).fingerprint
    longer = read_facts(str(build_tiny(tmp_path / "longer.gguf", ctx_train_tokens=9000))).fingerprint
    assert one == again
    assert len({one, deeper, trained, longer}) == 4


def test_defaults_of_missing_keys(tmp_path: Path) -> None:
    facts = facts_of(tmp_path)
    assert facts.n_head_kv == (4, 4)
    assert (facts.head_k, facts.head_v) == (16, 16)
    assert facts.n_ff == (0, 0)
    assert facts.n_vocab == 8  # from token_embd
    assert facts.name == "model"
    assert facts.file_type == "F32"
    assert facts.tied_embeddings is True
    assert facts.has_chat_template is False


def test_per_layer_arrays(tmp_path: Path) -> None:
    facts = facts_of(
        tmp_path,
        key_i32s("llama.attention.head_count_kv", 0, 2),
        key_i32s("llama.feed_forward_length", 128, 256),
        key_u32("llama.attention.key_length", 24),
        key_u32("llama.attention.sliding_window", 512),
        key_i32s("llama.attention.sliding_window_pattern", 1, 0),
    )
    assert facts.n_head_kv == (0, 2)
    assert facts.n_ff == (128, 256)
    assert (facts.head_k, facts.head_v) == (24, 16)
    assert facts.sliding_window == 512
    assert facts.hparams["llama.attention.sliding_window_pattern"] == (1, 0)


def test_no_attention_is_no_division_by_zero(tmp_path: Path) -> None:
    keys = [key for key in LLAMA_KEYS if b"head_count" not in key]
    facts = read_facts(Gguf(keys=keys).write(tmp_path / "m.gguf"))
    assert facts.n_head == (0, 0)
    assert (facts.head_k, facts.head_v) == (0, 0)
    zero = read_facts(
        Gguf(keys=[*keys, key_u32("llama.attention.head_count", 0)]).write(tmp_path / "z.gguf")
    )
    assert zero.head_k == 0


def test_experts(tmp_path: Path) -> None:
    counts = [key_u32("llama.expert_count", 8), key_u32("llama.expert_used_count", 2)]
    dense = key_u32("llama.feed_forward_length", 96)
    down = tensor("blk.0.ffn_down_exps.weight", (48, 64, 8), offset=2048)
    own = facts_of(tmp_path, *counts, key_u32("llama.expert_feed_forward_length", 32), data_bytes=1 << 18)
    shaped = facts_of(tmp_path, *counts, dense, tensors=[EMBEDDING, down], data_bytes=1 << 18)
    mixtral = facts_of(tmp_path, *counts, dense)
    assert (own.n_expert, own.n_expert_used, own.n_ff_expert) == (8, 2, 32)
    assert shaped.n_ff_expert == 48
    assert mixtral.n_ff_expert == 96
    assert facts_of(tmp_path, dense).n_ff_expert == 0


def test_the_vocabulary_is_counted_from_its_tokens(tmp_path: Path) -> None:
    tokens = key_array("tokenizer.ggml.tokens", 8, 3, text("a") + text("b") + text("c"))
    assert facts_of(tmp_path, tokens).n_vocab == 3
    assert facts_of(tmp_path, tokens, key_u32("llama.vocab_size", 4)).n_vocab == 4


def test_an_output_tensor_unties_the_embedding(tmp_path: Path) -> None:
    output = tensor("output.weight", (64, 8), offset=2048)
    assert facts_of(tmp_path, tensors=[EMBEDDING, output]).tied_embeddings is False


def test_encoders_have_no_output_to_tie(tmp_path: Path) -> None:
    keys = [key.replace(b"llama.", b"brt_x.") for key in LLAMA_KEYS[1:]]
    bert = Gguf(keys=[key_text("general.architecture", "brt_x"), *keys])
    assert read_facts(bert.write(tmp_path / "m.gguf")).tied_embeddings is True
    names = ("block_count", "context_length", "embedding_length", "attention.head_count")
    real = [key_text("general.architecture", "bert"), *(key_u32(f"bert.{name}", 4) for name in names)]
    assert read_facts(Gguf(keys=real).write(tmp_path / "b.gguf")).tied_embeddings is False


@pytest.mark.parametrize(
    ("number", "name"), [(15, "Q4_K_M"), (1024 + 7, "Q8_0"), (32, "BF16"), (999, "Q8_0")]
)
def test_file_types(tmp_path: Path, number: int, name: str) -> None:
    mostly = tensor("big", (4096, 4), kind=type_id("Q8_0"), offset=2048)
    facts = facts_of(tmp_path, key_u32("general.file_type", number), tensors=[EMBEDDING, mostly])
    assert facts.file_type == name


def test_files_that_are_no_language_model(tmp_path: Path) -> None:
    clip = key_text("general.architecture", "clip")
    assert "projector" in refused(tmp_path, clip)
    assert "projector" in refused(tmp_path, *LLAMA_KEYS, key_text("general.type", "mmproj"))
    assert "LoRA adapter" in refused(tmp_path, *LLAMA_KEYS, key_text("general.type", "adapter"))
    assert "LoRA adapter" in refused(tmp_path, *LLAMA_KEYS, key_text("adapter.type", "lora"))
    assert "control vector" in refused(tmp_path, key_text("general.architecture", "controlvector"))
    assert "importance matrix" in refused(tmp_path, *LLAMA_KEYS, key_text("general.type", "imatrix"))
    assert "image or video" in refused(tmp_path, key_text("general.architecture", "flux"))
    assert "only a vocabulary" in refused(tmp_path, *LLAMA_KEYS, tensors=[])
    assert "names no architecture" in refused(tmp_path)


def with_key(name: str, encoded: bytes) -> list[bytes]:
    return [key for key in LLAMA_KEYS if name.encode() not in key] + [encoded]


@pytest.mark.parametrize(
    ("name", "encoded", "words"),
    [
        ("block_count", key_u32("llama.block_count", 513), "block_count is 513 (0 to 512)"),
        ("block_count", key_text("llama.block_count", "2"), "block_count is 2"),
        ("expert", key_u32("llama.expert_count", 1025), "expert_count is 1025 (0 to 1024)"),
        ("nextn", key_u32("llama.nextn_predict_layers", 3), "nextn_predict_layers is 3 (0 to 2)"),
        ("used", key_u32("llama.expert_used_count", 1), "expert_used_count is 1 (0 to 0)"),
        ("head_count", key_i32s("llama.attention.head_count", 4, 4, 4), "has 3 entries for 2 layers"),
        ("head_count", key_i32s("llama.attention.head_count", 4, -1), "head_count is -1"),
        ("head_count", key_i32s("llama.attention.head_count", *[1] * 5000), "has 5000 entries for 2 layers"),
        ("embedding", key_u32("llama.embedding_length", 2**31), "embedding_length is 2147483648"),
        ("context", key_i32s("llama.other", 1), "has no llama.context_length"),
    ],
)
def test_counts_beyond_llama_cpp_s_limits(tmp_path: Path, name: str, encoded: bytes, words: str) -> None:
    assert words in refused(tmp_path, *with_key(name, encoded))


def test_a_layer_limit_array_is_accepted(tmp_path: Path) -> None:
    keys = with_key("block_count", key_u32("llama.block_count", 512))
    keys.append(key_array("llama.attention.head_count_kv", 4, 512, struct.pack("<512I", *[2] * 512)))
    facts = read_facts(Gguf(keys=keys).write(tmp_path / "m.gguf"))
    assert facts.n_head_kv == (2,) * 512


def test_a_header_of_another_name_keeps_its_facts(tmp_path: Path) -> None:
    shape = replace(QWEN3_8B, title="A\nB")
    assert read_facts(str(build_hollow(tmp_path / "m.gguf", shape))).name == "A\\nB"
