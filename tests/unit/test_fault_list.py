"""Every row of the list of faults has tests that exist, and a deadline in each; nothing is provoked that has no row."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.support.faults import FAULTS, Fault

TESTS = Path(__file__).parents[1]
PROVOKED = "system/test_faults.py"


@cache
def functions_in(file: str) -> frozenset[str]:
    tree = ast.parse((TESTS / file).read_text())
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@cache
def provocations() -> dict[str, str]:
    """Row by name, as the decorators have it: the modules themselves are for a booted machine."""
    found = {}
    for file in ("support/provoke_engine.py", "support/provoke_host.py"):
        for node in ast.parse((TESTS / file).read_text()).body:
            for mark in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
                if isinstance(mark, ast.Call) and isinstance(mark.func, ast.Name) and mark.func.id == "provokes":
                    row = mark.args[0]
                    assert isinstance(node, ast.FunctionDef) and isinstance(row, ast.Constant)
                    found[node.name.replace("_", "-")] = str(row.value)
    return found


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_row_is_held_by_tests_that_exist(fault: Fault) -> None:
    assert fault.tests or fault.needs_gpu or fault.not_yet
    for test in fault.tests:
        file, _, name = test.partition("::")
        if file == PROVOKED:
            assert provocations().get(name) == fault.name, test
        else:
            assert name in functions_in(file), test


def test_what_is_provoked_has_a_row_that_names_it() -> None:
    named = {test.partition("::")[2] for fault in FAULTS for test in fault.tests if test.startswith(PROVOKED)}
    assert set(provocations()) == named
    assert {"test_a_fault_is_survived", "test_the_bench_prints_a_table"} <= functions_in(PROVOKED)


def test_names_are_used_once() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert [fault.name for fault in FAULTS if fault.not_yet] == []
    assert [fault.name for fault in FAULTS if not fault.tests and fault.needs_gpu] == ["suspend"]
