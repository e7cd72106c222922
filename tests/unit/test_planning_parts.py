"""The parts of the estimate: where tensors go, what a cell costs, what lies outside the buffers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llamad.gguf.facts import Tensor
from llamad.hardware.device import Device
from llamad.planning.backends import backend_of
from llamad.planning.cache import cache_bytes, cache_map, row_bytes
from llamad.planning.choice import Choice
from llamad.planning.compute import scratch_bytes
from llamad.planning.demand import Demand
from llamad.planning.overhead import context_bytes, growth_bytes, margin_bytes, shares_host, unpacked_bytes
from llamad.planning.plan import BuildGates
from llamad.planning.shape import shape_of
from llamad.planning.weights import device_bytes, weight_map
from llamad.units import GIB, MIB, pad
from tests.support.planning import card, facts_of
from tests.support.shapes import LLAMA31_8B, LLAMA32_3B, QWEN3_8B

CHOICE = Choice(8192, 4, True, "f16", "f16", 512, 512, True, 33)
LLVMPIPE = Device("Vulkan0", 24 * GIB, 24 * GIB, description="llvmpipe (LLVM 21.1.8, 256 bits)", context_included=True)


# The file's own figures for 3 tensors of Llama 3.1 8B.
EMBEDDING = 4096 * 128256 * 144 // 256
OUTPUT = 4096 * 128256 * 210 // 256


class TestWeights:
    def test_input_stays_on_the_host_and_output_goes_last(self) -> None:
        weights = weight_map(facts_of(LLAMA31_8B), "RPC")
        assert weights.on_host(33) == EMBEDDING
        assert weights.on_device(1) == pytest.approx(OUTPUT + 4096 * 4, abs=1024)
        assert weights.on_device(0) == 0

    def test_the_host_keeps_the_first_blocks(self) -> None:
        facts = facts_of(LLAMA31_8B)
        weights = weight_map(facts, "RPC")
        first = sum(t.size_bytes for t in facts.tensors if t.name.startswith("blk.0."))
        assert weights.on_host(32) - weights.on_host(33) == first
        assert weights.on_device(33) - weights.on_device(32) == first

    @pytest.mark.parametrize("layers", range(34))
    def test_nothing_is_lost_between_device_and_host(self, layers: int) -> None:
        facts = facts_of(LLAMA31_8B)
        weights = weight_map(facts, "RPC")
        assert weights.on_device(layers) + weights.on_host(layers) == pytest.approx(facts.file_bytes, abs=64 * 300)

    def test_tied_embeddings_are_loaded_twice_unless_all_is_on_the_host(self) -> None:
        facts = facts_of(LLAMA32_3B)
        weights = weight_map(facts, "RPC")
        embedding = facts.tensors[0].size_bytes
        assert weights.on_host(29) == embedding
        assert weights.on_device(29) == pytest.approx(facts.file_bytes, abs=4096)
        assert weights.on_host(0) == pytest.approx(facts.file_bytes, abs=4096)

    def test_blocks_for_multi_token_prediction_are_not_loaded(self) -> None:
        facts = replace(facts_of(LLAMA31_8B), n_layers_nextn=1)
        skipped, loaded = weight_map(facts, "RPC"), weight_map(facts, "RPC", mtp_skipped=False)
        last = sum(t.size_bytes for t in facts.tensors if t.name.startswith("blk.31."))
        assert loaded.on_device(33) - skipped.on_device(33) == last
        assert cache_map(facts).k_widths[-1] == 0

    def test_cuda_fills_quantised_rows(self) -> None:
        """gpt-oss: rows of 2880 are filled up to 3072, once per tensor."""
        quantised = Tensor("blk.0.a.weight", (2880, 10), 8, 2880 * 10 // 32 * 34)
        plain = Tensor("blk.0.b.weight", (2880, 10), 1, 2880 * 10 * 2)
        filled = 2880 * 10 // 32 * 34 + 192 // 32 * 34
        assert device_bytes(quantised, backend_of("CUDA")) == pad(filled, 128)
        assert device_bytes(plain, backend_of("CUDA")) == 57600
        assert device_bytes(quantised, backend_of("Vulkan")) == pad(quantised.size_bytes, 64)

    def test_largest_matrix_left_behind(self) -> None:
        weights = weight_map(facts_of(LLAMA31_8B), "CUDA")
        assert weights.largest_on_host(33) == 0
        assert weights.largest_on_host(20) == 14336 * 4096 * 210 // 256


class TestCache:
    @pytest.mark.parametrize(
        ("cache_type", "expected"), [("f32", 4096), ("f16", 2048), ("q8_0", 1088), ("q5_1", 768), ("q4_0", 576)]
    )
    def test_row(self, cache_type: str, expected: int) -> None:
        assert row_bytes(cache_type, 1024) == expected

    def test_heads_may_differ_per_layer(self) -> None:
        facts = replace(facts_of(LLAMA31_8B), n_head_kv=(8, 0, *(4,) * 30))
        sums = cache_map(facts).cell_sums("f16", "f16", flash_attention=True)
        assert sums[:3] == (0, 4096, 4096)
        assert sums[-1] == 4096 + 30 * 2048

    def test_without_flash_attention_v_is_as_wide_as_the_widest(self) -> None:
        facts = replace(facts_of(LLAMA31_8B), n_head_kv=(8, 0, *(4,) * 30))
        sums = cache_map(facts).cell_sums("f16", "f16", flash_attention=False)
        assert sums[-1] == 4096 + 30 * (1024 + 2048)

    def test_layers_on_the_host_keep_their_cache_there(self) -> None:
        sums = cache_map(facts_of(LLAMA31_8B)).cell_sums("f16", "f16", flash_attention=True)
        assert cache_bytes(sums, CHOICE, 13) == (19 * 4096 * 8192, 13 * 4096 * 8192)

    @pytest.mark.parametrize(
        ("context", "slots", "unified", "cells"),
        [(777, 4, True, 1024), (1000, 3, False, 1536), (8192, 4, False, 8192), (8192, 1, False, 8192)],
    )
    def test_cells_are_padded_as_llama_server_does(self, context: int, slots: int, unified: bool, cells: int) -> None:
        assert replace(CHOICE, context_tokens=context, slots=slots, unified=unified).cells == cells


class TestOverhead:
    def test_context_by_card(self) -> None:
        assert context_bytes(card("CUDA0", 15.6)) == 460 * MIB
        assert context_bytes(card("CUDA0", 10, total_gib=31.8)) == 650 * MIB
        assert context_bytes(card("ROCm0", 20)) == 460 * MIB
        assert context_bytes(card("RPC0", 60)) == 0

    def test_context_is_not_paid_twice(self) -> None:
        assert context_bytes(card("CUDA0", 15.6, context_included=True)) == 0
        assert context_bytes(LLVMPIPE) == 0

    def test_a_cpu_in_disguise_shares_the_host(self) -> None:
        assert shares_host(LLVMPIPE)
        assert not shares_host(card("CUDA0"))
        assert shares_host(card("Vulkan0", integrated=True))

    def test_growth_is_activations_and_libraries(self) -> None:
        shape = shape_of(facts_of(LLAMA31_8B))
        expected = 1.125 * 512 * 14336 + 40 * MIB
        assert growth_bytes(card("CUDA0"), shape, CHOICE, BuildGates(), 0) == pytest.approx(expected, abs=1)
        assert growth_bytes(LLVMPIPE, shape, CHOICE, BuildGates(), 0) < 10 * MIB

    def test_older_builds_grow_by_the_scratch_of_a_quantised_cache(self) -> None:
        """A real log: 150016 tokens of q8_0 with rows of 512 and 512 grew by 294 MiB, outside the buffers."""
        shape = replace(shape_of(facts_of(LLAMA31_8B)), k_width=512, v_width=512)
        choice = replace(CHOICE, context_tokens=150016, type_k="q8_0", type_v="q8_0")
        old = growth_bytes(card("CUDA0"), shape, choice, BuildGates.of_build(9400), 0)
        new = growth_bytes(card("CUDA0"), shape, choice, BuildGates(), 0)
        assert (old - new) / MIB == pytest.approx(293, abs=1)
        assert old - new == scratch_bytes(shape, choice)

    def test_types_that_must_be_unpacked(self) -> None:
        facts = facts_of(QWEN3_8B)
        assert unpacked_bytes(facts) == 0
        odd = Tensor("blk.0.ffn_up.weight", (4096, 12288), 29, 4096 * 12288 * 56 // 256)
        assert unpacked_bytes(replace(facts, tensors=(*facts.tensors, odd))) == 2 * 4096 * 12288

    def test_margin(self) -> None:
        quiet = card("CUDA0")
        assert margin_bytes("auto", quiet, 10000 * MIB, measured=False) == 178 * MIB
        assert margin_bytes("512MiB", quiet, 10000 * MIB, measured=False) == 512 * MIB
        assert margin_bytes("auto", quiet, 10000 * MIB, measured=True) == 70 * MIB
        busy = card("CUDA0", display_active=True)
        assert margin_bytes("auto", busy, 0, measured=False) == 384 * MIB
        crowded = card("CUDA0", foreign_bytes=4000 * MIB)
        assert margin_bytes("auto", crowded, 0, measured=False) == 528 * MIB

    def test_measured_overhead_replaces_the_default(self) -> None:
        need = Demand(facts_of(LLAMA31_8B), card("CUDA0"), BuildGates(), measured_overhead_bytes=300 * MIB).need(CHOICE)
        assert need.device.overhead_bytes == 300 * MIB
        assert need.device.margin_bytes == 70 * MIB


class TestGates:
    @pytest.mark.parametrize(
        ("build", "newer"),
        [
            (9272, ""),
            (9460, "mask_f16 outputs_limited"),
            (9489, "mask_f16 outputs_limited scratch_in_graph"),
            (10488, "mask_f16 outputs_limited scratch_in_graph mtp_skipped"),
            (11669, "mask_f16 outputs_limited scratch_in_graph mtp_skipped mixed_inputs"),
            (0, "mask_f16 outputs_limited scratch_in_graph mtp_skipped mixed_inputs"),
        ],
    )
    def test_of_build(self, build: int, newer: str) -> None:
        gates = BuildGates.of_build(build)
        names = ("mask_f16", "outputs_limited", "scratch_in_graph", "mtp_skipped", "mixed_inputs")
        assert {name for name in names if getattr(gates, name)} == set(newer.split())


class TestProof:
    def test_plain_attention_is_proved(self) -> None:
        assert shape_of(facts_of(LLAMA31_8B)).proof == "proved"

    @pytest.mark.parametrize("key", ["x.ssm.conv_kernel", "x.wkv.head_size", "x.attention.indexer.key_length"])
    def test_states_and_own_caches_have_no_bound(self, key: str) -> None:
        assert shape_of(replace(facts_of(LLAMA31_8B), hparams={key: 4})).proof == "unknown"

    def test_a_window_is_planned_as_if_it_were_none(self) -> None:
        plain = facts_of(LLAMA31_8B)
        windowed = replace(plain, architecture="gemma3", sliding_window=1024)
        shape = shape_of(windowed)
        assert (shape.proof, shape.windowed) == ("bounded", True)
        need, safe = (Demand(facts, card("CUDA0", 40), BuildGates()).need(CHOICE) for facts in (plain, windowed))
        assert safe.device.context_bytes == need.device.context_bytes
        assert safe.device.compute_bytes > 1.2 * need.device.compute_bytes + 256 * MIB

    def test_a_window_that_llama_cpp_does_not_read(self) -> None:
        """Phi-4-mini and Qwen2 write one; it is ignored."""
        facts = replace(facts_of(LLAMA31_8B), architecture="phi3", sliding_window=2047)
        assert shape_of(facts).windowed is False
        assert shape_of(facts).proof == "proved"
