"""Every kind of layer really loaded: what a plan says of each device is what llama-server allocates there.

Small models with random weights on the software Vulkan device: whole on one device, spread over two, partly on the
CPU. The truth is what the running llama-server logs of its buffers. A few are served by units as well: computing on the
software device costs its compiler half a minute for each new kind of layer, loading costs nothing.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.card import question
from tests.support.random_models import SMALL, build_random
from tests.system.conftest import ETC, MODELS, Bed, free_port, post, run

_BUFFER = re.compile(r"\w+: +(?P<place>[A-Za-z]+\d*)(?P<host>\w*) +(?P<kind>model|KV|RS|compute) buffer size += +(?P<mib>[\d.]+) MiB")
_PARTS = {"model": "weights_mib", "KV": "context_mib", "RS": "context_mib", "compute": "compute_mib"}
_TWO = "tensor_split = [1, 1]"
_UNDER_MIB, _OVER_MIB = 32.0, 32.0


@dataclass(frozen=True)
class Load:
    """A model and how its definition places it. `layers`: of each device, in the plan's order."""

    model: str
    layers: tuple[int, ...]
    placement: str = ""
    cpu: bool = False

    def __str__(self) -> str:
        words = [self.model, f"{len(self.layers)}x", *re.findall(r"n_cpu_moe|gpu_layers|parallel|gpus", self.placement)]
        return "-".join(words)

    @property
    def names(self) -> list[str]:
        """The devices, in the plan's order: the engine's own unless the definition has another."""
        written = re.search(r'gpus = \["(.*)"\]', self.placement)
        return written[1].split('", "') if written else [f"Vulkan{number}" for number in range(len(self.layers))]

    @property
    def definition(self) -> str:
        devices = ",".join("0" * len(self.layers))
        return (
            "[placement]\ncontext = 4096\n"
            f"{'allow_cpu = true' if self.cpu else ''}\n{self.placement}\n"
            f'[environment]\nGGML_VK_VISIBLE_DEVICES = "{devices}"\n'
            # The shaders of fused operations take the software device half a minute each to compile.
            'GGML_VK_DISABLE_FUSION = "1"\n'
        )


SERVED = (
    Load("llama", (3,), "gpu_layers = 3", cpu=True),
    Load("llama", (7, 2), 'gpus = ["Vulkan1", "Vulkan0"]\ntensor_split = [3, 1]'),
)
LOADED = tuple(
    load
    for name, (one, two) in {
        "llama": (9, (5, 4)), "gemma3": (13, (7, 6)), "gpt-oss": (7, (4, 3)), "qwen3moe": (7, (4, 3)),
        "deepseek2": (7, (4, 3)), "lfm2": (9, (5, 4)), "qwen35": (9, (5, 4)), "granitehybrid": (9, (5, 4)),
    }.items()
    for load in (
        Load(name, (one,)),
        Load(name, two, _TWO),
        Load(name, two, f"{_TWO}\nparallel = 4"),
        Load(name, (4,), "gpu_layers = 4", cpu=True),
        *((Load(name, (one,), "n_cpu_moe = 3", cpu=True),) if name in ("gpt-oss", "qwen3moe", "deepseek2") else ()),
    )
)  # fmt: skip


def model(name: str) -> Path:
    path = MODELS / f"random-{name}.gguf"
    if not path.exists():
        build_random(path, SMALL[name])
        path.chmod(0o644)
    return path


def buffers(lines: Iterable[str]) -> dict[str, dict[str, float]]:
    """MiB of each device, and of the host, by llama-server's own lines."""
    found: dict[str, dict[str, float]] = {}
    for text in lines:
        if (line := _BUFFER.search(text)) is None:
            continue
        place = "host" if line["host"] or line["place"] == "CPU" else line["place"]
        part = _PARTS[line["kind"]]
        sizes = found.setdefault(place, dict.fromkeys(_PARTS.values(), 0.0))
        sizes[part] += float(line["mib"])
    return found


def allocated(bed: Bed, name: str) -> dict[str, dict[str, float]]:
    """The buffers of a unit's child."""
    records = bed.journal(f"SYSLOG_IDENTIFIER=llama-server@{name}")
    return buffers(str(record["MESSAGE"]) for record in records)


