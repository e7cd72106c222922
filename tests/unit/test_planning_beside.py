"""What is there beside a model: against llama-server's own account (tests/data/planning/card_beside.json)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamad.config.definition import Placement
from llamad.errors import BadModelError
from llamad.gguf.beside import SideFile
from llamad.gguf.facts import ModelFacts, Tensor
from llamad.gguf.read import read_facts
from llamad.hardware.device import Device
from llamad.planning.architectures import shape_of
from llamad.planning.beside import Beside, Main
from llamad.planning.cache import CacheMap
from llamad.planning.choice import Choice
from llamad.planning.confirm import Asked, Refit, confirmed
from llamad.planning.demand import Demand, Need
from llamad.planning.explain import explain
from llamad.planning.extras import Draft, Extras, Vision
from llamad.planning.layers import Layer
from llamad.planning.plan import BuildGates, Parts, Plan
from llamad.planning.refusal import NeverFits
from llamad.planning.solve import plan
from llamad.planning.vision import projector_bytes
from llamad.planning.weights import WeightMap
from llamad.units import GIB, MIB
from tests.support.beside_oracle import MODELS
from tests.support.gguf_writer import Value
from tests.support.models import build_hollow
from tests.support.planning import HOST, card, facts_of
from tests.support.projectors import PROJECTORS, ProjectorShape
from tests.support.shapes import LLAMA32_3B, QWEN3_8B, HollowShape

DATA = Path(__file__).parents[1] / "data" / "planning"
ROWS: list[dict[str, Any]] = json.loads((DATA / "card_beside.json").read_text())
GATES = BuildGates.of_build(11669)
BOUND_MIB = 128
"""How far the bound of blocks for multi-token prediction may be above what they take."""


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ModelFacts]:
    """The facts of a model of the table, read from its hollow file."""
    folder = tmp_path_factory.mktemp("models")

    @cache
    def read(name: str) -> ModelFacts:
        path = build_hollow(folder / f"{name}.gguf", cast("HollowShape", MODELS[name]))
        found = read_facts(str(path))
        path.unlink()
        return found

    return read


def rows(word: str) -> Any:
    found = [row for row in ROWS if row["name"].startswith(word)]
    assert found
    return pytest.mark.parametrize("row", found, ids=lambda row: f"{row['name']}-{row['model']}-{flag(row, '-ub')}")


def flag(row: dict[str, Any], name: str, default: str = "") -> str:
    args: list[str] = row["args"]
    return args[args.index(name) + 1] if name in args else default


def need_of(row: dict[str, Any], facts: Callable[[str], ModelFacts]) -> Need:
    """What the formulas say to a row's flags. The forms are meant here, so no room for doubt is added to them."""
    model = facts(row["model"])
    own = facts(flag(row, "-md").strip("{}")) if "-md" in row["args"] else None
    draft = draft_of(row, own)
    devices = tuple(card(name, 4000) for name in flag(row, "-dev").split(","))
    shape = replace(shape_of(model), proof="proved")
    weights = WeightMap(model, "CUDA", mtp_skipped=not draft.multi_token)
    extras = Extras(draft=draft, guessed_tokens=draft.most_tokens())
    beside = Beside(extras, Main(model, shape), weights, devices, GATES)
    demand = Demand(model, devices, GATES, weights, shape=shape, beside=beside)
    return demand.need(choice_of(row, model, draft, extras))


def draft_of(row: dict[str, Any], own: ModelFacts | None) -> Draft:
    layers, ubatch = flag(row, "-ngld"), flag(row, "--spec-draft-n-ubatch")
    return Draft(
        types=(flag(row, "--spec-type"),),
        facts=own,
        tokens=int(flag(row, "--spec-draft-n-max", "3")),
        cache_type=flag(row, "-ctkd", "f16"),
        ubatch_tokens=int(ubatch) if ubatch else None,
        layers=int(layers) if layers else None,
        devices=(flag(row, "-devd"),) if "-devd" in row["args"] else (),
    )


