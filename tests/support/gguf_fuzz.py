"""Damaged headers by the thousand, read in a process with a limit on its memory and on the time of each read.

    python3 -m tests.support.gguf_fuzz COUNT SEED FOLDER

Each case is one of the base models with one to four mutations: flipped bits, cut ends, lengths, counts, types and
dimensions blown up, arrays inside arrays, keys twice, whole ranges moved. Half of the files are cut to the length that
the undamaged header asks for, half have a hole of a TiB behind it, so that large tensors are not refused for that alone.
The same seed gives the same cases. What was found is printed as one JSON object.
"""

from __future__ import annotations

import json
import random
import resource
import signal
import struct
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from llamad.errors import LlamadError
from llamad.gguf.facts import ModelFacts
from llamad.gguf.read import model_facts
from llamad.gguf.shards import read_model
from tests.support.gguf_writer import (
    GgmlType,
    Metadata,
    Tensor,
    Value,
    boolean,
    f32,
    i32s,
    string,
    strings,
    u32,
    write_gguf,
    write_shards,
)

READ_LIMIT_S = 1.0
MEMORY_LIMIT_BYTES = 256 << 20
HOLE_BYTES = 1 << 40
BASES = ("dense", "merges", "moe", "mla", "ssm", "window", "shards")
_NUMBERS = (0, 1, 2, 3, 7, 255, 512, 513, 1 << 16, 10**9, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)
_VALUE_TYPES = tuple(range(14))
_FIELD = {1: "<B", 2: "<H", 4: "<I", 8: "<Q"}
_SCALAR_BYTES = (1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8)


def keys(arch: str, **more: Value) -> Metadata:
    common = {
        "general.architecture": string(arch),
        "general.name": string("fuzz"),
        "general.file_type": u32(15),
        "general.alignment": u32(32),
    }
    own = {
        "block_count": u32(3),
        "context_length": u32(32768),
        "embedding_length": u32(256),
        "feed_forward_length": u32(512),
        "attention.head_count": u32(4),
        "attention.head_count_kv": u32(2),
        "vocab_size": u32(320),
        "rope.freq_base": f32(10000.0),
        **{name.replace("__", "."): value for name, value in more.items()},
    }
    return {**common, **{f"{arch}.{name}": value for name, value in own.items()}}


def block(layer: int, *more: tuple[str, tuple[int, ...]]) -> list[Tensor]:
    plain = (("attn_q", (256, 256)), ("attn_k", (256, 128)), ("attn_output", (256, 256)), ("ffn_down", (512, 256)))
    return [Tensor(f"blk.{layer}.{name}.weight", dims, GgmlType.Q4_K) for name, dims in (*plain, *more)]


def model(*more: tuple[str, tuple[int, ...]]) -> list[Tensor]:
    ends = [Tensor("token_embd.weight", (256, 320), GgmlType.Q6_K), Tensor("output_norm.weight", (256,), GgmlType.F32)]
    return [*ends, *(tensor for layer in range(3) for tensor in block(layer, *more))]


def bases(folder: Path) -> dict[str, list[Path]]:
    """The undamaged models, hollow, each with all its files."""
    words = [f"w{n}" for n in range(4200)]
    tokenizer = {
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.tokens": strings(words),
        "tokenizer.ggml.token_type": i32s([1] * len(words)),
        "tokenizer.ggml.merges": strings([f"{word} {word}" for word in words]),
        "tokenizer.chat_template": string("{{ x }}" * 1000),
        "tokenizer.ggml.add_bos_token": boolean(False),
    }
    experts = [(f"ffn_{part}_exps", (256, 512, 8)) for part in ("gate", "up", "down")]
    moe = keys("qwen3moe", expert_count=u32(8), expert_used_count=u32(2), expert_feed_forward_length=u32(512))
    mla = keys(
        "deepseek2", expert_count=u32(8), expert_used_count=u32(2), leading_dense_block_count=u32(1),
        attention__kv_lora_rank=u32(64), attention__q_lora_rank=u32(64), attention__key_length=u32(96),
        attention__value_length=u32(64), attention__key_length_mla=u32(64), attention__value_length_mla=u32(64),
        rope__dimension_count=u32(32),
    )  # fmt: skip
    ssm = keys(
        "qwen3next", attention__head_count_kv=i32s([0, 0, 2]), ssm__conv_kernel=u32(4), ssm__state_size=u32(64),
        ssm__group_count=u32(4), ssm__time_step_rank=u32(8), ssm__inner_size=u32(512), full_attention_interval=u32(3),
    )  # fmt: skip
    window = keys("gemma3", attention__sliding_window=u32(512), attention__key_length=u32(64),
                  attention__value_length=u32(64), nextn_predict_layers=u32(1))  # fmt: skip
    single: dict[str, tuple[Metadata, list[Tensor]]] = {
        "dense": (keys("llama"), model()),
        "merges": ({**keys("llama"), **tokenizer}, model()),
        "moe": (moe, model(*experts)),
        "mla": (mla, model(*experts, ("attn_kv_a_mqa", (256, 96)))),
        "ssm": (ssm, model(("ssm_in", (256, 512)))),
        "window": (window, model()),
    }
    made = {}
    for name, (metadata, tensors) in single.items():
        path = folder / f"{name}.gguf"
        write_gguf(path, metadata, tensors, None)
        made[name] = [path]
    made["shards"] = write_shards(folder / "shards.gguf", moe, model(*experts), None, count=3)
    return made


