"""The parts of the estimate: where tensors go, what a cell costs, what lies outside the buffers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llamad.gguf.facts import ModelFacts, Tensor
from llamad.hardware.device import Device
from llamad.planning.architectures import shape_of
from llamad.planning.backends import backend_of
from llamad.planning.cache import CacheMap, row_bytes
from llamad.planning.choice import Choice
from llamad.planning.compute import largest_scratch_bytes
from llamad.planning.demand import Demand, Known, Need
from llamad.planning.overhead import context_bytes, growth_bytes, margin_bytes, shares_host, unpacked_bytes
from llamad.planning.plan import BuildGates
from llamad.planning.weights import WeightMap, device_bytes
from llamad.units import GIB, MIB, pad
from tests.support.planning import card, facts_of
from tests.support.shapes import LLAMA31_8B, LLAMA32_3B, QWEN3_8B

CHOICE = Choice(8192, 4, True, "f16", "f16", 512, 512, True, 33)
LAYERS = 32
LLVMPIPE = Device("Vulkan0", 24 * GIB, 24 * GIB, description="llvmpipe (LLVM 21.1.8, 256 bits)", context_included=True)


def with_layers(layers: int) -> Choice:
    return replace(CHOICE, layers=layers)


def on_device(weights: WeightMap, layers: int) -> int:
    """One device with the last `layers`, the output included."""
    end = weights.n_layers + 1
    return weights.on_device(with_layers(layers), end - layers, end) if layers else 0


def cache_of(facts: ModelFacts) -> CacheMap:
    return CacheMap(shape_of(facts), facts.n_layers)


# The file's own figures for 3 tensors of Llama 3.1 8B.
EMBEDDING = 4096 * 128256 * 144 // 256
OUTPUT = 4096 * 128256 * 210 // 256


class TestWeights:
    def test_input_stays_on_the_host_and_output_goes_last(self) -> None:
        weights = WeightMap(facts_of(LLAMA31_8B), "RPC")
        assert weights.on_host(with_layers(33)) == EMBEDDING
        assert on_device(weights, 1) == pytest.approx(OUTPUT + 4096 * 4, abs=1024)
        assert on_device(weights, 0) == 0

    def test_the_host_keeps_the_first_blocks(self) -> None:
        facts = facts_of(LLAMA31_8B)
        weights = WeightMap(facts, "RPC")
        first = sum(t.size_bytes for t in facts.tensors if t.name.startswith("blk.0."))
        assert weights.on_host(with_layers(32)) - weights.on_host(with_layers(33)) == first
        assert on_device(weights, 33) - on_device(weights, 32) == first

    @pytest.mark.parametrize("layers", range(34))
    def test_nothing_is_lost_between_device_and_host(self, layers: int) -> None:
        facts = facts_of(LLAMA31_8B)
        weights = WeightMap(facts, "RPC")
        assert on_device(weights, layers) + weights.on_host(with_layers(layers)) == pytest.approx(
            facts.file_bytes, abs=64 * 300
        )

    def test_tied_embeddings_are_loaded_twice_unless_all_is_on_the_host(self) -> None:
        facts = facts_of(LLAMA32_3B)
        weights = WeightMap(facts, "RPC")
        embedding = facts.tensors[0].size_bytes
        assert weights.on_host(with_layers(29)) == embedding
        assert on_device(weights, 29) == pytest.approx(facts.file_bytes, abs=4096)
        assert weights.on_host(with_layers(0)) == pytest.approx(facts.file_bytes, abs=4096)

    def test_blocks_for_multi_token_prediction_are_not_loaded(self) -> None:
        facts = replace(facts_of(LLAMA31_8B), n_layers_nextn=1)
        skipped, loaded = WeightMap(facts, "RPC"), WeightMap(facts, "RPC", mtp_skipped=False)
        last = sum(t.size_bytes for t in facts.tensors if t.name.startswith("blk.31."))
        assert on_device(loaded, 33) - on_device(skipped, 33) == last
        assert cache_of(facts).bytes_between(CHOICE, 31, 32) == 0

    def test_cuda_fills_quantised_rows(self) -> None:
        """gpt-oss: rows of 2880 are filled up to 3072, once per tensor."""
        quantised = Tensor("blk.0.a.weight", (2880, 10), 8, 2880 * 10 // 32 * 34)
        plain = Tensor("blk.0.b.weight", (2880, 10), 1, 2880 * 10 * 2)
        filled = 2880 * 10 // 32 * 34 + 192 // 32 * 34
        assert device_bytes(quantised, backend_of("CUDA")) == pad(filled, 128)
        assert device_bytes(plain, backend_of("CUDA")) == 57600
        assert device_bytes(quantised, backend_of("Vulkan")) == pad(quantised.size_bytes, 64)

    def test_largest_matrix_left_behind(self) -> None:
        weights = WeightMap(facts_of(LLAMA31_8B), "CUDA")
        assert weights.largest_on_host(with_layers(33)) == 0
        assert weights.largest_on_host(with_layers(20)) == 14336 * 4096 * 210 // 256


class TestCache:
    @pytest.mark.parametrize(
        ("cache_type", "expected"),
        [("f32", 4096), ("f16", 2048), ("q8_0", 1088), ("q5_1", 768), ("q4_0", 576)],
    )
    def test_row(self, cache_type: str, expected: int) -> None:
        assert row_bytes(cache_type, 1024) == expected

    def test_heads_may_differ_per_layer(self) -> None:
        facts = replace(facts_of(LLAMA31_8B), n_head_kv=(8, 0, *(4,) * 30))
        cache = cache_of(facts)
        assert [cache.bytes_between(CHOICE, 0, stop) // 8192 for stop in (0, 1, 2)] == [0, 4096, 4096]
        assert cache.bytes_between(CHOICE, 0, LAYERS) == (4096 + 30 * 2048) * 8192

    def test_without_flash_attention_v_is_as_wide_as_the_widest(self) -> None:
        facts = replace(facts_of(LLAMA31_8B), n_head_kv=(8, 0, *(4,) * 30))
        choice = replace(CHOICE, flash_attention=False)
        assert cache_of(facts).bytes_between(choice, 0, LAYERS) == (4096 + 30 * (1024 + 2048)) * 8192

    def test_layers_on_the_host_keep_their_cache_there(self) -> None:
        need = Demand(facts_of(LLAMA31_8B), [card()], BuildGates()).need(with_layers(20))
        assert need.devices[0].context_bytes == 19 * 4096 * 8192
        assert need.host.context_bytes == 13 * 4096 * 8192

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
        shape = shape_of(replace(facts_of(LLAMA31_8B), n_head_kv=(4,) * LAYERS))
        choice = replace(CHOICE, context_tokens=150016, type_k="q8_0", type_v="q8_0")
        old = growth_bytes(card("CUDA0"), shape, choice, BuildGates.of_build(9400), 0)
        new = growth_bytes(card("CUDA0"), shape, choice, BuildGates(), 0)
        assert (old - new) / MIB == pytest.approx(293, abs=1)
        assert old - new == largest_scratch_bytes(shape, choice)

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
        known = Known(overhead_bytes=300 * MIB)
        (need,) = Demand(facts_of(LLAMA31_8B), [card("CUDA0")], BuildGates(), known=[known]).need(CHOICE).devices
        assert need.overhead_bytes == 300 * MIB
        assert need.margin_bytes == 70 * MIB


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

    def test_layers_with_a_window_keep_its_cells(self) -> None:
        """Gemma 3: every sixth layer sees all, the others 1024 cells and a micro-batch, per slot in one cache."""
        plain = facts_of(LLAMA31_8B)
        windowed = replace(plain, architecture="gemma3", sliding_window=1024)
        (need,) = Demand(windowed, [card("CUDA0", 40)], BuildGates()).need(CHOICE).devices
        assert need.context_bytes == 4096 * (5 * 8192 + 27 * (4 * 1024 + 512))
        one = replace(CHOICE, slots=1)
        (need,) = Demand(windowed, [card("CUDA0", 40)], BuildGates()).need(one).devices
        assert need.context_bytes == 4096 * (5 * 8192 + 27 * 1536)

    def test_a_window_that_llama_cpp_does_not_read(self) -> None:
        """Phi-4-mini and Qwen2 write one; it is ignored."""
        facts = replace(facts_of(LLAMA31_8B), architecture="phi3", sliding_window=2047)
        assert not any(layer.window for layer in shape_of(facts).layers)
        assert shape_of(facts).proof == "proved"


class TestWrittenPlaces:
    """Keys that move parts of a layer: what leaves the device arrives at the host."""

    def need(self, **edit: object) -> Need:
        demand = Demand(facts_of(LLAMA31_8B), [card("CUDA0", 40)], BuildGates())
        return demand.need(replace(CHOICE, **edit))  # type: ignore[arg-type]

    def test_matrices_of_the_first_blocks(self) -> None:
        plain, moved = self.need(), self.need(host_ffn=4)
        size = sum(
            t.size_bytes for t in facts_of(LLAMA31_8B).tensors
            if t.name.startswith(("blk.0.ffn_", "blk.1.ffn_", "blk.2.ffn_", "blk.3.ffn_")) and "norm" not in t.name
        )  # fmt: skip
        assert plain.devices[0].weights_bytes - moved.devices[0].weights_bytes == size
        assert moved.host.weights_bytes - plain.host.weights_bytes == size
        assert moved.devices[0].compute_bytes > plain.devices[0].compute_bytes

    def test_caches_on_the_host(self) -> None:
        plain, moved = self.need(), self.need(host_cache=True)
        assert moved.devices[0].context_bytes == 0
        assert moved.host.context_bytes == plain.devices[0].context_bytes

    def test_windows_may_keep_everything(self) -> None:
        facts = replace(facts_of(LLAMA31_8B), architecture="gemma3", sliding_window=1024)
        demand = Demand(facts, [card("CUDA0", 40)], BuildGates())
        (full,) = demand.need(replace(CHOICE, full_windows=True)).devices
        assert full.context_bytes == 32 * 4096 * 8192

    def test_checkpoints_of_windows_are_host_memory(self) -> None:
        facts = replace(facts_of(LLAMA31_8B), architecture="gemma3", sliding_window=1024)
        none, some = (Demand(facts, [card("CUDA0", 40)], BuildGates(), checkpoints=count) for count in (0, 8))
        size = 27 * 4096 * 1024
        assert none.cache.checkpoint_bytes(CHOICE) == size
        assert some.need(CHOICE).host.overhead_bytes - none.need(CHOICE).host.overhead_bytes == 8 * 4 * size
