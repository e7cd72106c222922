"""The generated models are what they claim to be: read back here by a parser of the test's own."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pytest

from tests.support import models
from tests.support.gguf_writer import GgmlType, Tensor, shard_paths, write_gguf
from tests.support.models import LLAMA31_8B, LLAMA32_3B, PHI4_14B, QWEN3_8B, QWEN25_32B, SHAPES, HollowShape

_SCALARS = {2: "<H", 4: "<I", 5: "<i", 6: "<f", 7: "<?"}


class _Read(NamedTuple):
    metadata: dict[str, Any]
    tensors: dict[str, tuple[tuple[int, ...], int, int]]  # dims, type, offset
    data_start: int


class _Reader:
    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self.raw = file.read(64 << 20)
        self.at = 0

    def take(self, layout: str) -> Any:
        (value,) = struct.unpack_from(layout, self.raw, self.at)
        self.at += struct.calcsize(layout)
        return value

    def text(self) -> str:
        size = self.take("<Q")
        self.at += size
        return self.raw[self.at - size : self.at].decode()

    def value(self, kind: int) -> Any:
        if kind == 8:
            return self.text()
        if kind == 9:
            inner = self.take("<I")
            return [self.value(inner) for _ in range(self.take("<Q"))]
        return self.take(_SCALARS[kind])

    def tensor(self) -> tuple[str, tuple[tuple[int, ...], int, int]]:
        name = self.text()
        dims = tuple(self.take("<Q") for _ in range(self.take("<I")))
        return name, (dims, self.take("<I"), self.take("<Q"))

    def all(self) -> _Read:
        assert self.raw[:4] == b"GGUF"
        self.at = 4
        assert self.take("<I") == 3
        n_tensors, n_keys = self.take("<Q"), self.take("<Q")
        metadata = {self.text(): self.value(self.take("<I")) for _ in range(n_keys)}
        tensors = dict(self.tensor() for _ in range(n_tensors))
        assert len(metadata) == n_keys
        assert len(tensors) == n_tensors
        return _Read(metadata, tensors, -(-self.at // 32) * 32)


def _read(path: Path) -> _Read:
    return _Reader(path).all()


def test_tiny_holds_every_tensor_of_a_llama_with_finite_weights(tmp_path: Path) -> None:
    path = models.build_tiny(tmp_path / "tiny.gguf", layers=2, embd=64, heads=4, kv_heads=2)
    read = _read(path)
    assert read.metadata["llama.block_count"] == 2
    assert read.metadata["llama.attention.head_count_kv"] == 2
    assert len(read.tensors) == 3 + 2 * 9
    assert read.tensors["blk.1.attn_v.weight"][:2] == ((64, 32), GgmlType.F16)
    raw = path.read_bytes()
    last_byte = 0
    for dims, kind, offset in read.tensors.values():
        count = dims[0] * (dims[1] if len(dims) > 1 else 1)
        layout = f"<{count}{'e' if kind == GgmlType.F16 else 'f'}"
        values = struct.unpack_from(layout, raw, read.data_start + offset)
        assert all(abs(value) <= 40.0 for value in values)
        assert any(value != 0.0 for value in values)
        last_byte = max(last_byte, read.data_start + offset + struct.calcsize(layout))
    assert -(-last_byte // 32) * 32 == len(raw)


def test_tiny_vocabulary_has_one_token_a_byte_and_only_printable_ones_can_be_drawn(tmp_path: Path) -> None:
    read = _read(path := models.build_tiny(tmp_path / "tiny.gguf", embd=64))
    tokens = read.metadata["tokenizer.ggml.tokens"]
    assert len(set(tokens)) == len(tokens) == models.TINY_VOCAB == 286
    assert tokens[read.metadata["tokenizer.ggml.eos_token_id"]] == "<|im_end|>"
    dims, _, offset = read.tensors["output.weight"]
    raw = path.read_bytes()
    biases = [
        struct.unpack_from("<e", raw, read.data_start + offset + token * dims[0] * 2)[0]
        for token in range(dims[1])
    ]
    drawn = {token for token, bias in zip(tokens, biases, strict=True) if bias == 0.0}
    assert drawn == {chr(code) for code in range(0x21, 0x7F)} | {"\u0120"}  # GPT-2's sign for the space


def test_tiny_is_the_same_for_the_same_seed_only(tmp_path: Path) -> None:
    one, same, other = (
        models.build_tiny(tmp_path / f"{name}.gguf", embd=64, seed=seed).read_bytes()
        for name, seed in (("one", 7), ("same", 7), ("other", 8))
    )
    assert one == same
    assert one != other


def test_tiny_takes_its_trained_length_and_template(tmp_path: Path) -> None:
    bare = _read(
        models.build_tiny(tmp_path / "bare.gguf", embd=64, ctx_train_tokens=512, chat_template=None)
    )
    assert bare.metadata["llama.context_length"] == 512
    assert "tokenizer.chat_template" not in bare.metadata


# Bytes of the published Q4_K_M files, in 10^9, as their download pages give them.
@pytest.mark.parametrize(
    ("shape", "published_gb"),
    [(PHI4_14B, 9.05), (LLAMA31_8B, 4.92), (LLAMA32_3B, 2.02), (QWEN25_32B, 19.85), (QWEN3_8B, 5.03)],
    ids=lambda value: value.title if isinstance(value, HollowShape) else None,
)
def test_hollow_is_as_long_as_the_real_file_and_takes_no_room(
    tmp_path: Path, shape: HollowShape, published_gb: float
) -> None:
    status = models.build_hollow(tmp_path / "hollow.gguf", shape).stat()
    assert status.st_size / 1e9 == pytest.approx(published_gb, abs=0.012)
    assert status.st_blocks * 512 < 1 << 20


@pytest.mark.parametrize("key", SHAPES)
def test_hollow_tensors_follow_each_other_to_the_end_of_the_file(tmp_path: Path, key: str) -> None:
    shape = SHAPES[key]
    path = models.build_hollow(tmp_path / "hollow.gguf", shape)
    read = _read(path)
    assert read.metadata[f"{shape.arch}.vocab_size"] == shape.vocab
    assert read.metadata["tokenizer.ggml.model"] == "none"
    offset = 0
    for tensor in shape.tensors():
        assert read.tensors[tensor.name] == (tensor.dims, tensor.type, offset)
        offset += -(-tensor.size_bytes // 32) * 32
    assert read.data_start + offset == path.stat().st_size


def test_hollow_writes_a_real_sized_vocabulary_on_demand(tmp_path: Path) -> None:
    path = models.build_hollow(tmp_path / "hollow.gguf", QWEN3_8B, vocab=True, merges=200_000)
    read = _read(path)
    tokens, merges = read.metadata["tokenizer.ggml.tokens"], read.metadata["tokenizer.ggml.merges"]
    assert len(tokens) == len(set(tokens)) == QWEN3_8B.vocab
    assert len(read.metadata["tokenizer.ggml.token_type"]) == QWEN3_8B.vocab
    assert len(merges) == 200_000
    assert read.data_start > 4_000_000
    left, right = merges[1000].split(" ")
    assert left + right in tokens


def test_shards_share_out_the_tensors_and_only_the_first_has_the_metadata(tmp_path: Path) -> None:
    first = models.build_hollow(tmp_path / "big.gguf", LLAMA32_3B, shards=3)
    paths = shard_paths(tmp_path / "big.gguf", 3)
    assert first == paths[0]
    assert first.name == "big-00001-of-00003.gguf"
    parts = [_read(path) for path in paths]
    names = [name for part in parts for name in part.tensors]
    assert names == [tensor.name for tensor in LLAMA32_3B.tensors()]
    assert [part.metadata["split.no"] for part in parts] == [0, 1, 2]
    assert {part.metadata["split.tensors.count"] for part in parts} == {len(names)}
    assert "general.architecture" in parts[0].metadata
    assert "general.architecture" not in parts[1].metadata


def test_a_row_that_is_no_whole_number_of_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="Q4_K block of 256"):
        _ = Tensor("odd", (300, 2), GgmlType.Q4_K).size_bytes


def _write_two_bytes(file: BinaryIO, _: Tensor) -> None:
    file.write(b"..")


def test_a_data_writer_that_writes_too_little_is_found_out(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="short: 2 bytes were written, 8 belong there"):
        write_gguf(tmp_path / "short.gguf", {}, [Tensor("short", (2,), GgmlType.F32)], _write_two_bytes)


def test_command_line_prints_the_file_to_open(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert models.main(["hollow", "phi4", str(tmp_path / "phi4.gguf")]) == 0
    assert models.main(["tiny", str(tmp_path / "tiny.gguf"), "--embd", "64", "--shards", "2"]) == 0
    printed = capsys.readouterr().out.split()
    assert printed == [str(tmp_path / "phi4.gguf"), str(tmp_path / "tiny-00001-of-00002.gguf")]
    assert all(Path(line).is_file() for line in printed)