def choice_of(row: dict[str, Any], model: ModelFacts, draft: Draft, extras: Extras) -> Choice:
    split = tuple(map(int, flag(row, "-ts").split(","))) if "-ts" in row["args"] else ()
    ubatch = int(flag(row, "-ub"))
    return Choice(
        context_tokens=16384,
        slots=4,
        unified=True,
        type_k="f16",
        type_v="f16",
        ubatch_tokens=ubatch,
        batch_tokens=int(flag(row, "-b")),
        flash_attention=True,
        layers=min(int(flag(row, "-ngl")), model.n_layers + 1),
        split=split,
        pipeline=bool(split),
        host_experts=int(flag(row, "--n-cpu-moe", "0")),
        guessed_tokens=extras.guessed_tokens,
        rollback=draft.rollback(model.architecture),
    )


def told_mib(row: dict[str, Any], place: str, *, weights: bool = True) -> int:
    """llama-server's own figure for what guesses ahead, each of its parts rounded down."""
    parts: list[int] = row["tables"][1].get(place, [0, 0, 0])
    return sum(parts if weights else parts[1:])


@rows("draft")
def test_a_draft_model_takes_what_it_says_itself(row: dict[str, Any], facts: Callable[[str], ModelFacts]) -> None:
    need = need_of(row, facts)
    for name, parts in zip(flag(row, "-dev").split(","), need.devices, strict=True):
        off = parts.draft_bytes / MIB - told_mib(row, name)
        over = 20 if row["name"] == "draft on the host" else 8  # copied caches: a bound
        assert -2 <= off < over, name
    assert 0 <= need.host.draft_bytes / MIB - told_mib(row, "Host") < 3


@rows("mtp")
def test_blocks_of_the_models_own_are_bounded(row: dict[str, Any], facts: Callable[[str], ModelFacts]) -> None:
    need = need_of(row, facts)
    for name, parts in zip(flag(row, "-dev").split(","), need.devices, strict=True):
        off = parts.draft_bytes / MIB - told_mib(row, name, weights=False)
        assert -0.1 <= off < BOUND_MIB, name
        assert 0 <= parts.weights_bytes / MIB - row["tables"][0][name][0] < 1
    off = need.host.draft_bytes / MIB - told_mib(row, "Host", weights=False)
    assert -0.1 <= off < 32


@rows("ngram")
def test_rows_of_logits_that_are_checked_at_once(row: dict[str, Any], facts: Callable[[str], ModelFacts]) -> None:
    need = need_of(row, facts)
    assert need.devices[0].compute_bytes / MIB == pytest.approx(row["compute_exact_mib"]["CUDA0"], abs=2)
    assert need.devices[0].draft_bytes == need.host.draft_bytes == 0


def test_states_are_kept_once_more_for_each_guessed_token(facts: Callable[[str], ModelFacts]) -> None:
    """Qwen3.5 27B: 598.50 MiB of states for four slots, and 1.0 GiB of cache (rows `mtp` of the table)."""
    shape = shape_of(facts("qwen3-8b"))
    layers = (Layer(conv_state=30720, scan_state=128 * 6144),) * 48
    cells = CacheMap(replace(shape, layers=layers), 48)
    plain = Choice(16384, 4, True, "f16", "f16", 512, 512, True, 49)
    assert cells.bytes_between(plain, 0, 48) / MIB == pytest.approx(598.5, abs=0.1)
    told = {int(flag(row, "--spec-draft-n-max", "3")): row["tables"][0]["CUDA0"][1]
            for row in ROWS if row["model"] == "qwen35-27b"}  # fmt: skip
    for tokens, context_mib in told.items():
        size = cells.bytes_between(replace(plain, rollback=tokens), 0, 48)
        assert 0 <= size / MIB + 1024 - context_mib < 1


def test_what_rolls_back_and_what_does_not() -> None:
    assert Draft(("draft-mtp",), tokens=5).rollback("qwen35") == 5
    assert Draft(("draft-mtp",), tokens=5).rollback("glm4moe") == 0
    assert Draft(("draft-simple",), tokens=5).rollback("qwen35") == 0
    assert Draft(("ngram-mod", "draft-simple"), tokens=5).most_tokens() == 64
    assert Draft(("ngram-simple",)).most_tokens(7) == 7


# -- projectors ------------------------------------------------------------------------------------------------


def side_file(shape: ProjectorShape, **more: object) -> SideFile:
    tensors = tuple(Tensor(t.name, t.dims, int(t.type), t.size_bytes) for t in shape.tensors())
    values = {key: plain(value) for key, value in shape.metadata().items()} | more
    return SideFile("projector", "/m/mm.gguf", 1, "f" * 8, "clip", tensors, values)


