"""From machine and definition to a plan: promises, the order of sacrifice, refusals, and rules that always hold."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamad.config.definition import Placement
from llamad.errors import LlamadError
from llamad.gguf.facts import ModelFacts
from llamad.hardware.device import Device, HostMemory
from llamad.planning.plan import BuildGates, Plan
from llamad.planning.problem import Problem
from llamad.planning.refusal import NeverFits, NoDevice, NoRoomNow, PromiseError
from llamad.planning.refuse import changed
from llamad.planning.solve import plan
from llamad.service.facts import FactsReader
from llamad.units import GIB, MIB
from tests.support.models import build_hollow
from tests.support.planning import HOST, card, facts_of
from tests.support.shapes import LLAMA31_8B, LLAMA32_3B, PHI4_14B, QWEN3_8B, QWEN25_32B
from tests.support.zoo_dense import ZOO as DENSE
from tests.support.zoo_mixed import ZOO as MIXED

PHI4, LLAMA, QWEN32, QWEN8, LLAMA3B = map(facts_of, (PHI4_14B, LLAMA31_8B, QWEN25_32B, QWEN3_8B, LLAMA32_3B))


def planned(
    facts: ModelFacts,
    devices: Device | Sequence[Device],
    *,
    host: HostMemory = HOST,
    gates: BuildGates = BuildGates(),  # noqa: B008
    cache_ram: str = "auto",
    reserved: dict[str, int] | None = None,
    corrections: dict[str, int] | None = None,
    lessons: dict[str, int] | None = None,
    rooms: dict[str, int] | None = None,
    most_tokens: int | None = None,
    **placement: Any,
) -> Plan:
    listed = [devices] if isinstance(devices, Device) else devices
    written = frozenset(f"placement.{key}" for key in placement)
    return plan(
        facts, listed, host, Placement(**placement), written, gates,
        cache_ram=cache_ram, reserved=reserved or {}, corrections=corrections or {}, lessons=lessons or {},
        rooms=rooms or {}, most_tokens=most_tokens,
    )  # fmt: skip


def reason(found: Plan, topic: str) -> str:
    (text,) = (reason.text for reason in found.reasons if reason.topic == topic)
    return text


class TestContext:
    def test_no_more_than_before_where_that_is_the_bound(self) -> None:
        found = planned(PHI4, card("CUDA0", 15.6), most_tokens=8192)
        assert found.context_tokens == 8192 and found.context_train_tokens == 16384
        assert reason(found, "context") == "8192 of 16384 trained: no more than before"
        assert planned(PHI4, card("CUDA0", 15.6), most_tokens=1 << 20).context_tokens == 16384
        small = planned(PHI4, card("CUDA0", 11.0))
        assert planned(PHI4, card("CUDA0", 11.0), most_tokens=16000).context_tokens == small.context_tokens

    def test_a_promised_context_knows_no_bound(self) -> None:
        assert planned(PHI4, card("CUDA0", 15.6), most_tokens=8192, context=16384).context_tokens == 16384

    def test_all_of_the_trained_length_where_it_fits(self) -> None:
        found = planned(PHI4, card("CUDA0", 15.6))
        assert (found.context_tokens, found.layers, found.layers_total) == (16384, 41, 41)
        assert (found.cache_type_k, found.cache_type_v) == ("f16", "f16")
        assert (found.ubatch_tokens, found.batch_tokens) == (512, 512)
        assert (found.slots, found.unified_cache, found.flash_attention) == (4, True, True)
        assert found.source == "computed"
        assert reason(found, "context") == "16384, the length that the model was trained for"

    def test_as_much_as_fits_and_not_a_step_more(self) -> None:
        device = card("CUDA0", 10)
        found = planned(LLAMA, device)
        (used,) = found.devices
        assert 4096 <= found.context_tokens < 131072
        assert used.parts.total_bytes <= used.free_bytes
        with pytest.raises(NoRoomNow if device.total_bytes > device.free_bytes else NeverFits):
            planned(LLAMA, device, context=found.context_tokens + 256, ubatch=found.ubatch_tokens)

    def test_a_written_context_is_kept(self) -> None:
        found = planned(LLAMA, card("CUDA0", 15.6), context=20000)
        assert found.context_tokens == 20000
        assert found.devices[0].parts.context_bytes == 20224 * 131072
        assert reason(found, "context") == "20000, as written"

    def test_a_written_context_that_does_not_fit_is_refused(self) -> None:
        with pytest.raises(NeverFits) as caught:
            planned(LLAMA, card("CUDA0", 10), context=65536)
        assert caught.value.exit_code == 78
        text = "Llama 3.1 8B does not fit CUDA0 even if nothing else used it: 65536 tokens"
        assert str(caught.value).startswith(text)

    def test_above_the_trained_length_is_refused(self) -> None:
        with pytest.raises(PromiseError, match="16385 is above the length"):
            planned(PHI4, card("CUDA0", 40), context=16385)

    def test_a_trained_length_that_is_no_multiple_of_the_step(self) -> None:
        facts = replace(LLAMA3B, n_ctx_train=5000)
        found = planned(facts, card("CUDA0", 15.6))
        assert found.context_tokens == 5000
        assert found.devices[0].parts.context_bytes == 5120 * 28 * 4096

    def test_context_min_is_the_floor(self) -> None:
        smallest = planned(LLAMA, card("CUDA0", 5.45, total_gib=16), context_min=1024)
        assert 1024 <= smallest.context_tokens < 4096
        with pytest.raises(NoRoomNow) as caught:
            planned(LLAMA, card("CUDA0", 5.45, total_gib=16))
        (change,) = (change for change in caught.value.changes if change.key == "context_min")
        assert isinstance(change.value, int)
        assert 1024 <= change.value < 4096

    def test_next_larger_context(self) -> None:
        found = planned(LLAMA, card("CUDA0", 10))
        assert found.next_context is not None
        wanted = found.next_context
        assert wanted.device == "CUDA0"
        enough = card("CUDA0", (10 * GIB + wanted.missing_bytes) / GIB)
        assert planned(LLAMA, enough, context=wanted.context_tokens, ubatch=found.ubatch_tokens)
        with pytest.raises(NeverFits):
            short = replace(enough, free_bytes=enough.free_bytes - MIB, total_bytes=enough.total_bytes - MIB)
            planned(LLAMA, short, context=wanted.context_tokens, ubatch=found.ubatch_tokens)

    def test_no_next_context_at_the_trained_length(self) -> None:
        assert planned(PHI4, card("CUDA0", 40)).next_context is None


class TestOrderOfSacrifice:
    def test_f16_while_the_context_is_comfortable(self) -> None:
        assert planned(LLAMA, card("CUDA0", 9.3), kv_cache="auto").cache_type_k == "f16"

    def test_q8_0_before_the_context_falls_below_32768(self) -> None:
        found = planned(LLAMA, card("CUDA0", 8.8), kv_cache="auto")
        assert (found.cache_type_k, found.cache_type_v, found.ubatch_tokens) == ("q8_0", "q8_0", 512)
        assert found.context_tokens >= 32768

    def test_f16_is_not_changed_unless_told_auto(self) -> None:
        found = planned(LLAMA, card("CUDA0", 8.8))
        assert found.cache_type_k == "f16"
        assert found.context_tokens < 32768

    def test_a_smaller_micro_batch_before_a_smaller_context(self) -> None:
        with_room, without = planned(LLAMA, card("CUDA0", 9.3)), planned(LLAMA, card("CUDA0", 9))
        assert (with_room.ubatch_tokens, without.ubatch_tokens) == (512, 256)
        assert without.batch_tokens == 256
        assert planned(LLAMA, card("CUDA0", 9), ubatch=512).context_tokens < without.context_tokens

    def test_q8_0_is_never_chosen_for_heads_that_its_blocks_do_not_divide(self) -> None:
        facts = replace(LLAMA, head_k=80, head_v=80)
        assert planned(facts, card("CUDA0", 7), kv_cache="auto").cache_type_k == "f16"
        with pytest.raises(PromiseError, match="no multiples of its block"):
            planned(facts, card("CUDA0", 7), kv_cache="q8_0")

    def test_the_prompt_cache_gives_way_before_anything_on_the_host(self) -> None:
        narrow = HostMemory(8 * GIB, 2 * GIB)
        found = planned(LLAMA, card("CUDA0", 15.6), host=narrow)
        assert found.context_tokens == planned(LLAMA, card("CUDA0", 15.6)).context_tokens
        assert 0 < found.cache_ram_mib <= 256
        assert planned(LLAMA, card("CUDA0", 15.6)).cache_ram_mib == 8192


class TestPromises:
    def test_written_micro_batch_and_batch(self) -> None:
        found = planned(LLAMA, card("CUDA0", 15.6), ubatch=1024, batch=2048)
        assert (found.ubatch_tokens, found.batch_tokens) == (1024, 2048)
        assert planned(LLAMA, card("CUDA0", 15.6), batch=256).ubatch_tokens == 256

    def test_written_slots_share_the_cache(self) -> None:
        found = planned(LLAMA, card("CUDA0", 15.6), parallel=8)
        assert (found.slots, found.unified_cache) == (8, True)
        assert planned(LLAMA, card("CUDA0", 15.6), parallel=1).unified_cache is False

    def test_a_written_prompt_cache_is_kept_or_refused(self) -> None:
        narrow = HostMemory(32 * GIB, 6 * GIB)
        assert planned(LLAMA, card("CUDA0", 15.6), host=narrow, cache_ram="4GiB").cache_ram_mib == 4096
        with pytest.raises(NoRoomNow) as caught:
            planned(LLAMA, card("CUDA0", 15.6), host=narrow, cache_ram="8GiB")
        assert caught.value.place == "host"
        assert 'cache_ram = "auto" would fit' in str(caught.value)
        assert "quantisation" not in str(caught.value)

    def test_flash_attention(self) -> None:
        odd = replace(LLAMA, head_k=136, head_v=136)
        assert planned(odd, card("CUDA0", 40)).flash_attention is False
        assert planned(odd, card("Vulkan0", 40)).flash_attention is True
        with pytest.raises(PromiseError, match="flash_attention = true cannot be kept on CUDA"):
            planned(odd, card("CUDA0", 40), flash_attention=True)
        off = planned(LLAMA, card("CUDA0", 40), flash_attention=False, context=8192)
        assert off.devices[0].parts.compute_bytes > 500 * MIB
        with pytest.raises(PromiseError, match="needs flash attention"):
            planned(odd, card("CUDA0", 40), kv_cache="q8_0")

    def test_memory_limits_the_share(self) -> None:
        device = card("CUDA0", 40)
        for written, limit in (("10GiB", 10 * GIB), ("25%", 10 * GIB)):
            (used,) = planned(LLAMA, device, memory=written).devices
            taken = used.parts.total_bytes - used.parts.margin_bytes
            assert limit - 64 * MIB < taken <= limit
            assert used.parts.total_bytes <= used.budget_bytes
        with pytest.raises(NeverFits) as caught:
            planned(LLAMA, device, memory="5GiB")
        assert caught.value.changes[0].key == "memory"

    def test_margin_is_left_free(self) -> None:
        (used,) = planned(LLAMA, card("CUDA0", 10), vram_margin="1GiB").devices
        assert used.free_bytes - (used.parts.total_bytes - GIB) >= GIB

    def test_reserved_bytes_are_left_to_others(self) -> None:
        alone = planned(LLAMA, card("CUDA0", 12, uuid="GPU-1"))
        for key in ("CUDA0", "GPU-1"):
            held = planned(LLAMA, card("CUDA0", 12, uuid="GPU-1"), reserved={key: 2 * GIB})
            assert held.context_tokens < alone.context_tokens
            assert held.devices[0].parts.total_bytes <= 10 * GIB

    def test_lessons_are_no_room_for_anybody_and_no_wait_changes_them(self) -> None:
        device = card("CUDA0", 12, uuid="GPU-1")
        for key in ("CUDA0", "GPU-1"):
            for taught in ({"lessons": {key: 9 * GIB}}, {"rooms": {key: 3 * GIB}}):
                with pytest.raises(NeverFits):
                    planned(LLAMA, device, context=4096, **taught)
            with pytest.raises(NoRoomNow):
                planned(LLAMA, device, context=4096, reserved={key: 9 * GIB})

    def test_what_others_have_comes_out_of_what_is_free_and_not_out_of_a_learned_room(self) -> None:
        device = card("CUDA0", 12, uuid="GPU-1")
        alone = planned(LLAMA, device, rooms={"GPU-1": 8 * GIB})
        beside = planned(LLAMA, device, rooms={"GPU-1": 8 * GIB}, reserved={"GPU-1": 3 * GIB})
        assert alone.context_tokens == beside.context_tokens
        assert beside.devices[0].parts.total_bytes <= 8 * GIB
        assert beside.devices[0].held_back_bytes == 3 * GIB

    def test_corrections_count(self) -> None:
        plain = planned(LLAMA, card("CUDA0", 10))
        corrected = planned(LLAMA, card("CUDA0", 10), corrections={"CUDA0": 500 * MIB})
        assert corrected.context_tokens < plain.context_tokens
        assert corrected.devices[0].parts.total_bytes <= 10 * GIB


class TestLayers:
    def test_all_layers_written_in_any_way(self) -> None:
        assert planned(LLAMA, card("CUDA0", 15.6), gpu_layers=33).layers == 33
        assert planned(LLAMA, card("CUDA0", 15.6), gpu_layers=999).layers == 33

    def test_fewer_only_with_allow_cpu(self) -> None:
        with pytest.raises(PromiseError, match="leaves 13 layers to the CPU"):
            planned(LLAMA, card("CUDA0", 15.6), gpu_layers=20)
        found = planned(LLAMA, card("CUDA0", 15.6), gpu_layers=20, allow_cpu=True, context=8192)
        assert found.layers == found.devices[0].layers == 20
        assert found.host.context_bytes == 13 * 8192 * 4096

    def test_none_only_with_allow_cpu(self) -> None:
        with pytest.raises(PromiseError):
            planned(LLAMA, card("CUDA0", 15.6), gpu_layers=0)
        found = planned(LLAMA, card("CUDA0", 15.6), gpu_layers=0, allow_cpu=True)
        assert (found.layers, found.devices, found.main_device) == (0, (), "none")

    def test_as_many_as_fit(self) -> None:
        found = planned(QWEN32, card("CUDA0", 15.6), allow_cpu=True)
        assert 40 < found.layers < 65
        assert found.devices[0].parts.total_bytes <= found.devices[0].free_bytes
        with pytest.raises(NeverFits):
            planned(QWEN32, card("CUDA0", 15.6), allow_cpu=True, gpu_layers=found.layers + 1)

    def test_whole_before_part(self) -> None:
        whole, part = planned(LLAMA, card("CUDA0", 7)), planned(LLAMA, card("CUDA0", 7), allow_cpu=True)
        assert (part.layers, part.context_tokens) == (whole.layers, whole.context_tokens)

    def test_cpu_alone(self) -> None:
        found = planned(LLAMA3B, [], allow_cpu=True, context=8192)
        assert found.devices == ()
        assert found.host.weights_bytes == pytest.approx(LLAMA3B.file_bytes, abs=64 * 300)
        assert found.host.context_bytes == 8192 * 28 * 4096
        assert reason(found, "devices") == "the CPU alone: there is no device"

    def test_a_device_too_small_for_one_layer(self) -> None:
        found = planned(LLAMA, card("CUDA0", 0.7), allow_cpu=True)
        assert found.layers == 0
        assert reason(found, "devices") == "the CPU alone: no device has room"


class TestDevices:
    def test_none(self) -> None:
        with pytest.raises(NoDevice) as caught:
            planned(LLAMA, [])
        assert caught.value.exit_code == 69

    def test_the_one_with_most_free(self) -> None:
        found = planned(LLAMA, [card("CUDA0", 10), card("CUDA1", 12)])
        assert found.main_device == "CUDA1"

    def test_discrete_before_integrated_remote_and_software(self) -> None:
        small = card("CUDA0", 10)
        others = [
            card("Vulkan1", 60, integrated=True),
            card("RPC0", 60),
            Device("Vulkan0", 60 * GIB, 60 * GIB, description="llvmpipe"),
        ]
        assert planned(LLAMA, [*others, small]).main_device == "CUDA0"
        assert planned(LLAMA, others).main_device == "Vulkan1"
        assert planned(LLAMA, others[1:]).main_device == "RPC0"
        assert planned(LLAMA, [*others, replace(small, free_bytes=GIB)]).main_device == "Vulkan1"

    def test_one_card_under_two_backends_counts_once(self) -> None:
        pair = [card("Vulkan0", 11, pci="0000:01:00.0"), card("CUDA0", 10, pci="0000:01:00.0")]
        assert planned(LLAMA, pair).main_device == "CUDA0"

    @pytest.mark.parametrize("word", [1, "CUDA1", "cuda1", "GPU-b", "0000:02:00.0", "00000000:02:00.0", "02:00.0"])
    def test_by_name(self, word: int | str) -> None:
        devices = [
            card("CUDA0", 40, uuid="GPU-a", pci="0000:01:00.0"),
            card("CUDA1", 12, uuid="GPU-b", pci="0000:02:00.0"),
        ]
        assert planned(LLAMA, devices, gpus=(word,)).main_device == "CUDA1"

    def test_one_that_is_not_there(self) -> None:
        with pytest.raises(NoDevice, match="no device 'CUDA2'") as caught:
            planned(LLAMA, [card("CUDA0"), card("CUDA1")], gpus=("CUDA2",))
        assert 'did you mean "CUDA' in str(caught.value)
        with pytest.raises(NoDevice):
            planned(LLAMA, [card("CUDA0")], gpus=(1,))

    def test_another_card_is_named_in_the_refusal(self) -> None:
        with pytest.raises(NeverFits) as caught:
            planned(LLAMA, [card("CUDA0", 4), card("CUDA1", 24)], gpus=("CUDA0",))
        assert caught.value.changes[0].key == "gpus"

    def test_written_shares_are_kept(self) -> None:
        found = planned(LLAMA, [card("CUDA0"), card("CUDA1")], tensor_split=(1.0, 1.0))
        assert found.tensor_split == (17, 16)
        assert [device.layers for device in found.devices] == [17, 16]

    def test_more_shares_than_devices(self) -> None:
        with pytest.raises(PromiseError, match="tensor_split has 3 shares for 2 devices"):
            planned(LLAMA, [card("CUDA0"), card("CUDA1")], tensor_split=(1.0, 1.0, 1.0))

    def test_a_second_one_for_a_larger_context_though_a_small_one_fits_on_the_first(self) -> None:
        alone = planned(LLAMA, card("CUDA0", 7))
        both = planned(LLAMA, [card("CUDA0", 7), card("CUDA1", 7)])
        assert both.context_tokens > 2 * alone.context_tokens
        assert len(both.devices) == 2 and all(device.layers for device in both.devices)

    def test_what_the_cpu_would_take_is_spread_over_all_devices_first(self) -> None:
        cards = [card("CUDA0", 7.6), card("CUDA1", 5.9)]
        alone = planned(QWEN32, cards[0], allow_cpu=True)
        both = planned(QWEN32, cards, allow_cpu=True)
        assert both.layers > alone.layers + 8 and len(both.devices) == 2
        assert reason(both, "devices").endswith("fewer would leave more to the CPU")
        assert reason(both, "split").endswith("one works at a time, as the CPU has a part too")

    def test_so_are_experts(self, tmp_path: Path) -> None:
        build_hollow(tmp_path / "experts.gguf", MIXED["qwen3-30b-a3b"])  # type: ignore[arg-type]
        facts = FactsReader()(str(tmp_path / "experts.gguf"))
        cards = [card("CUDA0", 7.6), card("CUDA1", 5.9)]
        alone = planned(facts, cards[0], allow_cpu=True)
        both = planned(facts, cards, allow_cpu=True)
        assert 0 < both.host_experts < alone.host_experts - 8
        assert both.layers == both.layers_total and [device.name for device in both.devices] == ["CUDA0", "CUDA1"]

    def test_memory_of_an_integrated_device_is_the_hosts(self) -> None:
        device = card("Vulkan0", 14, integrated=True)
        host = HostMemory(16 * GIB, 9 * GIB)
        found = planned(LLAMA, device, host=host)
        assert found.devices[0].parts.total_bytes + found.host.total_bytes + found.cache_ram_mib * MIB <= 9 * GIB
        assert found.context_tokens < planned(LLAMA, device).context_tokens


class TestRefusals:
    def test_not_now(self) -> None:
        with pytest.raises(NoRoomNow) as caught:
            planned(PHI4, card("CUDA0", 5, total_gib=16))
        assert caught.value.exit_code == 75
        assert caught.value.place == "CUDA0"
        text = str(caught.value)
        assert "Phi 4 does not fit CUDA0 at this moment" in text
        assert "weights 8354, context 800, compute" in text
        assert "5120 MiB are free" in text
        assert f"free {-(-caught.value.missing_bytes // MIB)} MiB of it" in text

    def test_the_default_floor_is_named_as_such(self) -> None:
        with pytest.raises(NeverFits, match="the default, needs"):
            planned(PHI4, card("CUDA0", 5))
        with pytest.raises(NeverFits, match=r"context_min = 4096 tokens of context \(f16, micro-batch 256\) needs"):
            planned(PHI4, card("CUDA0", 5), context_min=4096)

    def test_a_quantised_cache_would_do(self) -> None:
        with pytest.raises(NeverFits) as caught:
            planned(PHI4, card("CUDA0", 11), context=16384)
        assert 'kv_cache = "q8_0" would fit at 16384' in str(caught.value)
        assert planned(PHI4, card("CUDA0", 11), context=16384, kv_cache="q8_0")

    def test_an_unknown_architecture_is_planned_on_the_safe_side_and_says_so(self) -> None:
        found = planned(replace(LLAMA, architecture="baichuan"), card("CUDA0", 15.6))
        assert "not compared with llama.cpp yet" in found.remarks[0]
        assert not found.exact
        assert not planned(LLAMA, card("CUDA0", 15.6)).remarks

    def test_without_any_formula_the_guess_is_larger_and_no_doubt_is_left_once_the_engine_was_asked(self) -> None:
        odd = replace(LLAMA, architecture="deepseek4")
        found, plain = (planned(facts, card("CUDA0", 40), context=16384, parallel=1) for facts in (odd, LLAMA))
        assert "no formula is known" in found.remarks[0]
        guessed, computed = found.devices[0].parts, plain.devices[0].parts
        assert guessed.context_bytes == computed.context_bytes * 3 // 2
        assert guessed.compute_bytes >= computed.compute_bytes * 3 // 2 + 512 * MIB
        assert not found.with_parts({"CUDA0": computed}, plain.host, "asked").remarks


SIZES = st.integers(min_value=500, max_value=60_000)
MODELS = st.sampled_from([PHI4, LLAMA, QWEN32, QWEN8, LLAMA3B])
PLACEMENTS = st.fixed_dictionaries(
    {},
    optional={
        "context": st.integers(512, 16384),
        "context_min": st.integers(256, 8192),
        "parallel": st.integers(1, 16),
        "kv_cache": st.sampled_from(["auto", "f16", "q8_0", "q4_0", "f32"]),
        "ubatch": st.sampled_from([64, 128, 256, 512, 1024]),
        "memory": st.sampled_from(["auto", "8GiB", "70%"]),
        "vram_margin": st.sampled_from(["auto", "0B", "1GiB"]),
        "allow_cpu": st.booleans(),
    },
)
NAMES = st.sampled_from(["CUDA0", "Vulkan0", "RPC0", "ROCm0"])
BUILDS = st.sampled_from([0, 9000, 9470, 10600, 11669])


def outcome(facts: ModelFacts, free_mib: int, name: str, words: dict[str, Any], build: int) -> Plan | LlamadError:
    words = {key: value for key, value in words.items() if not (key == "context_min" and "context" in words)}
    device = Device(name, free_mib * MIB, free_mib * MIB)
    try:
        return planned(facts, device, gates=BuildGates.of_build(build), **words)
    except (NoRoomNow, NeverFits) as refused:
        return refused


def on_device(found: Plan | LlamadError) -> bool:
    return isinstance(found, Plan) and found.layers == found.layers_total


@given(facts=MODELS, free_mib=SIZES, name=NAMES, words=PLACEMENTS, build=BUILDS)
@settings(max_examples=1000, deadline=None)
def test_no_plan_exceeds_its_budget_and_every_promise_is_kept(
    facts: ModelFacts, free_mib: int, name: str, words: dict[str, Any], build: int
) -> None:
    found = outcome(facts, free_mib, name, words, build)
    if not isinstance(found, Plan):
        return  # a refusal: other tests are about them
    for device in found.devices:
        assert device.parts.total_bytes <= device.budget_bytes <= device.free_bytes + device.parts.margin_bytes
        assert device.parts.total_bytes <= device.free_bytes
    assert found.host.total_bytes + found.cache_ram_mib * MIB <= HOST.available_bytes
    promised = {"context": found.context_tokens, "parallel": found.slots, "ubatch": found.ubatch_tokens}
    assert all(words[key] == value for key, value in promised.items() if key in words)
    assert found.context_tokens >= min(words.get("context_min", 4096), words.get("context", 4096))
    assert words.get("kv_cache", "f16") in ("auto", found.cache_type_k)
    assert found.layers == found.layers_total or words.get("allow_cpu")


@given(facts=MODELS, more_mib=st.integers(700, 8000), name=NAMES, words=PLACEMENTS, build=BUILDS)
@settings(max_examples=200, deadline=None)
def test_a_step_more_would_exceed_the_budget(
    facts: ModelFacts, more_mib: int, name: str, words: dict[str, Any], build: int
) -> None:
    words.pop("context", None)
    free_mib = facts.file_bytes // MIB + more_mib  # the weights fit, the whole context rarely
    found = outcome(facts, free_mib, name, words, build)
    if not isinstance(found, Plan) or not on_device(found) or found.context_tokens == facts.n_ctx_train:
        return
    step = words | {"context": found.context_tokens + 256, "ubatch": found.ubatch_tokens, "allow_cpu": False}
    step |= {"kv_cache": found.cache_type_k}
    assert not on_device(outcome(facts, free_mib, name, step, build))


@given(facts=MODELS, free_mib=SIZES, more_mib=st.integers(0, 4000), name=NAMES, words=PLACEMENTS, build=BUILDS)
@settings(max_examples=150, deadline=None)
def test_more_free_memory_is_never_worse(
    facts: ModelFacts, free_mib: int, more_mib: int, name: str, words: dict[str, Any], build: int
) -> None:
    # A percentage of a larger card, and a card so large that its driver context grows, are other problems.
    words.pop("memory", None)
    if free_mib < 30 * 1024 <= free_mib + more_mib:
        return
    less, more = (outcome(facts, size, name, words, build) for size in (free_mib, free_mib + more_mib))
    if isinstance(less, Plan):
        assert isinstance(more, Plan)
        assert more.layers >= less.layers
        if more.layers == less.layers and more.cache_type_k == less.cache_type_k:
            assert more.context_tokens >= less.context_tokens or more.ubatch_tokens > less.ubatch_tokens


@given(
    facts=MODELS,
    name=NAMES,
    build=BUILDS,
    context=st.integers(1, 60).map(lambda k: k * 256),
    slots=st.integers(1, 8),
    ubatch=st.sampled_from([64, 128, 256, 512]),
    cache=st.sampled_from(["f16", "q8_0"]),
    grow=st.sampled_from(["context", "parallel", "ubatch"]),
)
@settings(max_examples=150, deadline=None)
def test_bytes_never_fall_when_a_choice_grows(
    facts: ModelFacts, name: str, build: int, context: int, slots: int, ubatch: int, cache: str, grow: str
) -> None:
    words: dict[str, Any] = {"context": context, "parallel": slots, "ubatch": ubatch, "kv_cache": cache}
    larger = words | {grow: words[grow] + 256 if grow == "context" else words[grow] * 2}
    if larger["context"] > facts.n_ctx_train:
        return
    small, large = (outcome(facts, 200_000, name, choice, build) for choice in (words, larger))
    assert isinstance(small, Plan)
    assert isinstance(large, Plan)
    for before, after in ((small.devices[0].parts, large.devices[0].parts), (small.host, large.host)):
        assert after.weights_bytes == before.weights_bytes
        assert after.context_bytes >= before.context_bytes
        assert after.compute_bytes >= before.compute_bytes
        assert after.total_bytes >= before.total_bytes


@given(facts=MODELS, free_mib=SIZES, name=NAMES, words=PLACEMENTS, build=BUILDS)
@settings(max_examples=150, deadline=None)
def test_every_change_that_a_refusal_names_really_fits(
    facts: ModelFacts, free_mib: int, name: str, words: dict[str, Any], build: int
) -> None:
    refused = outcome(facts, free_mib, name, words, build)
    if isinstance(refused, Plan):
        return
    assert isinstance(refused, (NoRoomNow, NeverFits))
    assert refused.missing_bytes > 0
    words = {key: value for key, value in words.items() if not (key == "context_min" and "context" in words)}
    for change in refused.changes:
        device = Device(name, free_mib * MIB, free_mib * MIB)
        gates = BuildGates.of_build(build)
        edited = changed(Problem(facts, (device,), HOST, Placement(**words), gates), change)
        plan(facts, [device], HOST, edited.placement, frozenset(), gates, cache_ram=edited.cache_ram)
        assert f"{change.key} = " in str(refused)


@given(facts=MODELS, free_mib=st.integers(0, 8000), name=NAMES)
@settings(max_examples=100, deadline=None)
def test_the_missing_bytes_are_what_is_missing(facts: ModelFacts, free_mib: int, name: str) -> None:
    """That much more free memory, and it fits; a MiB less, and it does not."""
    free = free_mib * MIB
    try:
        planned(facts, Device(name, 80 * GIB, free))
    except NoRoomNow as refused:
        missing = refused.missing_bytes
    else:
        return
    planned(facts, Device(name, 80 * GIB, free + missing))
    with pytest.raises(NoRoomNow):
        planned(facts, Device(name, 80 * GIB, free + missing - MIB))


def test_the_same_question_has_the_same_answer() -> None:
    devices = [card("CUDA0", 10), card("CUDA1", 10), card("Vulkan0", 30, integrated=True)]
    assert planned(QWEN8, devices) == planned(QWEN8, devices)
    assert planned(QWEN8, devices).main_device == "CUDA0"


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelFacts]:
    """A dense model, a mixture of experts, one with windows and a hybrid one."""
    folder = tmp_path_factory.mktemp("timed")
    shapes = {"moe": MIXED["qwen3-30b-a3b"], "hybrid": MIXED["qwen35-27b"], "windows": DENSE["gemma3-27b"]}
    read = {
        name: FactsReader()(str(build_hollow(folder / f"{name}.gguf", shape)))  # type: ignore[arg-type]
        for name, shape in shapes.items()
    }
    return {"dense": QWEN32, **read}


@pytest.mark.alone
@pytest.mark.parametrize("allow_cpu", [False, True], ids=["whole", "allow_cpu"])
@pytest.mark.parametrize("cards", [("CUDA0",), ("CUDA0", "CUDA1"), ("CUDA0", "CUDA1", "CUDA2", "CUDA3")], ids=len)
@pytest.mark.parametrize("free_gib", [4, 9, 15.6, 23.6, 60])
@pytest.mark.parametrize("name", ["dense", "moe", "hybrid", "windows"])
def test_a_plan_or_a_refusal_takes_few_milliseconds(
    timed: dict[str, ModelFacts], name: str, free_gib: float, cards: tuple[str, ...], allow_cpu: bool
) -> None:
    """Of a processor: it reads and waits for nothing. The best of several: the machine may be busy with other things.

    20 ms wherever a plan leaves nothing to the CPU. A refusal, or a plan with a part on the CPU, may take longer: it
    tries what would help, on each set of devices, and what is copied from the host is replayed step by step. Nothing
    is kept from one to the next.
    """
    facts = replace(timed[name])
    devices = [card(device, free_gib) for device in cards]
    took_s = []
    for _ in range(40):
        start = time.process_time()
        try:
            found = planned(facts, devices, kv_cache="auto", allow_cpu=allow_cpu)
            whole = found.layers == found.layers_total and not found.host_experts
        except LlamadError:
            whole = False
        took_s.append(time.process_time() - start)
        if took_s[-1] < _bar_s(name, len(cards), whole=whole):
            return
    raise AssertionError(f"at best {min(took_s)} s")


def _bar_s(name: str, cards: int, *, whole: bool) -> float:
    """Room for a machine that is busy with other things. Layers of several kinds have more to replay."""
    one_kind = name in ("dense", "moe")
    if whole:
        return 0.02 if one_kind or cards == 1 else 0.04
    if cards == 1:
        return 0.04 if one_kind else 0.05
    return 0.06 if one_kind else 0.08


@pytest.mark.parametrize(
    ("facts", "placement", "what"),
    [
        (LLAMA, {"kv_offload": False}, "caches and attention"),
        (LLAMA, {"n_cpu_ffn": 3}, "matrices"),
        (replace(LLAMA, n_expert=8, n_expert_used=2, n_ff_expert=512), {"cpu_moe": True}, "experts"),
        (replace(LLAMA, n_expert=8, n_expert_used=2, n_ff_expert=512), {"n_cpu_moe": 2}, "experts"),
    ],
)
def test_what_is_left_to_the_cpu_needs_the_word_for_it(facts: ModelFacts, placement: dict[str, Any], what: str) -> None:
    with pytest.raises(PromiseError, match=f"leaves {what} to the CPU") as caught:
        planned(facts, card("CUDA0", 40), **placement)
    assert "allow_cpu = true" in caught.value.fix
    assert planned(facts, card("CUDA0", 40), allow_cpu=True, **placement).devices


def test_checkpoints_take_at_most_a_quarter_of_the_hosts_memory() -> None:
    windowed = replace(LLAMA, architecture="gemma3", sliding_window=1024)
    tight, wide = (planned(windowed, card("CUDA0", 40), host=HostMemory(s * GIB, s * GIB)) for s in (4, 256))
    assert tight.checkpoints is not None
    assert wide.checkpoints == 32 > tight.checkpoints >= 1
    assert "checkpoints a slot" in reason(wide, "ctx_checkpoints")
    assert planned(LLAMA, card("CUDA0", 40)).checkpoints is None


@pytest.mark.parametrize("share", [0.5, 0.55, 0.6, 0.7, 0.8, 0.9, 0.97])
def test_two_devices_have_room_wherever_half_the_model_and_some_more_fits_each(share: float) -> None:
    """Also where one of them would hold a tiny context by itself."""
    size_gib = LLAMA.file_bytes / GIB * share + 1.5
    found = planned(LLAMA, [card("CUDA0", size_gib), card("CUDA1", size_gib)])
    assert found.context_tokens >= 4096
    for device in found.devices:
        assert device.layers > 0
        assert device.parts.total_bytes <= device.budget_bytes


@pytest.mark.parametrize("free_mib", [(3000, 0), (0, 3000), (0, 0), (40, 40)])
def test_devices_without_any_room_are_refused_in_words(free_mib: tuple[int, int]) -> None:
    cards = [Device(f"CUDA{index}", 24 * GIB, size * MIB) for index, size in enumerate(free_mib)]
    with pytest.raises(NoRoomNow, match="does not fit CUDA"):
        planned(LLAMA3B, cards, context=32768)


def test_a_host_that_cannot_hold_all_experts_holds_some(tmp_path: Path) -> None:
    """The card takes as many as it can first; what is left fits the host, though all of them would not."""
    shape = MIXED["qwen35-122b-a10b"]
    facts = FactsReader()(str(build_hollow(tmp_path / "m.gguf", shape)))  # type: ignore[arg-type]
    host = HostMemory(64 * GIB, 56 * GIB)
    found = planned(facts, card("CUDA0", 60), host=host, allow_cpu=True)
    assert found.layers == found.layers_total and 0 < found.host_experts < facts.n_layers
    assert found.host.total_bytes + found.cache_ram_mib * MIB <= host.available_bytes
    with pytest.raises(LlamadError):
        planned(facts, card("CUDA0", 8), host=host, allow_cpu=True)
    halves = [card("CUDA0", 30), card("CUDA1", 30)]
    shared = planned(facts, halves, host=host, allow_cpu=True, tensor_split=(1.0, 1.0))
    assert shared.layers == shared.layers_total and 0 < shared.host_experts < facts.n_layers


@pytest.mark.parametrize(
    ("placement", "fix"),
    [
        ({"ubatch": 1}, "write ubatch = 2 or more"),
        ({"ubatch": 4, "parallel": 8}, "write ubatch = 8 or more, or parallel = 4"),
        ({"batch": 3, "parallel": 4}, "write batch = 4 or more, or parallel = 3"),
        ({"batch": 1}, "write batch = 2 or more"),
    ],
)
def test_a_micro_batch_without_room_for_every_slot_is_refused(placement: dict[str, Any], fix: str) -> None:
    with pytest.raises(PromiseError, match="cannot be kept") as caught:
        planned(LLAMA, card("CUDA0", 40), **placement)
    assert caught.value.fix == fix


def test_slots_that_nobody_asked_for_fit_the_micro_batch() -> None:
    assert planned(LLAMA, card("CUDA0", 40)).slots == 4
    assert planned(LLAMA, card("CUDA0", 40), ubatch=3).slots == 3
    assert planned(LLAMA, card("CUDA0", 40), ubatch=8, parallel=8).slots == 8
