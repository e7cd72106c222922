"""`llamad recommend`: shapes as they are published, plans as `llamad plan` makes them, and an order with reasons."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from llamad.cli import plan as plan_verb
from llamad.cli.main import main
from llamad.errors import LlamadError
from llamad.gguf.ggml_types import type_name
from llamad.gguf.read import read_facts
from llamad.hardware.bandwidth import (
    GB,
    Bandwidth,
    bandwidth_of,
    card_asked_for,
    driver_bandwidths,
    measure_host,
    typical,
)
from llamad.hardware.device import Device, HostMemory
from llamad.hardware.host import host_memory
from llamad.models.catalogue import Shape, load_catalogue
from llamad.models.recipes import RECIPES, file_type_number
from llamad.models.recommend import Advice, Machine, advise, effective_size, placement_of, recommend
from llamad.models.speed import tokens_s
from llamad.planning.plan import BuildGates, Plan
from llamad.planning.solve import plan
from llamad.service.recommend import Asked, advice, gates_of, look
from llamad.units import GIB, MIB
from tests.support.catalogue_files import build_shape, shape_named
from tests.support.shapes import SHAPES
from tests.support.zoo_dense import ZOO as DENSE
from tests.support.zoo_mixed import ZOO as MIXED

CATALOGUE = load_catalogue()


# -- the catalogue -------------------------------------------------------------------------------------------


def test_enough_models_of_every_size_and_kind() -> None:
    sizes = [shape.parameters / 1e9 for shape in CATALOGUE]
    assert len(CATALOGUE) >= 50 and min(sizes) < 0.6 and max(sizes) > 230
    assert len({shape.name for shape in CATALOGUE}) == len({shape.title for shape in CATALOGUE}) == len(CATALOGUE)
    mixtures = [shape for shape in CATALOGUE if shape.active_parameters < 0.5 * shape.parameters]
    assert len(mixtures) >= 15


# What the makers write on their cards: billions of parameters, and of those that a token uses.
PUBLISHED = {
    "qwen3-8b": (8.19, None), "llama3.1-8b": (8.03, None), "llama3.3-70b": (70.55, None), "phi4-14b": (14.66, None),
    "gemma3-27b": (27.0, None), "mixtral-8x7b": (46.7, 12.9), "qwen3-30b-a3b": (30.5, 3.3), "gpt-oss-20b": (20.9, 3.6),
    "gpt-oss-120b": (116.8, 5.1), "qwen3-235b-a22b": (235.1, 22.0), "glm4.5-air": (106.8, 12.0), "lfm2-8b-a1b": (8.3, 1.5),
    "qwen3-next-80b-a3b": (79.7, 3.5), "ernie4.5-21b-a3b": (21.8, 3.2), "qwen2.5-7b": (7.62, None), "mistral-small-24b": (23.6, None),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_that_are_published(name: str) -> None:
    shape, (total, active) = shape_named(name), PUBLISHED[name]
    assert shape.parameters / 1e9 == pytest.approx(total, rel=0.01)
    if active is not None:  # makers count embeddings or not
        assert shape.active_parameters / 1e9 == pytest.approx(active, rel=0.12)


# Sizes of published files in GB. Their tokenizers are in them: some MB.
FILES = {
    ("llama3.1-8b", "Q8_0"): 8.54, ("llama3.1-8b", "Q6_K"): 6.60, ("llama3.1-8b", "Q5_K_M"): 5.73, ("llama3.1-8b", "Q4_K_M"): 4.92,
    ("llama3.1-8b", "IQ4_XS"): 4.45, ("llama3.1-8b", "Q3_K_M"): 4.02, ("llama3.3-70b", "Q4_K_M"): 42.52, ("qwen3-8b", "Q4_K_M"): 5.03,
    ("qwen3-235b-a22b", "Q4_K_M"): 142.3, ("gemma3-27b", "Q4_K_M"): 16.55, ("phi4-14b", "Q4_K_M"): 9.05, ("gpt-oss-20b", "MXFP4"): 12.11,
}  # fmt: skip


@pytest.mark.parametrize(("name", "recipe"), FILES)
def test_files_have_the_sizes_that_are_published(name: str, recipe: str) -> None:
    size = sum(tensor.size_bytes for tensor in shape_named(name).header(recipe).tensors)
    assert size / 1e9 == pytest.approx(FILES[name, recipe], rel=0.01)


# MiB of the weights, as `llama-quantize --dry-run` of build 11669 has them for a hollow BF16 file of the shape.
QUANTISED = {
    "qwen3-0.6b": {"Q8_0": 604.15, "Q6_K": 466.5, "Q5_K_M": 418.15, "Q4_K_M": 372.65, "IQ4_XS": 346.5, "Q3_K_M": 325.37},
    "gemma3-1b": {"Q8_0": 1013.54, "Q6_K": 958.64, "Q5_K_M": 805.68, "Q4_K_M": 762.49, "IQ4_XS": 678.67, "Q3_K_M": 682.72},
    "qwen3.5-0.8b": {"Q8_0": 763.78, "Q6_K": 590.12, "Q5_K_M": 540.77, "Q4_K_M": 494.32, "IQ4_XS": 471.92, "Q3_K_M": 434.17},
    "granite4-h-tiny": {"Q8_0": 7044.55, "Q6_K": 5442.95, "Q5_K_M": 4715.87, "Q4_K_M": 4031.55, "IQ4_XS": 3612.54, "Q3_K_M": 3194.29},
    "llama3.2-3b": {"Q8_0": 3255.9, "Q6_K": 2513.9, "Q5_K_M": 2207.1, "Q4_K_M": 1918.35, "IQ4_XS": 1748.15, "Q3_K_M": 1601.53},
    "gemma4-e2b": {"Q8_0": 4703.14, "Q6_K": 3637.33, "Q5_K_M": 3434.08, "Q4_K_M": 3242.78, "IQ4_XS": 3130.42, "Q3_K_M": 3029.01},
}  # fmt: skip


@pytest.mark.parametrize("name", QUANTISED)
def test_recipes_mix_as_llama_quantize_does(name: str) -> None:
    shape = shape_named(name)
    sizes = {recipe: sum(t.size_bytes for t in shape.header(recipe).tensors) / MIB for recipe in QUANTISED[name]}
    assert sizes == pytest.approx(QUANTISED[name], abs=0.006)


def test_shapes_are_those_whose_plans_were_compared_with_llama_server() -> None:
    """The zoo of the planner's tests spells them in its own way; its buffers were checked against the real program."""
    zoo = {shape.title: shape for shape in (*SHAPES.values(), *DENSE.values(), *MIXED.values())}
    compared = 0
    for shape in CATALOGUE:
        other = zoo.get(shape.title)
        if other is None:
            continue
        compared += 1
        mine = {blank.name: blank.dims for blank in shape.blanks}
        assert mine == {tensor.name: tensor.dims for tensor in other.tensors()}, shape.name
    assert compared >= 45


