"""`llamad plan` beside running models: its own bytes are free again, those promised to others are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamad.config.definition import Definition, Host
from llamad.config.loaded import Loaded
from llamad.errors import LlamadError
from llamad.ledger.lease import HOST, Lease, Phase
from llamad.service.onlooker import Onlooker
from llamad.service.planner import PlanMaker
from llamad.units import GIB
from tests.support.models import build_hollow
from tests.support.planning import card
from tests.support.shapes import LLAMA31_8B


def lease(name: str, phase: Phase, promised_gib: float, visible_gib: float = 0.0) -> Lease:
    promised, visible = ({"GPU-1": int(size * GIB), HOST: GIB} for size in (promised_gib, visible_gib))
    return Lease(name, phase, id=name, promised=promised, visible=visible)


def test_bytes_of_its_own_are_free_again() -> None:
    device = card("CUDA0", 4, total_gib=16, uuid="GPU-1")
    own = lease("phi4", Phase.SETTLED, 9, 8)
    (seen,) = Onlooker("phi4", [own, lease("other", Phase.SETTLED, 3, 3)]).devices([device])
    assert seen.free_bytes == 12 * GIB
    (full,) = Onlooker("phi4", [lease("phi4", Phase.SETTLED, 20, 20)]).devices([device])
    assert full.free_bytes == device.total_bytes


@pytest.mark.parametrize(
    ("phase", "gib"), [(Phase.PROMISED, 5), (Phase.LOADING, 3), (Phase.RETURNING, 5), (Phase.WAITING, 0)]
)
def test_what_others_have_still_to_take_is_not_free(phase: Phase, gib: int) -> None:
    onlooker = Onlooker("phi4", [lease("other", phase, 5, 2), lease("phi4", Phase.PROMISED, 7)])
    assert onlooker.reserved() == ({"GPU-1": gib * GIB} if gib else {})


def test_the_plan_leaves_others_what_they_were_promised(tmp_path: Path) -> None:
    model = str(build_hollow(tmp_path / "m.gguf", LLAMA31_8B))
    loaded = Loaded("phi4", tmp_path / "phi4.toml", Definition(model=model), Host(), {}, frozenset(), (), "x")
    device = card("CUDA0", 12, uuid="GPU-1")

    def context(*leases: Lease) -> int:
        maker = PlanMaker(loaded, engine=tmp_path, cache=tmp_path, onlooker=Onlooker("phi4", leases))
        return maker.make([device], computed=True).plan.context_tokens

    alone = context()
    beside = context(lease("other", Phase.PROMISED, 2))
    assert beside < alone
    assert context(lease("other", Phase.SETTLED, 2, 2)) == alone  # the driver's figures lack it already
    with pytest.raises(LlamadError, match="of which 1024 MiB may be used"):
        context(lease("other", Phase.PROMISED, 11))
