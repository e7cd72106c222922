"""packaging/test: unit tests, package, lintian, installation and system tests in a booted bed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bed import build, container, package
from bed.container import Bed
from bed.recipe import BUILDER, TEST_PYTHON
from bed.report import BedError, elapsed_s, say

_NOTHING_COLLECTED = 5  # pytest's exit status when its filters leave no test
_SYSTEM_TREE = "/build/system"


@dataclass
class _Phases:
    """What was done, how long it took and how it ended."""

    done: list[tuple[str, float, int]] = field(default_factory=list)

    def do(self, name: str, action: Callable[[], int]) -> int:
        """Carry out one phase; its exit status. A BedError is told and counts as status 1."""
        say(f"--- {name}")
        began_s = elapsed_s()
        try:
            status = action()
        except BedError as error:
            print(f"packaging/test: {error}", file=sys.stderr)
            status = error.exit_status
        self.done.append((name, elapsed_s() - began_s, status))
        return status

    def failed(self) -> list[str]:
        """The phases that failed. That filters left a phase no test is fine as long as another one had some."""
        tests = [status for name, _, status in self.done if name.endswith("tests")]
        forgiven = _NOTHING_COLLECTED if any(status != _NOTHING_COLLECTED for status in tests) else 0
        return [name for name, _, status in self.done if status not in (0, forgiven)]

    def table(self) -> str:
        """One line a phase."""
        words = {0: "", _NOTHING_COLLECTED: "no test selected"}
        lines = [
            f"  {name:<14}{took_s:7.1f} s  {words.get(status, f'FAILED, status {status}')}".rstrip()
            for name, took_s, status in self.done
        ]
        return "\n".join(lines)


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
    phases = _Phases()
    beds: list[Bed] = []
    with ExitStack() as gone_at_the_end:

        def boot() -> int:
            root = build.build()
            beds.append(gone_at_the_end.enter_context(container.booted(root=root, source=source)))
            return 0

        if phases.do("bed", boot) == 0:
            if unit is not None:
                phases.do("unit tests", lambda: _unit_tests(beds[0], [*unit, *_options(for_pytest)]))
            if system is not None:
                _system_phases(phases, beds[0], source, [*system, *_options(for_pytest)])
    failed = phases.failed()
    print(f"\n{phases.table()}")
    verdict = f"failed: {', '.join(failed)}" if failed else "passed"
    print(f"packaging/test: {verdict}, in {elapsed_s():.0f} s", flush=True)
    return 1 if failed else 0


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


def _unit_tests(bed: Bed, words: Sequence[str]) -> int:
    package.copy_tree(bed)
    return bed.call([TEST_PYTHON, "-m", "pytest", *words], user=BUILDER, folder=package.TREE)


def _system_phases(phases: _Phases, bed: Bed, source: Path, words: Sequence[str]) -> None:
    built: list[str] = []

    def provide() -> int:
        built.append(package.provide(bed, source))
        return 0

    if phases.do("package", provide) == 0 and phases.do("install", lambda: _install(bed, built[0])) == 0:
        phases.do("system tests", lambda: _system_tests(bed, words))


def _install(bed: Bed, deb: str) -> int:
    status, said = bed.output(package.install_command(deb), timeout_s=300)
    if status != 0:
        print(said)
    return status


def _system_tests(bed: Bed, words: Sequence[str]) -> int:
    """Run them as root. Their tree has no llamad in it: what they import is what the package installed."""
    package.copy_tree(bed, _SYSTEM_TREE, user="root")
    bed.output(["rm", "-r", f"{_SYSTEM_TREE}/llamad"])
    quiet = {"PYTHONDONTWRITEBYTECODE": "1"}
    command = [TEST_PYTHON, "-m", "pytest", "-p", "no:cacheprovider", *words]
    status = bed.call(command, folder=_SYSTEM_TREE, environment=quiet)
    if status not in (0, _NOTHING_COLLECTED):
        _, journal = bed.output(["journalctl", "--boot", "--no-pager", "--lines=60"])
        print(f"\nthe end of the bed's journal:\n{journal}")
    return status