def plain(value: Value) -> object:
    if value.type_id == 8:
        return value.payload[8:].decode()
    if value.type_id == 7:
        return bool(value.payload[0])
    return int.from_bytes(value.payload, "little") if value.type_id == 4 else 0.5


WARM_TOKENS = {"qwen3vl": 46 * 46, "qwen25vl": 46 * 46, "pixtral": 16 * 16}
"""What llama-server reserves for at its load, where the largest picture has more."""


@rows("projector")
def test_a_projector_with_the_picture_that_llama_server_reserves_for(row: dict[str, Any]) -> None:
    name = row["name"].removeprefix("projector ")
    file = side_file(PROJECTORS[name])
    found = projector_bytes(file, "CUDA", image_max_tokens=WARM_TOKENS.get(name))
    device = (found.weights_bytes + found.compute_bytes) / MIB
    over = device - row["vision_mib"]["CUDA0"]
    assert -0.1 <= over < (0.06 * row["vision_mib"]["CUDA0"] if name in WARM_TOKENS else 0.5)
    assert -0.1 <= found.host_bytes / MIB - row["vision_mib"]["CPU"] < 1
    largest = projector_bytes(file, "CUDA")
    assert (largest.total_bytes > found.total_bytes) == (name in WARM_TOKENS)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["gemma3", "qwen3vl_merger", "qwen2.5vl_merger", "pixtral", "internvl", "unheard-of"]),
    name=st.sampled_from(sorted(PROJECTORS)),
    tokens=st.integers(1, 20_000),
    more=st.integers(0, 20_000),
    flash=st.booleans(),
)
def test_a_larger_picture_never_takes_less(kind: str, name: str, tokens: int, more: int, flash: bool) -> None:
    file = side_file(PROJECTORS[name], **{"clip.projector_type": kind})
    small, large = (
        projector_bytes(file, "CUDA", image_max_tokens=count, flash_attention=flash) for count in (tokens, tokens + more)
    )
    assert large.compute_bytes >= small.compute_bytes
    assert large.host_bytes >= small.host_bytes
    assert small.weights_bytes >= file.tensor_bytes
    assert projector_bytes(file, "CUDA", image_max_tokens=tokens, flash_attention=False).total_bytes >= small.total_bytes


@pytest.mark.parametrize("number", [-1, 1 << 40, "x", True, None, (1, 2)])
@pytest.mark.parametrize("key", ["embedding_length", "patch_size", "image_size", "image_max_pixels"])
def test_numbers_that_no_projector_has(key: str, number: object) -> None:
    with pytest.raises(BadModelError) as caught:
        projector_bytes(side_file(PROJECTORS["gemma3"], **{f"clip.vision.{key}": number}), "CUDA")
    assert key in caught.value.why


# -- adapters --------------------------------------------------------------------------------------------------

LLAMA = facts_of(LLAMA32_3B)


def adapter(facts: ModelFacts, rank: int = 16) -> SideFile:
    """One for every matrix of the blocks, as the file that took 92.75 MiB on the stub card."""
    tensors = []
    for base in facts.tensors:
        if base.name.startswith("blk.") and len(base.dims) == 2:
            for part, dims in (("lora_a", (base.dims[0], rank)), ("lora_b", (rank, base.dims[1]))):
                tensors.append(Tensor(f"{base.name}.{part}", dims, 0, 4 * dims[0] * dims[1]))
    return SideFile("adapter", "/m/lora.gguf", 1, "a" * 8, facts.architecture, tuple(tensors), {})


VECTOR = SideFile("control vector", "/m/cv.gguf", 1, "c" * 8, "controlvector", LLAMA.tensors[:1], {})


def with_extras(facts: ModelFacts, extras: Extras, *devices: Device, **placement: Any) -> Plan:
    chosen = Placement(**placement)
    return plan(facts, list(devices), HOST, chosen, frozenset(), GATES, extras=extras)


def test_an_adapter_is_where_the_layers_are_that_it_changes() -> None:
    file = adapter(LLAMA)
    whole = with_extras(LLAMA, Extras(adapters=(file,)), card("CUDA0", 20))
    assert whole.devices[0].parts.adapters_bytes / MIB == pytest.approx(92.75, abs=0.01)
    assert whole.host.adapters_bytes == 0
    part = with_extras(LLAMA, Extras(adapters=(file,)), card("CUDA0", 20), gpu_layers=8, allow_cpu=True)
    on_device, on_host = part.devices[0].parts.adapters_bytes, part.host.adapters_bytes
    assert on_device == file.tensor_bytes * 7 // 28  # the output is one of the eight, and has none
    assert on_device + on_host == file.tensor_bytes