def fields(content: bytes) -> list[tuple[str, int, int]]:
    """What a mutation may aim at: the kind, offset and width of each number of an undamaged header."""
    found = [("version", 4, 4), ("count", 8, 8), ("count", 16, 8)]
    n_tensors, n_keys = struct.unpack_from("<QQ", content, 8)
    at = 24

    def text() -> None:
        nonlocal at
        found.append(("length", at, 8))
        at += 8 + struct.unpack_from("<Q", content, at)[0]

    for _ in range(n_keys):
        text()
        kind = struct.unpack_from("<I", content, at)[0]
        found.append(("type", at, 4))
        at += 4
        if kind == 8:
            text()
        elif kind == 9:
            entry, count = struct.unpack_from("<IQ", content, at)
            found += [("type", at, 4), ("count", at + 4, 8)]
            at += 12
            for index in range(count):
                if entry == 8:
                    length = struct.unpack_from("<Q", content, at)[0]
                    found += [("length", at, 8)] if index < 4 else []
                    at += 8 + length
                else:
                    found += [("value", at, _SCALAR_BYTES[entry])] if index < 4 else []
                    at += _SCALAR_BYTES[entry]
        else:
            found.append(("value", at, _SCALAR_BYTES[kind]))
            at += _SCALAR_BYTES[kind]
    for _ in range(n_tensors):
        text()
        n_dims = struct.unpack_from("<I", content, at)[0]
        found.append(("dims", at, 4))
        found += [("dim", at + 4 + 8 * index, 8) for index in range(n_dims)]
        found += [("tensor type", at + 4 + 8 * n_dims, 4), ("offset", at + 8 + 8 * n_dims, 8)]
        at += 16 + 8 * n_dims
    found.append(("end", at, 0))
    return found


def mutated(
    draw: random.Random, content: bytes, places: list[tuple[str, int, int]], *, values_only: bool = False
) -> bytes:
    """`content` with one to four damages, to the values of keys alone if so wanted."""
    damaged = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 2, 3, 4))):
        damage = _aim("value") if values_only else draw.choice(_DAMAGES)
        damage(draw, damaged, places)
    return bytes(damaged)


def _flip(draw: random.Random, damaged: bytearray, _places: object) -> None:
    for _ in range(draw.randint(1, 8) if damaged else 0):
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)


def _cut(draw: random.Random, damaged: bytearray, _places: object) -> None:
    del damaged[draw.randrange(len(damaged) + 1) :]


