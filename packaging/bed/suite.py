"""packaging/test: unit tests, package, lintian, installation and system tests in booted beds.

The whole suite is shared out to three beds, a file of system tests or all unit tests as one job: most of them wait most
of the time. What measures time (`pytest.mark.alone`) comes last, by itself.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO

from bed import build, container, lanes, package
from bed.container import Bed
from bed.lanes import Ended, Job
from bed.recipe import BUILDER, TEST_PYTHON
from bed.report import BedError, elapsed_s

_UNIT, _SYSTEM = "tests/unit", "tests/system"
_NOTHING_COLLECTED = 5  # pytest's exit status when its filters leave no test
_SYSTEM_TREE = "/build/system"
_BEDS = 3
_MARK = "mark.alone"
# Begun first, so that no bed is left with a long one at the end.
_LONG = ("router_reload", "faults", "lifecycle", "hang", "measure", "reload", "service", "out_of_memory", "real_loads",
         "router_crowd", "router_unit", "ledger", "mistakes")  # fmt: skip
_GIST = re.compile(r"_{4,} |>  |E  |FAILED |ERROR |tests/\S+:\d+: ")
_LAST_WORDS = "echo; echo 'the end of the journal of this bed:'; journalctl --boot --no-pager --lines=60"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of packaging/test; all others are pytest's."""
    parser.usage = "packaging/test [--unit] [--system] [pytest's options and tests/...]"
    parser.description = (
        "The whole test suite in a booted Debian. Options that are not listed here go to pytest."
    )
    parser.add_argument("--unit", action="store_true", help="the unit tests only")
    parser.add_argument("--system", action="store_true", help="package, lintian and the system tests only")


def run(words: argparse.Namespace, for_pytest: Sequence[str], *, source: Path) -> int:
    """Run the suite on the checkout `source`; 0 if everything passed, 1 if not."""
    unit, system = _selected(words, for_pytest)
    shared, alone = _jobs(source, unit, system, _options(for_pytest))
    ended: list[Ended] = []
    with ExitStack() as gone_at_the_end:
        beds: list[Bed] = []

        def boot() -> int:
            root = build.build()
            for number in range(min(_BEDS, len(shared))):
                bed = container.booted(root=root, source=source, number=number)
                beds.append(gone_at_the_end.enter_context(bed))
            return 0

        if _step(ended, "bed", boot) and (system is None or _step(ended, "package", lambda: _packed(beds[0], source))):
            ended += lanes.carry_out(beds, shared)
            ended += lanes.carry_out(beds[:1], alone)
    failed = _failed(ended)
    print(f"\n{_table(ended)}")
    print("".join(f"\n=== {one.name} ===\n{_gist(one.said)}\n" for one in ended if one.name in failed and one.said))
    verdict = f"failed: {', '.join(failed)}" if failed else "passed"
    print(f"packaging/test: {verdict}, in {elapsed_s():.0f} s", flush=True)
    return 1 if failed else 0


def _failed(ended: Sequence[Ended]) -> list[str]:
    """What failed. That filters left a job no test is fine as long as another one had some."""
    tests = [one.status for one in ended if "tests" in one.name]
    forgiven = _NOTHING_COLLECTED if any(status != _NOTHING_COLLECTED for status in tests) else 0
    return [one.name for one in ended if one.status not in (0, forgiven)]


def _gist(said: str) -> str:
    """What pytest said of failed tests, without their sources: whoever reads the end of a long log finds it there."""
    return "\n".join(line for line in said.splitlines() if _GIST.match(line))


def _table(ended: Sequence[Ended]) -> str:
    """One line a job."""
    words = {0: "", _NOTHING_COLLECTED: "no test selected"}
    width = max(len(one.name) for one in ended)
    lines = []
    for one in ended:
        how = words.get(one.status, f"FAILED, status {one.status}")
        lines.append(f"  {one.name:<{width}}{one.took_s:8.1f} s  {how}".rstrip())
    return "\n".join(lines)


