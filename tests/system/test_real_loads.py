"""Every kind of layer in real units: what a plan says of each device is what llama-server allocates there.

Small models with random weights on the software Vulkan device: whole on one device, spread over two, and partly on
the CPU. The truth is what the running child logged about itself.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.random_models import SMALL, build_random
from tests.system.conftest import ETC, MODELS, Bed, post, run

SEED = Path("/usr/local/lib/bed/shaders/mesa_shader_cache")
_BUFFER = re.compile(r"\w+: +(?P<place>[A-Za-z]+\d*)(?P<host>\w*) +(?P<kind>model|KV|RS|compute) buffer size += +(?P<mib>[\d.]+) MiB")
_PARTS = {"model": "weights_mib", "KV": "context_mib", "RS": "context_mib", "compute": "compute_mib"}
_TWO = "tensor_split = [1, 1]"
pytestmark = pytest.mark.timeout(300)
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


LOADS = (
    Load("llama", (3,), "gpu_layers = 3", cpu=True),
    Load("llama", (2, 1), f"gpu_layers = 3\n{_TWO}", cpu=True),
    Load("llama", (7, 2), 'gpus = ["Vulkan1", "Vulkan0"]\ntensor_split = [3, 1]'),
    Load("gemma3", (13,)),
    Load("gemma3", (7, 6), f"{_TWO}\nparallel = 4"),
    Load("gpt-oss", (4, 3), f"{_TWO}\nn_cpu_moe = 2", cpu=True),
    Load("qwen3moe", (4, 3), _TWO),
    Load("qwen3moe", (7,), "n_cpu_moe = 4", cpu=True),
    Load("deepseek2", (4, 3), _TWO),
    Load("lfm2", (9,)),
    Load("lfm2", (5, 4), f"{_TWO}\nparallel = 4"),
    Load("qwen35", (5, 4), _TWO),
)


def model(name: str) -> Path:
    path = MODELS / f"random-{name}.gguf"
    if not path.exists():
        build_random(path, SMALL[name])
        path.chmod(0o644)
    return path


def keep_shaders(name: str) -> None:
    """What this model made the software device compile need not be compiled again for the next one."""
    for path in Path(f"/var/cache/llamad/{name}/mesa_shader_cache").rglob("*"):
        kept = SEED / path.relative_to(f"/var/cache/llamad/{name}/mesa_shader_cache")
        if path.is_file():
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, kept)


def allocated(bed: Bed, name: str) -> dict[str, dict[str, float]]:
    """MiB of each device, and of the host, by the last child's own lines."""
    found: dict[str, dict[str, float]] = {}
    for record in bed.journal(f"SYSLOG_IDENTIFIER=llama-server@{name}"):
        if (line := _BUFFER.search(str(record["MESSAGE"]))) is None:
            continue
        place = "host" if line["host"] or line["place"] == "CPU" else line["place"]
        part = _PARTS[line["kind"]]
        sizes = found.setdefault(place, dict.fromkeys(_PARTS.values(), 0.0))
        sizes[part] += float(line["mib"])
    return found


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


@pytest.mark.parametrize("load", LOADS, ids=str)
def test_the_plan_is_what_is_allocated(bed: Bed, load: Load) -> None:
    url = bed.define("load", model=model(load.model), extra=load.definition, vulkan=False)
    bed.ctl("start", "llamad@load", timeout=240)
    # As long as a micro-batch: each other small number of tokens has shaders of its own, to be compiled first.
    question = {"prompt": [number % 200 for number in range(512)], "n_predict": 2, "ignore_eos": True}
    code, answer = post(f"{url}/completion", question, timeout=240)
    keep_shaders("load")
    assert code == 200 and answer["tokens_predicted"] == 2
    names = load.names
    real = allocated(bed, "load")
    asked = planned(["load"])
    assert asked["source"] == "asked"
    free = [word for name in names for word in ("--gpu", f"{name}=22GiB")]
    computed = planned(["--computed", *free, str(ETC / "load.toml")])
    for plan in (asked, computed):
        assert [(d["name"], d["layers"]) for d in plan["devices"]] == list(zip(names, load.layers, strict=True))
        hold_against(plan, real)
    status = bed.show("llamad@load", "StatusText")
    total = computed["layers_total"]
    assert f"{sum(load.layers)}/{total} layers on {' and '.join(names)}, " in status
    assert bed.events("load", "ready")[-1]["LLAMAD_DEVICE"] == ", ".join(names)
    assert not bed.events("load", "placement-mismatch")