@pytest.mark.parametrize("shape", CATALOGUE, ids=lambda shape: shape.name)
def test_every_shape_makes_facts_in_every_recipe(shape: Shape) -> None:
    sizes = []
    for recipe in shape.recipes:
        facts = shape.facts(recipe)
        assert facts.n_ctx_train == shape.context_tokens and facts.file_type in (recipe, f"{recipe}_MOE")
        assert shape.least_bytes(recipe) <= 1.001 * facts.file_bytes
        sizes.append(facts.file_bytes)
    mostly = {type_name(tensor.type_id) for tensor in shape.facts(shape.recipes[-1]).tensors}
    assert mostly & {RECIPES[shape.recipes[-1]], "Q4_0", "Q5_0"}
    assert sizes[:-2] == sorted(sizes[:-2], reverse=True) and shape.hub.count("/") == 1
    assert file_type_number(shape.recipes[0]) >= 0 and 2023 <= int(shape.released[:4]) <= 2026


# -- what fits, and how much ------------------------------------------------------------------------------------


def machine(gib: float = 0, *, host_gib: float = 32, allow_cpu: bool = False, gb_s: float = 1000) -> Machine:
    devices = (Device("CUDA0", int(gib * GIB), int(gib * GIB), source="what-if"),) if gib else ()
    host = HostMemory(int(host_gib * GIB), int(host_gib * GIB))
    speeds = {device.name: Bandwidth(gb_s * GB, "given") for device in devices}
    return Machine(devices, host, speeds, Bandwidth(50 * GB, "given"), allow_cpu)