def _set(draw: random.Random, damaged: bytearray, places: list[tuple[str, int, int]], *kinds: str) -> None:
    _, at, width = draw.choice([place for place in places if place[0] in kinds])
    if at + width > len(damaged):
        return
    layout = _FIELD[width]
    old = struct.unpack_from(layout, damaged, at)[0]
    if "type" in kinds:
        number = draw.choice(_VALUE_TYPES)
    else:
        number = draw.choice((*_NUMBERS, old + 1, old - 1, old * 2, old // 2, draw.getrandbits(8 * width)))
    struct.pack_into(layout, damaged, at, number & ((1 << 8 * width) - 1))


def _aim(*kinds: str) -> Callable[[random.Random, bytearray, list[tuple[str, int, int]]], None]:
    return lambda draw, damaged, places: _set(draw, damaged, places, *kinds)


def _nest(draw: random.Random, damaged: bytearray, places: list[tuple[str, int, int]]) -> None:
    """A value becomes an array, or the entries of an array arrays."""
    _, at, width = draw.choice([place for place in places if place[0] == "type"])
    if at + width <= len(damaged):
        struct.pack_into("<I", damaged, at, 9)


def _twice(draw: random.Random, damaged: bytearray, places: list[tuple[str, int, int]]) -> None:
    """A range from one name to another once more; the counts stay or follow."""
    names = sorted(draw.sample([at for kind, at, _ in places if kind == "length"], 2))
    part = damaged[names[0] : names[1]]
    damaged[names[0] : names[0]] = part
    if draw.random() < 0.5 and len(damaged) >= 24:
        struct.pack_into("<Q", damaged, 16, min(2**64 - 1, struct.unpack_from("<Q", damaged, 16)[0] + 1))


def _move(draw: random.Random, damaged: bytearray, _places: object) -> None:
    start, length = draw.randrange(len(damaged) + 1), draw.choice((1, 4, 8, 64, 512))
    part = damaged[start : start + length]
    del damaged[start : start + length]
    at = draw.randrange(len(damaged) + 1)
    damaged[at:at] = part * draw.choice((0, 1, 2))


_DAMAGES = (
    _flip, _cut, _nest, _twice, _move, _aim("length"), _aim("count"), _aim("type"), _aim("value"), _aim("value"),
    _aim("value"), _aim("dim", "dims"), _aim("tensor type"), _aim("offset"), _aim("version"),
)  # fmt: skip


def damaged_models(folder: Path, seed: int, *, values_only: bool = False) -> Iterator[tuple[str, Path]]:
    """Without end: the name of a base and the file to open, damaged anew each time."""
    draw = random.Random(seed)
    whole = {}
    for name, paths in bases(folder).items():
        for path in paths:
            content = path.read_bytes()
            places = fields(content)
            whole[path] = (name, paths[0], content[: places[-1][1]], places[:-1], path.stat().st_size, content)
    files = sorted(whole)
    while True:
        path = draw.choice(files)
        name, first, header, places, size_bytes, content = whole[path]
        with path.open("r+b") as file:
            file.truncate(0)
            file.write(mutated(draw, header, places, values_only=values_only))
            file.truncate(size_bytes if draw.random() < 0.5 else HOLE_BYTES)
        yield name, first
        if first != path or name == "shards":
            path.write_bytes(content)


class TooSlow(BaseException):
    """A read took longer than it may; no LlamadError, so that nothing takes it for one."""


def _too_slow(_number: int, _frame: FrameType | None) -> None:
    raise TooSlow


def read_all(
    folder: Path,
    count: int,
    seed: int,
    then: Callable[[ModelFacts], object] | None = None,
    *,
    values_only: bool = False,
    read: Callable[[str], object] | None = None,
) -> dict[str, object]:
    """Read so many damaged models, with `read` or for their facts; `then` is called with the facts."""
    signal.signal(signal.SIGALRM, _too_slow)
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    slowest_s = 0.0
    for number, (name, path) in enumerate(damaged_models(folder, seed, values_only=values_only)):
        if number == count or len(failures) > 5:
            break
        began_s = time.perf_counter()
        try:
            signal.setitimer(signal.ITIMER_REAL, READ_LIMIT_S)
            if read is not None:
                read(str(path))
            else:
                facts = model_facts(read_model(str(path)))
                if then is not None:
                    then(facts)
            signal.setitimer(signal.ITIMER_REAL, 0)
            outcomes[f"{name}: read"] += 1
        except LlamadError as error:
            signal.setitimer(signal.ITIMER_REAL, 0)
            outcomes[f"{name}: {type(error).__name__}"] += 1
            if "\n" in str(error) or not str(error).isprintable() or len(str(error)) > 1000:
                failures.append(f"case {number} ({name}): its error is no line for a terminal: {error!r}")
        except BaseException:
            signal.setitimer(signal.ITIMER_REAL, 0)
            failures.append(f"case {number} ({name}): {traceback.format_exc(limit=-3)}")
        slowest_s = max(slowest_s, time.perf_counter() - began_s)
    # Not getrusage: its peak is that of the process which started this one.
    status = Path("/proc/self/status").read_text()
    peak_bytes = int(status.partition("VmHWM:")[2].split()[0]) << 10
    return {"outcomes": outcomes, "failures": failures, "slowest_s": slowest_s, "peak_bytes": peak_bytes}


def main() -> None:
    count, seed, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    print(json.dumps(read_all(folder, count, seed)))


if __name__ == "__main__":
    main()
