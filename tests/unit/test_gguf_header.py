"""The header reader: what it keeps, and what it refuses, in which words."""

from __future__ import annotations

import os
import socket
import struct
import time
import tracemalloc
from pathlib import Path

import pytest

from llamad.errors import AccessError, BadModelError, ExitCode, ModelMissingError
from llamad.gguf import window
from llamad.gguf.ggml_types import GGML_TYPES, REMOVED_TYPES, nbytes, row_size, type_id, type_name
from llamad.gguf.header import Counted, read_header
from llamad.gguf.shards import read_model
from tests.support.gguf_bytes import (
    EMBEDDING,
    LLAMA_KEYS,
    Gguf,
    key,
    key_array,
    key_i32s,
    key_text,
    key_u16,
    key_u32,
    tensor,
    text,
)
from tests.support.models import QWEN3_8B, build_hollow, build_tiny

U64_MAX = 2**64 - 1


def refusal(gguf: Gguf, tmp_path: Path) -> BadModelError:
    path = gguf.write(tmp_path / "model.gguf")
    with pytest.raises(BadModelError) as caught:
        read_header(path)
    assert caught.value.where is not None
    assert caught.value.where.path == path
    assert caught.value.exit_code == ExitCode.BAD_MODEL
    assert "\n" not in str(caught.value)
    return caught.value


# -- types -------------------------------------------------------------------------------------------------


def test_row_sizes_are_ggml_s() -> None:
    # bits per weight as llama.cpp's own documentation gives them
    wanted = {"F32": 32, "F16": 16, "Q8_0": 8.5, "Q4_K": 4.5, "Q6_K": 6.5625, "IQ1_S": 1.5625, "MXFP4": 4.25}
    for name, bits in wanted.items():
        assert row_size(type_id(name), 4096) * 8 / 4096 == bits


def test_nbytes_multiplies_rows() -> None:
    assert nbytes(type_id("q4_K"), (256, 3, 2)) == 144 * 6
    with pytest.raises(ValueError, match="block of 256"):
        row_size(12, 255)
    with pytest.raises(KeyError):
        row_size(4, 32)


def test_no_removed_type_has_a_size() -> None:
    assert not REMOVED_TYPES & GGML_TYPES.keys()
    assert type_name(12) == "Q4_K"
    assert type_name(99) == "type 99"


# -- what is read ------------------------------------------------------------------------------------------


def test_tiny_model_is_read_whole(tmp_path: Path) -> None:
    path = build_tiny(tmp_path / "tiny.gguf", layers=3)
    header = read_header(str(path))
    assert header.version == 3
    assert header.text("general.architecture") == "llama"
    assert header.number("llama.block_count") == 3
    assert header.number("general.architecture") is None
    assert header.values["tokenizer.ggml.tokens"] == Counted("strings", 286)
    assert header.values["tokenizer.ggml.add_bos_token"] is False
    assert len(header.tensors) == 3 * 9 + 3
    assert header.tensors[0].name == "token_embd.weight"
    assert header.tensors[0].size_bytes == 256 * 286 * 2
    assert header.file_bytes == path.stat().st_size == header.needs_bytes
    assert header.warnings == ()


def test_version_2_is_read(tmp_path: Path) -> None:
    assert read_header(Gguf(version=2).write(tmp_path / "m.gguf")).version == 2


def test_every_kind_of_value(tmp_path: Path) -> None:
    kinds = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
    keys = [key(f"k{kind}", kind, struct.pack("<" + letter, 7)) for kind, letter in kinds.items()]
    keys += [
        key(f"a{kind}", 9, struct.pack(f"<IQ3{letter}", kind, 3, 1, 2, 3)) for kind, letter in kinds.items()
    ]
    keys += [key("yes", 7, b"\1"), key_array("flags", 7, 3, b"\1\0\1"), key_text("empty", "")]
    values = read_header(Gguf(keys=keys).write(tmp_path / "m.gguf")).values
    assert all(values[f"k{kind}"] == 7 for kind in kinds)
    assert all(values[f"a{kind}"] == (1, 2, 3) for kind in kinds)
    assert values["yes"] is True
    assert values["flags"] == (True, False, True)
    assert values["empty"] == ""