def planned(where: Machine, path: Path) -> Plan:
    facts = read_facts(str(path))
    return plan(facts, where.devices, where.host, placement_of(where), frozenset(), BuildGates())


@pytest.mark.parametrize(("gib", "host_gib"), [(16, 32), (24, 32), (80, 128), (0, 32)])
def test_contexts_are_those_of_the_files(gib: int, host_gib: int, tmp_path: Path) -> None:
    """A file of each model of a third of the catalogue, another third for each machine, planned as any file is."""
    where = machine(gib, host_gib=host_gib)
    third = CATALOGUE[gib % 3 :: 3]
    found = advice(where, BuildGates(), None, third)
    fitting = [one for one in found if one.plan is not None]
    assert len(found) == len(third) and len(fitting) >= 12
    for one in fitting[:12]:
        assert one.plan is not None
        path = build_shape(tmp_path / "x.gguf", one.shape, one.recipe)
        real = planned(where, path)
        assert (real.context_tokens, real.slots, real.layers) == (
            one.plan.context_tokens, one.plan.slots, one.plan.layers
        ), one.shape.name  # fmt: skip
        assert [d.parts for d in real.devices] == [d.parts for d in one.plan.devices], one.shape.name
    for one in [one for one in found if one.plan is None][:2]:
        recipe = one.shape.recipes[-1]
        with pytest.raises(LlamadError):
            planned(where, build_shape(tmp_path / "x.gguf", one.shape, recipe))