def test_vulkan_has_more_alive_with_an_adapter() -> None:
    extras = Extras(adapters=(adapter(LLAMA),))
    cuda, vulkan = (with_extras(LLAMA, extras, card(name, 20), context=8192) for name in ("CUDA0", "Vulkan0"))
    more = vulkan.devices[0].parts.adapters_bytes - cuda.devices[0].parts.adapters_bytes
    assert more == 2 * 4 * 512 * LLAMA32_3B.ff


def test_control_vectors_are_one_row_a_layer_but_for_the_first() -> None:
    found = with_extras(LLAMA, Extras(control_vectors=(VECTOR, VECTOR)), card("CUDA0", 20))
    assert found.devices[0].parts.adapters_bytes == 27 * 3072 * 4


@settings(max_examples=25, deadline=None)
@given(layers=st.integers(1, 29), first=st.integers(1, 28), rank=st.integers(1, 64))
def test_no_part_of_an_adapter_gets_lost(layers: int, first: int, rank: int) -> None:
    file = adapter(LLAMA, rank)
    devices = [card("CUDA0", 20), card("CUDA1", 20)]
    weights = WeightMap(LLAMA, "CUDA")
    beside = Beside(Extras(adapters=(file,)), Main(LLAMA, shape_of(LLAMA)), weights, devices, GATES)
    split = (min(first, layers - 1), layers - min(first, layers - 1)) if layers > 1 else ()
    choice = Choice(4096, 1, False, "f16", "f16", 512, 512, True, layers, split)
    demand = Demand(LLAMA, devices, GATES, weights, beside=beside)
    need = demand.need(choice)
    held = sum(parts.adapters_bytes for parts in (*need.devices, need.host))
    assert file.tensor_bytes <= held < file.tensor_bytes + 128 * 2 * len(file.tensors)


# -- plans -----------------------------------------------------------------------------------------------------

QWEN = facts_of(QWEN3_8B)
SMALL = facts_of(replace(LLAMA32_3B, layers=4, vocab=8192, embd=1024, heads=8, kv_heads=2))
PROJECTOR = side_file(PROJECTORS["gemma3"])
ALL = Extras(
    vision=Vision(PROJECTOR, movable=True),
    adapters=(adapter(QWEN),),
    draft=Draft(("draft-simple",), SMALL),
    guessed_tokens=3,
)


def test_everything_is_counted_before_the_context_is_chosen() -> None:
    bare = plan(QWEN, [card("CUDA0", 10)], HOST, Placement(), frozenset(), GATES)
    found = with_extras(QWEN, ALL, card("CUDA0", 10))
    parts = found.devices[0].parts
    assert parts.vision_bytes >= PROJECTOR.tensor_bytes
    assert parts.adapters_bytes and parts.draft_bytes
    assert found.context_tokens < bare.context_tokens
    assert parts.total_bytes <= found.devices[0].budget_bytes
    assert found.vision_place == "CUDA0"
    topics = {reason.topic: reason.text for reason in found.reasons}
    assert topics["vision"].startswith("on CUDA0") and "draft-simple" in topics["draft"]
    assert "lora" in topics


def test_what_is_there_beside_is_shown_only_where_there_is_any() -> None:
    found = with_extras(QWEN, ALL, card("CUDA0", 12))
    parts = found.devices[0].parts
    shown = (
        f"  in the total of CUDA0: vision {parts.vision_bytes / MIB:.1f}, adapters {parts.adapters_bytes / MIB:.1f}, "
        f"draft {parts.draft_bytes / MIB:.1f}"
    )
    assert shown in explain(found)
    (device,) = cast("list[dict[str, Any]]", found.to_json([])["devices"])
    assert device["vision_mib"] == round(parts.vision_bytes / MIB, 2) or device["vision_mib"] > 900
    assert {"adapters_mib", "draft_mib"} <= device.keys()
    bare = plan(QWEN, [card("CUDA0", 12)], HOST, Placement(), frozenset(), GATES)
    assert "in the total of" not in explain(bare)
    assert "vision_mib" not in json.dumps(bare.to_json([]))


