"""Dashboard, rules and documents name series, labels and values that the code has; Prometheus' own tests of the rules."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from llamad.front.metrics import Family
from llamad.front.settings import Outcome
from llamad.supervision.machine import State
from tests.support.http import scenario
from tests.unit.test_export import accepted, program
from tests.unit.test_metrics import model_figures

ROOT = Path(__file__).parents[2]
OBSERVABILITY = ROOT / "packaging/observability"
RULES = OBSERVABILITY / "prometheus/llamad.rules.yml"
RULE_TESTS = OBSERVABILITY / "prometheus/llamad.rules.test.yml"
DOCUMENTS = (ROOT / "docs/address.md", ROOT / "docs/monitoring.md")
SUFFIXES = ("_bucket", "_sum", "_count")
GRAFANA = ("$__rate_interval", "$__range", "$instance", "$model")


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((OBSERVABILITY / "grafana/llamad.json").read_text())
    return found


def expressions() -> list[str]:
    return [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())]


def series_of(families: list[Family]) -> set[str]:
    return {family.name + suffix for family in families for suffix in ("", *(s for s, _, _ in family.samples))}


def child_series() -> set[str]:
    """What llama-server of build 11669 says, by its own names; each is shown as `llamacpp_...`."""
    counters = "prompt_tokens prompt_seconds tokens_predicted tokens_predicted_seconds n_decode"
    gauges = "n_tokens_max prompt_tokens_seconds predicted_tokens_seconds requests_processing requests_deferred"
    names = [f"{name}_total" for name in counters.split()] + [*gauges.split(), "n_busy_slots_per_decode"]
    return {f"llamacpp:{name}" for name in names}


def named(text: str) -> set[str]:
    """Series of llamad in PromQL, without names that a recording rule makes."""
    return set(re.findall(r"(?<![:\w])llamad_[a-z_]+(?![:\w])", text))


@scenario
async def test_every_series_that_is_named_exists_and_every_one_is_documented() -> None:
    families = await model_figures().families()
    there = series_of(families)
    for text in ("\n".join(expressions()), RULES.read_text(), RULE_TESTS.read_text()):
        assert named(text) and named(text) <= there, named(text) - there
    assert {"llamad_state", "llamad_restarts_total"} <= named("\n".join(expressions()))
    for path in DOCUMENTS:
        written = named(path.read_text())
        assert written and written <= there, (path.name, written - there)
    own = set(re.findall(r"llamacpp[_:][a-z_]+", "\n".join(expressions())))
    assert own and {name.replace("_", ":", 1) for name in own} <= child_series(), own
    documented = set(re.findall(r"`(llamad_[a-z_]+)", DOCUMENTS[0].read_text()))
    assert {family.name for family in families} <= documented


@scenario
async def test_labels_and_their_values_exist() -> None:
    families = {family.name: family for family in await model_figures().families()}
    text = "\n".join(expressions()) + RULES.read_text()
    values = {"outcome": {str(one.value) for one in Outcome}, "state": {str(one) for one in State}}
    values["kind"] = {"prompt", "cached", "output"}
    values["result"] = {"hit", "miss"}
    looked: set[str] = set()
    for name, selector in re.findall(r"(llamad_[a-z_]+)\{([^}]*)\}", text):
        family = families.get(re.sub("(_bucket|_sum|_count)$", "", name)) or families[name]
        own = {label for _, labels, _ in family.samples for label, _ in labels} | {"instance"}
        for label, value in re.findall(r'(\w+)[=!]~?"([^"]*)"', selector):
            assert label in own, f"{name} has no label {label}"
            if not value.startswith("$"):
                looked.add(label)
                assert set(value.split("|")) <= values[label], (name, label, value)
    assert looked >= {"outcome", "state", "kind", "result"}


def test_a_counter_is_there_before_it_counts() -> None:
    """Of a series that begins with 1 Prometheus sees no increase."""
    counts = model_figures().events.restarts
    assert counts["crash"] == 1 and counts["killed"] == 0 and "killed" in counts


def test_the_dashboard_can_be_chosen_by_instance_and_model() -> None:
    made = dashboard()
    variables = {one["name"]: one for one in made["templating"]["list"]}
    assert set(variables) == {"datasource", "instance", "model"}
    assert all(variables[name]["multi"] and variables[name]["includeAll"] for name in ("instance", "model"))
    panels = [panel for panel in made["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in made["panels"]}) == len(made["panels"])
    for panel in panels:
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
        assert panel["targets"] and all("__interval" not in one["expr"].replace("$__rate_interval", "") for one in panel["targets"])
    assert all('instance=~"$instance",model=~"$model"' in expression for expression in expressions())


def test_no_two_panels_lie_on_each_other() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        for cell in ((x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])):
            assert cell not in taken, (panel["title"], taken[cell])
            taken[cell] = panel["title"]
        assert place["x"] + place["w"] <= 24


def test_promtool_accepts_the_rules_and_their_tests_hold(tmp_path: Path) -> None:
    promtool = program("promtool")
    accepted(promtool, "check", "rules", "--lint=all", "--lint-fatal", str(RULES))
    accepted(promtool, "test", "rules", str(RULE_TESTS))
    broken = tmp_path / "llamad.rules.yml"
    broken.write_text(RULES.read_text().replace("> 2.5", "> 25"))
    (tmp_path / RULE_TESTS.name).write_text(RULE_TESTS.read_text())
    done = subprocess.run([promtool, "test", "rules", tmp_path / RULE_TESTS.name], capture_output=True, check=False, timeout=60)
    assert done.returncode != 0


def test_every_rule_has_a_test() -> None:
    tests = RULE_TESTS.read_text()
    alerts = re.findall(r"- alert: (\w+)", RULES.read_text())
    records = re.findall(r"- record: (\S+)", RULES.read_text())
    assert len(alerts) >= 10 and len(records) >= 6
    fired = set(re.findall(r"- alertname: (\w+)\n.*\n +exp_alerts:", tests))
    quiet = set(re.findall(r"- \{alertname: (\w+), ", tests))
    assert set(alerts) == fired == quiet
    used = RULES.read_text().partition("llamad-alerts")[2]
    assert [record for record in records if record not in tests and record not in used] == []


@pytest.mark.parametrize("name", ["journal", "monitoring"])
def test_recipes_name_events_and_fields_that_exist(name: str) -> None:
    text = (ROOT / f"docs/{name}.md").read_text()
    events = (ROOT / "docs/events.md").read_text()
    for event in re.findall(r"LLAMAD_EVENT=([a-z-]+)", text):
        assert f"| `{event}` |" in events, event
    fields = set(re.findall(r"LLAMAD_([A-Z_]+)", text)) - {"EVENT", "MODEL"}
    assert all(re.search(rf"\b{field}\b", events) for field in fields), fields