def test_the_verb_says_what_llamad_plan_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ["--config", str(tmp_path)]
    assert main([*config, "recommend", "--gpu", "CUDA0=15.6GiB", "--json"]) == 0
    best = json.loads(capsys.readouterr().out)["models"][0]
    path = build_shape(tmp_path / "best.gguf", shape_named(best["name"]), best["quantisation"])
    assert main([*config, "plan", "--json", "--computed", "--gpu", "CUDA0=15.6GiB", str(path)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["context_tokens"] == best["context_tokens"] and told["layers"] == best["layers"]


def test_it_is_quick() -> None:
    began_s = time.process_time()
    advice(machine(24, allow_cpu=True, host_gib=128), BuildGates(), None)
    assert time.process_time() - began_s < 5


# -- the choice and its reasons ------------------------------------------------------------------------------------


def chosen(name: str, where: Machine) -> Advice:
    def make(facts: object) -> Plan:
        return plan(facts, where.devices, where.host, placement_of(where), frozenset(), BuildGates())  # type: ignore[arg-type]

    return advise(shape_named(name), where, make)


def test_the_largest_quantisation_with_a_comfortable_context() -> None:
    assert chosen("qwen3-8b", machine(24)).recipe == "Q8_0"
    tight = chosen("qwen3-32b", machine(24))
    assert tight.recipe == "IQ4_XS" and tight.why.startswith("whole on CUDA0; Q4_K_M would leave")
    assert tight.plan is not None and 16384 <= tight.plan.context_tokens < 32768
    none = chosen("llama3.3-70b", machine(24))
    assert not none.fits and "weights alone" in none.why


def test_with_the_cpu_more_fits_and_it_says_what_is_where() -> None:
    assert not chosen("gpt-oss-120b", machine(24, host_gib=128)).fits
    mixed = chosen("gpt-oss-120b", machine(24, host_gib=128, allow_cpu=True))
    assert mixed.fits and "on the CPU" in mixed.why
    alone = chosen("qwen3-8b", machine())
    assert alone.why.startswith("on the CPU") and alone.fits


def test_slow_ones_come_after_quick_ones_and_what_does_not_fit_last() -> None:
    found = advice(machine(48, gb_s=100), BuildGates(), None, CATALOGUE[::3])
    order = [(one.fits, one.quick) for one in found]
    assert order == sorted(order, reverse=True) and {(True, True), (True, False), (False, False)} <= set(order)
    quick = [one for one in found if one.quick and one.plan and one.plan.context_tokens >= 8192]
    sizes = [effective_size(one.shape) for one in quick]
    assert sizes == sorted(sizes, reverse=True)
    assert all(one.why.endswith("slow") for one in found if one.fits and not one.quick)


def test_what_is_promised_to_others_is_left_to_them() -> None:
    where = machine(24)

    class Others:
        def reserved(self) -> dict[str, int]:
            return {"CUDA0": 12 * GIB}

    few = CATALOGUE[::6]
    beside = advice(where, BuildGates(), Others(), few)  # type: ignore[arg-type]
    alone = advice(machine(12), BuildGates(), None, few)
    fitting = [{one.shape.name for one in found if one.fits} for found in (beside, alone)]
    assert fitting[0] == fitting[1] != {one.shape.name for one in advice(where, BuildGates(), None, few) if one.fits}


def test_no_shape_no_advice() -> None:
    assert recommend([], machine(24), lambda facts: pytest.fail("asked")) == []


# -- tokens a second -------------------------------------------------------------------------------------------------


# Published rates of generation (llama-bench, one stream): GB/s, model, type of the weights, tokens/s.
RATES = [
    (936, "llama3.1-8b", "Q4_K_M", 111.7), (936, "llama3.1-8b", "BF16", 46.5), (1008, "llama3.1-8b", "Q4_K_M", 127.7),
    (1008, "llama3.1-8b", "BF16", 54.3), (1935, "llama3.1-8b", "Q4_K_M", 138.3), (1935, "llama3.3-70b", "Q4_K_M", 22.1),
    (2000, "llama3.3-70b", "Q4_K_M", 25.0),
]  # fmt: skip


@pytest.mark.parametrize(("gb_s", "name", "recipe", "published"), RATES)
def test_rates_are_within_reach_of_published_ones(gb_s: float, name: str, recipe: str, published: float) -> None:
    shape = shape_named(name)
    facts = shape.facts(recipe)
    where = machine(200)
    made = plan(facts, where.devices, where.host, placement_of(where), frozenset(), BuildGates())
    rate = tokens_s(made, facts, shape.active_bytes(facts.tensors), {"CUDA0": gb_s * GB}, 50 * GB)
    assert 0.6 < rate / published < 1.6


def test_a_part_on_the_cpu_makes_it_slower_by_its_bytes() -> None:
    shape = shape_named("qwen3-30b-a3b")
    facts = shape.facts("Q4_K_M")
    active = shape.active_bytes(facts.tensors)

    def rate(where: Machine) -> float:
        made = plan(facts, where.devices, where.host, placement_of(where), frozenset(), BuildGates())
        return tokens_s(made, facts, active, {"CUDA0": 1000 * GB}, 50 * GB)

    whole, partly, alone = rate(machine(80)), rate(machine(12, allow_cpu=True)), rate(machine())
    assert whole > partly > alone
    assert alone == pytest.approx(0.6 * 50 * GB / sum(active.values()), rel=0.25)


def test_bandwidths() -> None:
    unknown = Device("CUDA0", 24 * GIB, 24 * GIB)
    assert bandwidth_of(unknown, {}).source == "assumed" and 500 * GB < typical(24 * GIB) < 1000 * GB
    named = Device("CUDA0", 24 * GIB, 1, uuid="GPU-1", description="NVIDIA GeForce RTX 3090 Ti")
    assert bandwidth_of(named, {}) == Bandwidth(1008 * GB, "table")
    assert bandwidth_of(named, {"GPU-1": 5.0}) == Bandwidth(5.0, "driver")
    radeon = Device("ROCm0", 24 * GIB, 1, description="AMD Radeon RX 7900 XTX")
    assert bandwidth_of(radeon, {}).bytes_s == 960 * GB
    assert typical(1 << 50) > typical(8 * GIB) > 0
    card = card_asked_for("rtx4090")
    assert card is not None and card.bytes_s == 1008 * GB
    assert [card_asked_for(text).name for text in ("H100 PCIe", "l40s", "a10")] == ["H100 PCIe", "NVIDIA L40S", "NVIDIA A10"]  # type: ignore[union-attr]
    assert card_asked_for("abacus") is None
    measured = measure_host(2, seconds=0.02)
    assert measured.source == "measured" and 1e8 < measured.bytes_s < 1e13


def test_the_driver_tells_bus_and_clock() -> None:
    class Nvml:
        NVML_CLOCK_MEM = 2

        class NVMLError(Exception):
            pass

        def nvmlInit(self) -> None: ...
        def nvmlShutdown(self) -> None: ...
        def nvmlDeviceGetCount(self) -> int:
            return 2

        def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
            return index

        def nvmlDeviceGetMemoryBusWidth(self, handle: int) -> int:
            if handle:
                raise self.NVMLError
            return 5120

        def nvmlDeviceGetMaxClockInfo(self, handle: int, clock: int) -> int:
            assert clock == 2
            return 2619

        def nvmlDeviceGetUUID(self, handle: int) -> str:
            return f"GPU-{handle}"

    assert driver_bandwidths(Nvml()) == {"GPU-0": pytest.approx(3352e9, rel=0.001)}


# -- the verb ----------------------------------------------------------------------------------------------------


def test_a_machine_that_is_only_asked_about() -> None:
    asked = Asked((), {}, 32 * GIB)
    found = look(asked, None)
    assert found.host == HostMemory(32 * GIB, 32 * GIB) and found.host_speed.source == "assumed"
    assert look(Asked((), {}, None, 80 * GB), None).host_speed == Bandwidth(80 * GB, "given")
    assert look(Asked((), {}), None).host.total_bytes == host_memory().total_bytes
    assert gates_of(None) == BuildGates()


def test_the_verb_prints_the_best_and_how_to_fetch_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ["--config", str(tmp_path), "recommend"]
    assert main([*config, "--gpu", "rtx 3090", "--top", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "CUDA0 (RTX 3090): 24.0 GiB of 24.0 GiB free, 936 GB/s by its data sheet"
    assert [line.split()[0] for line in lines[4:7]] == ["1", "2", "3"]
    assert lines[-1].startswith("fetch one: llamad pull ")
    assert main([*config, "--cpu", "--ram", "400MiB"]) == 0
    assert "no model of the catalogue fits" in capsys.readouterr().out
    for wrong in (["--gpu", "abacus"], ["--cpu", "--gpu", "8GiB"], ["--ram", "many"], ["--cpu", "--ram-bandwidth", "-1"]):
        assert main([*config, *wrong]) == 64
        assert "fix:" in capsys.readouterr().err


def test_the_verb_that_plans_takes_no_more_than_a_file(tmp_path: Path) -> None:
    """What `recommend` borrows of `plan` stays what it is."""
    loaded = plan_verb.bare(tmp_path / "x.gguf", tmp_path)
    assert loaded.name == plan_verb.BARE and loaded.definition.placement.context == "auto"
    assert MIB < GIB


def test_no_lines_at_all_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for number in ("0", "-3"):
        with pytest.raises(SystemExit) as ended:
            main(["recommend", "--gpu", "24GiB", "--top", number])
        assert ended.value.code == 64
    assert "--top" in capsys.readouterr().err