def test_long_values_are_counted_not_kept(tmp_path: Path) -> None:
    keys = [
        key_text("template", "x" * 5000),
        key_i32s("short", *range(4096)),
        key_i32s("long", *range(4097)),
        key_array("strings", 8, 2, text("a") + text("b" * 300)),
    ]
    values = read_header(Gguf(keys=keys).write(tmp_path / "m.gguf")).values
    assert values["template"] == Counted("text", 5000)
    assert values["short"] == tuple(range(4096))
    assert values["long"] == Counted("numbers", 4097)
    assert values["strings"] == Counted("strings", 2)


def test_text_with_control_characters_cannot_reach_a_terminal(tmp_path: Path) -> None:
    header = read_header(Gguf(keys=[key_text("general.name", "a\x1b[2Jb\u202e")]).write(tmp_path / "m.gguf"))
    assert header.text("general.name") == "a\\x1b[2Jb\\u202e"


def test_a_scalar_tensor_has_one_element(tmp_path: Path) -> None:
    header = read_header(Gguf(tensors=[tensor("s", ())], data_bytes=4).write(tmp_path / "m.gguf"))
    assert header.tensors[0].dims == (1,)
    assert header.tensors[0].size_bytes == 4


def test_own_alignment_is_used(tmp_path: Path) -> None:
    gguf = Gguf(keys=[*LLAMA_KEYS, key_u32("general.alignment", 4096)], alignment=4096)
    header = read_header(gguf.write(tmp_path / "m.gguf"))
    assert header.data_start == 4096


def test_a_gap_between_tensors_is_a_warning(tmp_path: Path) -> None:
    tensors = [tensor("a", (8,)), tensor("b", (8,), offset=64)]
    header = read_header(Gguf(tensors=tensors, data_bytes=96).write(tmp_path / "m.gguf"))
    assert "the tensor b does not follow" in header.warnings[0]


def test_the_digest_tells_files_apart(tmp_path: Path) -> None:
    one = read_header(Gguf().write(tmp_path / "1.gguf"))
    same = read_header(Gguf().write(tmp_path / "2.gguf"))
    renamed = read_header(Gguf(tensors=[tensor("token_embd.bias!!", (64, 8))]).write(tmp_path / "3.gguf"))
    changed = Path(Gguf().write(tmp_path / "4.gguf"))
    changed.write_bytes(changed.read_bytes()[:-1] + b"\2")
    assert one.digest == same.digest
    assert len({one.digest, renamed.digest, read_header(str(changed)).digest}) == 3


