"""What more slots cost: caches and states of models with windows and recurrent layers, as llama-server printed them.

The figures are those of b11669's own lines (`KV buffer size`, `RS buffer size`, in MiB) for the small models of
tests.support.random_models, with `-np 1`, `-np 4 -kvu` and `-np 4`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from llamad.planning.architectures import shape_of
from llamad.planning.cache import CacheMap
from llamad.planning.choice import Choice
from llamad.service.facts import FactsReader
from llamad.units import MIB
from tests.support.models import build_hollow
from tests.support.random_models import SMALL

# (model, context, micro-batch, cache type) -> MiB of caches and of states with one slot, four that share, four apart
PRINTED: dict[tuple[str, int, int, str], tuple[tuple[float, float], ...]] = {
    ("gemma3", 4096, 512, "f16"): ((7.75, 0), (11.5, 0), (19.0, 0)),
    ("gemma3", 9000, 64, "q8_0"): ((6.11, 0), (8.1, 0), (10.09, 0)),
    ("gpt-oss", 4096, 512, "f16"): ((7.12, 0), (7.5, 0), (10.5, 0)),
    ("gpt-oss", 9000, 64, "q8_0"): ((7.37, 0), (7.77, 0), (7.97, 0)),
    ("qwen35", 4096, 512, "f16"): ((4.0, 0.41), (4.0, 1.64), (4.0, 1.64)),
    ("qwen35", 9000, 64, "q8_0"): ((4.78, 0.41), (4.78, 1.64), (4.78, 1.64)),
    ("granitehybrid", 4096, 512, "f16"): ((4.0, 1.55), (4.0, 6.21), (4.0, 6.21)),
    ("lfm2", 4096, 512, "f16"): ((4.0, 0.01), (4.0, 0.05), (4.0, 0.05)),
    ("lfm2", 9000, 64, "q8_0"): ((4.78, 0.01), (4.78, 0.05), (4.78, 0.05)),
}
SLOTS = ((1, False), (4, True), (4, False))
_PRINTED_TO_MIB = 0.011  # two lines, each rounded to 0.01


@pytest.mark.parametrize("asked", PRINTED, ids=lambda asked: "-".join(map(str, asked)))
def test_caches_and_states_are_those_that_the_server_printed(tmp_path: Path, asked: tuple[str, int, int, str]) -> None:
    name, context, ubatch, cache = asked
    build_hollow(tmp_path / "model.gguf", SMALL[name])
    facts = FactsReader()(str(tmp_path / "model.gguf"))
    shape = shape_of(facts)
    for (slots, unified), printed in zip(SLOTS, PRINTED[asked], strict=True):
        choice = Choice(context, slots, unified, cache, cache, ubatch, ubatch, flash_attention=True, layers=999)
        planned = CacheMap(shape, facts.n_layers).bytes_between(choice, 0, facts.n_layers)
        assert planned / MIB == pytest.approx(sum(printed), abs=_PRINTED_TO_MIB), (slots, unified)
