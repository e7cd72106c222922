"""Files beside a model: what each kind is, and what is refused as another one, whatever is in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamad.errors import BadModelError, LlamadError
from llamad.gguf.beside import Kind, SideFile, read_beside, require_base
from llamad.gguf.facts import Tensor
from tests.support.gguf_bytes import LLAMA_KEYS, Gguf, key_text, key_u32, tensor
from tests.support.projectors import PROJECTORS

ADAPTER_KEYS = [
    key_text("general.architecture", "llama"),
    key_text("general.type", "adapter"),
    key_text("adapter.type", "lora"),
]
PAIR = [
    tensor("blk.0.attn_q.weight.lora_a", (64, 8)),
    tensor("blk.0.attn_q.weight.lora_b", (8, 64), offset=64 * 8 * 4),
]
PROJECTOR_KEYS = [key_text("general.architecture", "clip"), key_u32("clip.vision.embedding_length", 64)]
VECTOR_KEYS = [key_text("general.architecture", "controlvector")]
FILES: dict[str, Gguf] = {
    "projector": Gguf(keys=PROJECTOR_KEYS),
    "adapter": Gguf(keys=ADAPTER_KEYS, tensors=PAIR, data_bytes=64 * 8 * 8),
    "control vector": Gguf(keys=VECTOR_KEYS),
    "model": Gguf(keys=LLAMA_KEYS),
}
KINDS: tuple[Kind, ...] = ("projector", "adapter", "control vector")


@pytest.mark.parametrize("wanted", KINDS)
@pytest.mark.parametrize("there", FILES)
def test_a_file_is_taken_for_what_it_is(tmp_path: Path, there: str, wanted: Kind) -> None:
    path = FILES[there].write(tmp_path / "file.gguf")
    if there == wanted:
        found = read_beside(path, wanted)
        assert (found.kind, found.path) == (wanted, path)
        assert found.tensor_bytes == sum(t.size_bytes for t in found.tensors) > 0
    else:
        with pytest.raises(BadModelError) as caught:
            read_beside(path, wanted)
        assert "it is " in caught.value.why and ", not a" in caught.value.why
        assert caught.value.fix


def test_adapters_of_other_types_and_files_without_tensors(tmp_path: Path) -> None:
    other = Gguf(keys=[*ADAPTER_KEYS[:2], key_text("adapter.type", "prompt")], tensors=PAIR, data_bytes=64 * 8 * 8)
    with pytest.raises(BadModelError, match="cannot use") as caught:
        read_beside(other.write(tmp_path / "a.gguf"), "adapter")
    assert "another type than lora" in caught.value.why
    with pytest.raises(BadModelError) as caught:
        read_beside(Gguf(keys=VECTOR_KEYS, tensors=[], data_bytes=0).write(tmp_path / "c.gguf"), "control vector")
    assert "no tensors" in caught.value.why


def test_a_real_projectors_header(tmp_path: Path) -> None:
    shape = PROJECTORS["qwen3vl"]
    found = read_beside(str(shape.write(tmp_path / "mm.gguf")), "projector")
    assert found.text("clip.projector_type") == "qwen3vl_merger"
    assert found.count("clip.vision.block_count") == 27
    assert found.tensor_bytes == sum(t.size_bytes for t in shape.tensors())


def test_an_adapter_belongs_to_a_model(tmp_path: Path) -> None:
    adapter = read_beside(FILES["adapter"].write(tmp_path / "a.gguf"), "adapter")
    require_base(adapter, "llama", frozenset({"blk.0.attn_q.weight"}))
    for architecture, names, words in (
        ("qwen3", {"blk.0.attn_q.weight"}, 'of the architecture "llama", not "qwen3"'),
        ("llama", {"blk.1.attn_q.weight"}, "it adapts 'blk.0.attn_q.weight'"),
    ):
        with pytest.raises(BadModelError) as caught:
            require_base(adapter, architecture, frozenset(names))
        assert words in caught.value.why
    stray = SideFile("adapter", "/a", 1, "f", "llama", FILES_STRAY, {})
    with pytest.raises(BadModelError) as caught:
        require_base(stray, "llama", frozenset({"blk.0.attn_q.weight"}))
    assert "no part of an adapter" in caught.value.why


FILES_STRAY = (Tensor("blk.0.attn_q.weight", (8, 8), 0, 256),)


@settings(max_examples=300, deadline=None)
@given(
    there=st.sampled_from(sorted(FILES)),
    wanted=st.sampled_from(KINDS),
    place=st.floats(0, 1, exclude_max=True),
    byte=st.integers(0, 255),
    cut=st.booleans(),
)
def test_damaged_files_give_typed_errors(
    tmp_path_factory: pytest.TempPathFactory, there: str, wanted: Kind, place: float, byte: int, cut: bool
) -> None:
    raw = bytearray(FILES[there].to_bytes())
    at = int(place * len(raw))
    if cut:
        del raw[at:]
    else:
        raw[at] = byte
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(raw)
    try:
        found = read_beside(str(path), wanted)
    except LlamadError:
        return
    assert found.kind == wanted and found.tensors