def loaded(args: Sequence[str], devices: int) -> dict[str, dict[str, float]]:
    """The buffers of a llama-server with a plan's own arguments: weights are read then, and its last buffer is there.

    It is ended before it computes, which it does even without a warm-up where it tries what its caches can do.
    """
    env = {**os.environ, "GGML_VK_VISIBLE_DEVICES": ",".join("0" * devices)}
    command = ["llama-server", *question(args), "--port", str(free_port()), "--fit", "off", "--no-warmup", "-lv", "4"]
    child = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert child.stderr is not None
    lines: list[str] = []
    try:
        for line in child.stderr:
            lines.append(line)
            if "reserve took" in line:
                return buffers(lines)
    finally:
        child.kill()
        child.wait()
        child.stderr.close()
    raise AssertionError("".join(lines[-10:]))


def planned(words: list[str]) -> dict[str, Any]:
    plan: dict[str, Any] = json.loads(run("llamad", "plan", "--json", *words).stdout)
    return plan


def hold_against(plan: dict[str, Any], real: dict[str, dict[str, float]]) -> None:
    """Weights and context of each device to 1 MiB; the whole never too small, and close where it is no bound."""
    bound = any("not proved" in warning for warning in plan["warnings"]) and plan["source"] == "computed"
    assert {device["name"] for device in plan["devices"]} == set(real) - {"host"}
    for device in plan["devices"]:
        there = real[device["name"]]
        for part in ("weights_mib", "context_mib"):
            assert device[part] == pytest.approx(there[part], abs=1.03), f"{part} of {device['name']}, {plan['source']}"
        sums = [sum(sizes[part] for part in set(_PARTS.values())) for sizes in (device, there)]
        assert sums[0] >= sums[1] - _UNDER_MIB, f"{device['name']}, {plan['source']}"
        if not bound:
            assert sums[0] <= sums[1] + max(_OVER_MIB, sums[1] / 50), f"{device['name']}, {plan['source']}"
    assert plan["host"]["context_mib"] == pytest.approx(real["host"]["context_mib"], abs=1.03)


def computed(load: Load, definition: Path) -> dict[str, Any]:
    free = [word for name in load.names for word in ("--gpu", f"{name}=22GiB")]
    plan = planned(["--computed", *free, str(definition)])
    assert [(d["name"], d["layers"]) for d in plan["devices"]] == list(zip(load.names, load.layers, strict=True))
    return plan


@pytest.mark.parametrize("load", LOADED, ids=str)
def test_the_computed_plan_is_what_is_allocated(tmp_path: Path, load: Load) -> None:
    definition = tmp_path / "load.toml"
    definition.write_text(f'model = "{model(load.model)}"\n{load.definition}')
    plan = computed(load, definition)
    hold_against(plan, loaded(plan["args"], len(load.layers)))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("load", SERVED, ids=str)
def test_a_unit_serves_with_every_byte_where_it_was_planned(bed: Bed, load: Load) -> None:
    url = bed.define("load", model=model(load.model), extra=load.definition, vulkan=False)
    bed.ctl("start", "llamad@load", timeout=240)
    # As long as a micro-batch: each other small number of tokens has shaders of its own, to be compiled first.
    prompt = {"prompt": [number % 200 for number in range(512)], "n_predict": 2, "ignore_eos": True}
    code, answer = post(f"{url}/completion", prompt, timeout=240)
    assert code == 200 and answer["tokens_predicted"] == 2
    real = allocated(bed, "load")
    asked = planned(["load"])
    assert asked["source"] == "asked"
    plan = computed(load, ETC / "load.toml")
    hold_against(asked, real)
    hold_against(plan, real)
    status = bed.show("llamad@load", "StatusText")
    assert f"{sum(load.layers)}/{plan['layers_total']} layers on {' and '.join(load.names)}, " in status
    assert bed.events("load", "ready")[-1]["LLAMAD_DEVICE"] == ", ".join(load.names)
    assert not bed.events("load", "placement-mismatch")