def _selected(
    words: argparse.Namespace, for_pytest: Sequence[str]
) -> tuple[list[str] | None, list[str] | None]:
    """The paths to give to the two runs of pytest; None for a run that was not asked for."""
    paths = [word for word in for_pytest if word.startswith("tests/")]
    chosen = []
    for folder, asked, other in (
        ("tests/unit", words.unit, words.system),
        ("tests/system", words.system, words.unit),
    ):
        own = [path for path in paths if path.startswith(folder)]
        wanted = bool(own) if paths else asked or not other
        chosen.append((own or [folder]) if wanted else None)
    return chosen[0], chosen[1]


def _options(for_pytest: Sequence[str]) -> list[str]:
    return [word for word in for_pytest if not word.startswith("tests/")]


def _jobs(
    source: Path, unit: list[str] | None, system: list[str] | None, options: Sequence[str]
) -> tuple[list[Job], list[Job]]:
    """What may run side by side, and what comes after it. Paths that somebody named are one job, as they are."""
    shared, alone = [], []
    system_tests = partial(_system_tests, source=source)
    for kind, paths, job in (("unit tests", unit, _unit_tests), ("system tests", system, system_tests)):
        if paths is None:
            continue
        if paths not in ([_UNIT], [_SYSTEM]):
            shared.append(Job(kind, job([*paths, *options])))
            continue
        files = sorted((source / paths[0]).glob("test_*.py"), key=_longest_first)
        measuring = [str(file.relative_to(source)) for file in files if _MARK in file.read_text()]
        names = [str(file.relative_to(source)) for file in files] if system == paths else paths
        for name in names:
            title = f"{kind}, {Path(name).stem.removeprefix('test_')}" if name != _UNIT else kind
            shared.append(Job(title, job([name, "-m", "not alone", *options])))
        if measuring:
            alone.append(Job(f"{kind} of time", job([*measuring, "-m", "alone", *options])))
    return shared, alone


def _longest_first(file: Path) -> tuple[int, str]:
    name = file.stem.removeprefix("test_")
    return (_LONG.index(name) if name in _LONG else len(_LONG), name)


def _step(ended: list[Ended], name: str, action: Callable[[], int]) -> bool:
    """Carry out what the rest needs; whether it succeeded."""
    ended.append(lanes.done(name, action))
    return ended[-1].status == 0


def _packed(bed: Bed, source: Path) -> int:
    """Have the package built and checked."""
    package.provide(bed, source)
    return 0


def _require_installed(bed: Bed, source: Path) -> None:
    """Install the package unless this bed has it: not before, because unit tests are for a host without one. Raises
    BedError."""
    if bed.output(["test", "-x", "/usr/bin/llamad"])[0] == 0:
        return
    status, said = bed.output(package.install_command(package.provide(bed, source)), timeout_s=300)
    if status != 0:
        msg = f"the package cannot be installed:\n{said}"
        raise BedError(msg)


def _unit_tests(words: Sequence[str]) -> Callable[[Bed, IO[bytes] | None], int]:
    def work(bed: Bed, into: IO[bytes] | None) -> int:
        package.copy_tree(bed)
        return bed.call([TEST_PYTHON, "-m", "pytest", *words], user=BUILDER, folder=package.TREE, into=into)

    return work


def _system_tests(words: Sequence[str], source: Path) -> Callable[[Bed, IO[bytes] | None], int]:
    """Run them as root. Their tree has no llamad in it: what they import is what the package installed."""

    def work(bed: Bed, into: IO[bytes] | None) -> int:
        _require_installed(bed, source)
        package.copy_tree(bed, _SYSTEM_TREE, user="root")
        bed.output(["rm", "-r", f"{_SYSTEM_TREE}/llamad"])
        quiet = {"PYTHONDONTWRITEBYTECODE": "1"}
        command = [TEST_PYTHON, "-m", "pytest", "-p", "no:cacheprovider", *words]
        status = bed.call(command, folder=_SYSTEM_TREE, environment=quiet, into=into)
        if status not in (0, _NOTHING_COLLECTED):
            bed.call(["sh", "-c", _LAST_WORDS], into=into)
        return status

    return work
