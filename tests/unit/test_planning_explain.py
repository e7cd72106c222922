"""A plan as text and as JSON."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from llamad.config.definition import Placement
from llamad.planning.explain import WIDTH, explain
from llamad.planning.plan import BuildGates, Plan
from llamad.planning.solve import plan
from llamad.units import GIB, MIB
from tests.support.planning import HOST, card, facts_of
from tests.support.shapes import LLAMA31_8B, PHI4_14B

ARGS = [
    "-m", "/srv/models/a model.gguf", "-c", "16384", "-np", "4", "-kvu", "--device", "CUDA0", "-b", "512",
    "--host", "/run/llamad/model/phi4/server.sock", "--no-ui", "--offline",
]  # fmt: skip


def planned(free_gib: float = 9.5, total_gib: float = 15.6) -> Plan:
    device = card("CUDA0", free_gib, total_gib=total_gib)
    return plan(facts_of(LLAMA31_8B), [device], HOST, Placement(), frozenset(), BuildGates())


CPU_PLAN = plan(facts_of(PHI4_14B), [], HOST, Placement(allow_cpu=True), frozenset(), BuildGates())


@pytest.mark.parametrize("found", [planned(), CPU_PLAN], ids=["gpu", "cpu"])
def test_plain_ascii_in_80_columns(found: Plan) -> None:
    text = explain(found, ARGS)
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "\x1b" not in text


def test_every_byte_is_in_the_table() -> None:
    found = planned()
    parts = found.devices[0].parts
    (row,) = (line for line in explain(found).splitlines() if line.startswith("CUDA0  ") and "[" not in line)
    sizes = (
        parts.weights_bytes, parts.context_bytes, parts.compute_bytes, parts.overhead_bytes, parts.margin_bytes,
        parts.total_bytes, int(9.5 * GIB),
    )  # fmt: skip
    assert row.split()[1:] == [f"{size / MIB:.1f}" for size in sizes]


def test_the_bar_shows_others_this_model_and_what_is_left() -> None:
    found = planned(9.5, 15.6)
    (bar,) = re.findall(r"\[([x#+.]{50})\]", explain(found))
    assert bar.count("x") == round(6.1 / 15.6 * 50)
    assert bar == "".join(sorted(bar, key="x#+.".index))
    used = found.devices[0].parts.total_bytes / (15.6 * GIB) * 50
    assert bar.count("#") + bar.count("+") == pytest.approx(used, abs=1)


def test_next_larger_context_and_reasons() -> None:
    found = planned()
    text = explain(found)
    assert found.next_context is not None
    need = -(-found.next_context.missing_bytes // MIB)
    assert f"next larger context: {found.next_context.context_tokens} needs {need} MiB more on CUDA0" in text
    for reason in found.reasons:
        assert f"  {reason.topic} " in text


def test_the_command_can_be_pasted() -> None:
    text = explain(planned(), ARGS)
    command = text[text.index("llama-server ") : text.index("\n\nWhy:")].replace("\\\n", "")
    assert " ".join(command.split()) == (
        "llama-server -m '/srv/models/a model.gguf' -c 16384 -np 4 -kvu --device CUDA0 -b 512"
        " --host /run/llamad/model/phi4/server.sock --no-ui --offline"
    )
    assert "llama-server" not in explain(planned())


def test_warnings_are_shown() -> None:
    assert "Warnings:\n  - take care\n" in explain(replace(planned(), warnings=("take care",)))
    assert "Warnings" not in explain(planned())


def test_a_hostile_name_does_not_reach_the_terminal() -> None:
    text = explain(replace(planned(), model="/srv/\x1b[31mevil\n\u202e.gguf"))
    assert "\x1b" not in text
    assert text.startswith("/srv/?[31mevil??.gguf\n")


def test_json() -> None:
    found = json.loads(json.dumps(planned().to_json(ARGS)))
    assert set(found) >= {
        "model",
        "context_tokens",
        "slots",
        "layers",
        "devices",
        "host",
        "args",
        "reasons",
        "source",
    }
    (device,) = found["devices"]
    parts = ["weights_mib", "context_mib", "compute_mib", "overhead_mib", "margin_mib"]
    assert set(found["host"]) == {"name", *parts, "total_mib", "free_mib"} == set(device) - {"layers"}
    assert device["total_mib"] == pytest.approx(sum(device[part] for part in parts), abs=0.05)
    assert found["args"] == ARGS
    assert found["source"] == "computed"