@pytest.mark.parametrize(
    "lengths", [[0] * 5000, [63] * 5000, [64] * 5000, [3, 200] * 2500, [5] * 5000 + [70_000]]
)
def test_string_arrays_of_every_length_are_hopped_exactly(tmp_path: Path, lengths: list[int]) -> None:
    # NUL bytes and texts that look like lengths themselves must not lead the hop astray.
    body = b"".join(
        struct.pack("<Q", n) + (b"\x05" + b"\0" * 7) * (n // 8) + b"\0" * (n % 8) for n in lengths
    )
    keys = [key_array("tokens", 8, len(lengths), body), key_u32("after", 42)]
    values = read_header(Gguf(keys=keys).write(tmp_path / "m.gguf")).values
    assert values == {"tokens": Counted("strings", len(lengths)), "after": 42}


# -- what is refused ---------------------------------------------------------------------------------------

FOREIGN = {
    "empty": (b"", "the file is empty"),
    "html": (b"<!DOCTYPE html>\n<html>", "web page"),
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 8000000000\n",
        "Git LFS pointer for a file of 8000000000 bytes",
    ),
    "json": (b'{"error":"Repository not found"}', "text"),
    "safetensors": (struct.pack("<Q", 40) + b'{"__metadata__":{}}' + b" " * 60, "safetensors"),
    "zip": (b"PK\x03\x04" + b"\0" * 40, "ZIP archive or a PyTorch checkpoint"),
    "gzip": (b"\x1f\x8b\x08\0", "gzip"),
    "zeros": (b"\0" * 5000, "begins with zeros"),
    "ggjt": (b"tjgg" + b"\0" * 40, "old GGJT format"),
    "elf": (b"\x7fELF\2\1\1", "a program"),
    "text": (b"hello world", 'begins with "hello wo"'),
    "binary": (b"\xde\xad\xbe\xef", "bytes de ad be ef"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_files_are_named_for_what_they_are(tmp_path: Path, name: str) -> None:
    content, words = FOREIGN[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(BadModelError, match=words) as caught:
        read_header(str(path))
    assert caught.value.fix


def test_versions_that_llama_cpp_cannot_load(tmp_path: Path) -> None:
    assert "version 1, only 2 and 3" in refusal(Gguf(version=1), tmp_path).why
    assert "version 4, only 2 and 3" in refusal(Gguf(version=4), tmp_path).why
    assert "version 0, only 2 and 3" in refusal(Gguf(version=0), tmp_path).why
    assert "big-endian" in refusal(Gguf(version=3 << 24), tmp_path).why


HOSTILE = {
    "too many keys": (Gguf(n_keys=65_537), "claims 65537 keys"),
    "negative keys": (Gguf(n_keys=U64_MAX), "claims 18446744073709551615 keys"),
    "keys beyond the file": (Gguf(n_keys=60_000), "ends inside its header"),
    "too many tensors": (Gguf(n_tensors=1_000_001), "claims 1000001 tensors"),
    "tensors beyond the file": (Gguf(n_tensors=999_999), "ends inside its header"),
    "long key": (Gguf(keys=[key_u32("k" * 65_536, 1)]), "a key of 65536 bytes"),
    "key length beyond memory": (
        Gguf(keys=[struct.pack("<Q", U64_MAX) + b"x" * 30]),
        "a key of 1844674407370",
    ),
    "long text": (Gguf(keys=[key("k", 8, struct.pack("<Q", 1 << 40))]), "text of 1099511627776 bytes"),
    "cut text": (Gguf(keys=[key("k", 8, struct.pack("<Q", 1 << 23))]), "ends inside its header"),
    "duplicate key": (Gguf(keys=[key_u32("k", 1), key_u32("k", 1)]), "the key k is there twice"),
    "unknown value type": (Gguf(keys=[key("k", 13, b"\0" * 8)]), "unknown value type 13"),
    "nested array": (Gguf(keys=[key_array("k", 9, 1, b"\0" * 12)]), "array of arrays"),
    "unknown entry type": (Gguf(keys=[key_array("k", 77, 1, b"\0" * 12)]), "unknown type 77"),
    "huge string array": (Gguf(keys=[key_array("k", 8, (1 << 24) + 1, b"")]), "claims 16777217 entries"),
    "huge scalar array": (Gguf(keys=[key_array("k", 0, (1 << 26) + 1, b"")]), "claims 67108865 entries"),
    "array beyond the file": (Gguf(keys=[key_array("k", 4, 1 << 20, b"")]), "ends inside its header"),
    "strings beyond the file": (
        Gguf(keys=[key_array("k", 8, 9000, text("a") * 8990)], tensors=[], data_bytes=0),
        "ends inside its header",
    ),
    "long string in array": (
        Gguf(keys=[key_array("k", 8, 1, struct.pack("<Q", U64_MAX))]),
        "string of more than",
    ),
    "truth value 2": (Gguf(keys=[key("k", 7, b"\2")]), "neither 0 nor 1"),
    "truth value 2 in array": (Gguf(keys=[key_array("k", 7, 2, b"\1\2")]), "neither 0 nor 1"),
    "alignment 3": (Gguf(keys=[key_u32("general.alignment", 3)]), "is 3, no power of two"),
    "alignment 0": (Gguf(keys=[key_u32("general.alignment", 0)]), "is 0, no power of two"),
    "alignment text": (Gguf(keys=[key_text("general.alignment", "32")]), "no number"),
    "long tensor name": (Gguf(tensors=[tensor("t" * 64, (1,))]), "a tensor name of 64 bytes"),
    "duplicate tensor": (Gguf(tensors=[EMBEDDING, EMBEDDING]), "token_embd.weight is there twice"),
    "five dimensions": (Gguf(tensors=[tensor("t", (1, 1, 1, 1, 1))]), "5 dimensions"),
    "zero dimension": (Gguf(tensors=[tensor("t", (0, 4))]), "impossible shape [0, 4]"),
    "huge dimension": (Gguf(tensors=[tensor("t", (1 << 41,))]), "impossible shape"),
    "product beyond 2^63": (Gguf(tensors=[tensor("t", (1 << 40, 1 << 40))]), "impossible shape"),
    "removed type": (Gguf(tensors=[tensor("t", (32,), kind=4)]), "no longer supports"),
    "ik_llama type": (Gguf(tensors=[tensor("t", (32,), kind=137)]), "only ik_llama.cpp"),
    "type of the future": (Gguf(tensors=[tensor("t", (32,), kind=60)]), "llamad does not know"),
    "negative type": (Gguf(tensors=[tensor("t", (32,), kind=-1)]), "type 4294967295"),
    "half a block": (Gguf(tensors=[tensor("t", (33,), kind=8)]), "no whole Q8_0 blocks"),
    "misaligned offset": (Gguf(tensors=[tensor("t", (8,), offset=4)]), "not aligned"),
    "offset outside": (Gguf(tensors=[tensor("t", (8,), offset=1 << 62)]), "t lies outside the file"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused_in_words(tmp_path: Path, name: str) -> None:
    gguf, words = HOSTILE[name]
    assert words in refusal(gguf, tmp_path).why


def test_a_cut_file_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    path = build_hollow(tmp_path / "m.gguf", QWEN3_8B)
    os.truncate(path, 3 << 30)
    with pytest.raises(BadModelError) as caught:
        read_header(str(path))
    assert caught.value.why == "the file is 3.0 GiB, its header says 4.7 GiB: still downloading, or cut off"
    assert "download" in caught.value.fix


def test_one_missing_byte_is_seen(tmp_path: Path) -> None:
    content = Gguf().to_bytes()
    (tmp_path / "m.gguf").write_bytes(content[:-1])
    with pytest.raises(BadModelError, match=f"is {len(content) - 1} bytes, its header says {len(content)}:"):
        read_header(str(tmp_path / "m.gguf"))


def test_a_header_of_more_than_256_mib_is_refused_fast(tmp_path: Path) -> None:
    # 16 texts of 16 MiB are each allowed, and together a header that no model has; the file is a hole
    path = tmp_path / "m.gguf"
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 1, 17))
        for number in range(17):
            file.write(key(f"k{number}", 8, struct.pack("<Q", 16 << 20)))
            file.seek(16 << 20, os.SEEK_CUR)
        file.truncate(1 << 30)
    started = time.perf_counter()
    with pytest.raises(BadModelError, match="larger than 256 MiB"):
        read_header(str(path))
    assert time.perf_counter() - started < 1


# -- what is no file ---------------------------------------------------------------------------------------


def test_a_missing_file_may_appear_later(tmp_path: Path) -> None:
    with pytest.raises(ModelMissingError) as caught:
        read_header(str(tmp_path / "none.gguf"))
    assert caught.value.exit_code == ExitCode.NO_MODEL_FILE


def test_folders_pipes_sockets_and_devices_are_refused_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "sock"))
    for path in (str(tmp_path), str(tmp_path / "pipe"), str(tmp_path / "sock"), "/dev/zero"):
        with pytest.raises(BadModelError, match="not a file"):
            read_header(path)
    server.close()


@pytest.mark.parametrize("path", ["/tmp/a\0b", "/" + "x" * 5000])
def test_impossible_names(path: str) -> None:
    with pytest.raises(BadModelError):
        read_header(path)


def test_no_permission(tmp_path: Path) -> None:
    error = window._cannot_open("/srv/m.gguf", PermissionError(13, "Permission denied"))
    assert isinstance(error, AccessError)


def test_an_io_error_is_worth_a_retry(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(ModelMissingError, match="cannot read the model now"):
            window.read_at(folder, "m.gguf", 10, 0)  # EISDIR stands for any error of the disk
    finally:
        os.close(folder)


# -- shards ------------------------------------------------------------------------------------------------


def test_shards_are_read_through_the_first(tmp_path: Path) -> None:
    first = build_tiny(tmp_path / "tiny.gguf", shards=3)
    headers = read_model(str(first))
    assert [Path(header.path).name for header in headers] == [
        f"tiny-0000{n}-of-00003.gguf" for n in (1, 2, 3)
    ]
    assert sum(len(header.tensors) for header in headers) == 4 * 9 + 3


def test_a_model_of_one_file(tmp_path: Path) -> None:
    assert len(read_model(str(build_tiny(tmp_path / "tiny.gguf")))) == 1


def test_another_shard_tells_the_first_ones_name(tmp_path: Path) -> None:
    first = build_tiny(tmp_path / "tiny.gguf", shards=3)
    second = tmp_path / "tiny-00002-of-00003.gguf"
    with pytest.raises(BadModelError, match="shard 2 of 3, not the first") as caught:
        read_model(str(second))
    assert caught.value.fix == f"write {first}"


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    first = build_tiny(tmp_path / "tiny.gguf", shards=3)
    third = tmp_path / "tiny-00003-of-00003.gguf"
    third.unlink()
    with pytest.raises(ModelMissingError, match="shard 3 of 3 of the model is missing") as caught:
        read_model(str(first))
    assert caught.value.where is not None
    assert caught.value.where.path == str(third)


def test_a_renamed_first_shard_says_what_llama_cpp_wants(tmp_path: Path) -> None:
    first = build_tiny(tmp_path / "tiny.gguf", shards=2)
    renamed = first.rename(tmp_path / "model.gguf")
    with pytest.raises(BadModelError, match=r"NAME-00001-of-00002\.gguf"):
        read_model(str(renamed))


def test_shards_of_different_models_are_refused(tmp_path: Path) -> None:
    first = build_tiny(tmp_path / "tiny.gguf", shards=3)
    second, third = tmp_path / "tiny-00002-of-00003.gguf", tmp_path / "tiny-00003-of-00003.gguf"
    third.write_bytes(second.read_bytes())
    with pytest.raises(BadModelError, match="is not shard 3 of 3"):
        read_model(str(first))


def test_tensors_of_all_shards_are_counted(tmp_path: Path) -> None:
    def shard(number: int, name: str, claimed: int) -> None:
        keys = [
            key_u16("split.no", number),
            key_u16("split.count", 2),
            key_u32("split.tensors.count", claimed),
        ]
        gguf = Gguf(keys=[*LLAMA_KEYS, *keys], tensors=[tensor(name, (8,))], data_bytes=32)
        gguf.write(tmp_path / f"m-{number + 1:05d}-of-00002.gguf")

    shard(0, "a", 3)
    shard(1, "b", 3)
    with pytest.raises(BadModelError, match="hold 2 tensors, the first says 3"):
        read_model(str(tmp_path / "m-00001-of-00002.gguf"))
    shard(1, "a", 3)
    with pytest.raises(BadModelError, match="the tensor a is in two shards"):
        read_model(str(tmp_path / "m-00001-of-00002.gguf"))


# -- cost --------------------------------------------------------------------------------------------------


@pytest.mark.alone
def test_a_large_vocabulary_is_read_fast_and_in_little_memory(tmp_path: Path) -> None:
    # The aim is 110 ms for 262k tokens and 515k merges; the factor is for a busy machine.
    tokens = b"".join(text(f"token{number}") for number in range(262_144))
    merges = b"".join(text(f"to ken{number}") for number in range(515_000))
    keys = [
        *LLAMA_KEYS,
        key_array("tokenizer.ggml.tokens", 8, 262_144, tokens),
        key_array("tokenizer.ggml.token_type", 5, 262_144, b"\1\0\0\0" * 262_144),
        key_array("tokenizer.ggml.merges", 8, 515_000, merges),
    ]
    path = Gguf(keys=keys).write(tmp_path / "m.gguf")
    read_header(path)
    elapsed_s = min(_timed(path) for _ in range(5))
    assert elapsed_s < 0.110 * 4
    tracemalloc.start()
    header = read_header(path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert header.values["tokenizer.ggml.merges"] == Counted("strings", 515_000)
    assert peak_bytes < 4 << 20


def _timed(path: str) -> float:
    started = time.perf_counter()
    read_header(path)
    return time.perf_counter() - started