def test_the_projector_goes_to_the_cpu_before_a_layer_does() -> None:
    free_gib = 7.0
    with pytest.raises(NeverFits) as caught:
        with_extras(QWEN, Extras(vision=Vision(PROJECTOR, movable=True)), card("CUDA0", free_gib), context=8192)
    assert "vision projector 9" in caught.value.why
    assert "[vision] offload = false would fit" in caught.value.fix
    extras = Extras(vision=Vision(PROJECTOR, movable=True))
    moved = with_extras(QWEN, extras, card("CUDA0", free_gib), context=8192, allow_cpu=True)
    assert moved.vision_place == "host" and moved.layers == moved.layers_total
    assert moved.devices[0].parts.vision_bytes == 0 and moved.host.vision_bytes >= PROJECTOR.tensor_bytes
    promised = Extras(vision=Vision(PROJECTOR, movable=False))
    kept = with_extras(QWEN, promised, card("CUDA0", free_gib), context=8192, allow_cpu=True)
    assert kept.vision_place == "CUDA0" and kept.layers < kept.layers_total


@settings(max_examples=30, deadline=None)
@given(free_gib=st.floats(6, 40), second_gib=st.floats(4, 40), allow_cpu=st.booleans())
def test_no_plan_is_above_its_budget(free_gib: float, second_gib: float, allow_cpu: bool) -> None:
    devices = [card("CUDA0", free_gib), card("CUDA1", second_gib)]
    try:
        found = with_extras(QWEN, ALL, *devices, allow_cpu=allow_cpu)
    except NeverFits:
        return
    for device in found.devices:
        assert device.parts.total_bytes <= device.budget_bytes
    held = [device.parts for device in found.devices] + [found.host]
    assert sum(parts.vision_bytes for parts in held) >= PROJECTOR.tensor_bytes
    assert sum(parts.draft_bytes for parts in held) >= sum(tensor.size_bytes for tensor in SMALL.tensors)


# -- confirmed by llama-server -----------------------------------------------------------------------------------


def told(found: Plan, *, draft_extra_mib: int = 0) -> Asked:
    """The account of a server that agrees with the plan but for so much more compute of the draft."""

    def whole(parts: Parts) -> Parts:
        sizes = (parts.weights_bytes, parts.context_bytes, parts.compute_bytes)
        return Parts(*(size // MIB * MIB for size in sizes))

    def of_draft(parts: Parts, extra_mib: int = 0) -> Parts:
        return Parts(compute_bytes=(parts.draft_bytes // MIB + extra_mib) * MIB)

    return Asked(
        {device.name: whole(device.parts) for device in found.devices},
        whole(found.host),
        draft={device.name: of_draft(device.parts, draft_extra_mib) for device in found.devices},
        draft_host=of_draft(found.host),
    )


def test_an_account_that_agrees_counts_nothing_twice() -> None:
    found = with_extras(QWEN, ALL, card("CUDA0", 12))
    answer = confirmed(found, told(found))
    assert isinstance(answer, Plan)
    assert answer.devices == found.devices and answer.host == found.host
    small = replace(told(found), vision_bytes=MIB)
    assert confirmed(found, small) == answer  # the largest picture stays counted


def test_a_draft_that_says_another_figure_is_believed() -> None:
    found = with_extras(QWEN, ALL, card("CUDA0", 12), context=8192)
    less = confirmed(found, told(found, draft_extra_mib=-50))
    assert isinstance(less, Plan)
    saved = found.devices[0].parts.draft_bytes - less.devices[0].parts.draft_bytes
    assert 49 * MIB <= saved <= 50 * MIB
    larger = with_extras(QWEN, ALL, card("CUDA0", 12))
    refit = confirmed(larger, told(larger, draft_extra_mib=4096))
    assert isinstance(refit, Refit) and refit.place == "CUDA0"
    assert 4095 * MIB < refit.corrections["CUDA0"] < 4098 * MIB


def test_a_projector_that_takes_more_at_its_load_counts_with_that() -> None:
    found = with_extras(QWEN, ALL, card("CUDA0", 14), context=8192)
    answer = confirmed(found, replace(told(found), vision_bytes=2 * GIB))
    assert isinstance(answer, Plan)
    assert answer.devices[0].parts.vision_bytes == 2 * GIB
