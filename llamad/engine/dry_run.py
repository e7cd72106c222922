"""Asking the installed llama-server what a plan would take: its first memory breakdown, before it loads a byte.

With the fit left on, llama-server builds the model without memory, prints what each device would hold, and only
then begins to load. It is killed at that line, about 0.1 s after its start. Blocking; call it off the loop.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from llamad.engine.breakdowns import Breakdown
from llamad.engine.log import LogLine, parse_line
from llamad.engine.names import is_host
from llamad.engine.query import QueryResult, run_until
from llamad.errors import ChildError
from llamad.planning.plan import Parts
from llamad.units import MIB

Why = Literal["late", "crashed", "exited", "silent"]


class AskError(ChildError):
    """llama-server gave no breakdown. The plan's computed bytes stand.

    `reason`: `late` past the deadline; `crashed` by a signal (a device that cannot hold one of the tensors aborts
    it: take it as "does not fit"); `exited` with an error, which `why` quotes; `silent` without one.
    """

    def __init__(self, reason: Why, why: str) -> None:
        super().__init__("cannot ask llama-server for its memory breakdown", why=why)
        self.reason: Why = reason


def ask_breakdown(
    server: str, args: Sequence[str], env: Mapping[str, str], deadline_s: float = 5.0, *, drafted: bool = False
) -> Breakdown:
    """The breakdown for `args`, as `flags.dry_run_args` makes them, with the child's names of the devices.

    `drafted`: something guesses ahead, and has an account of its own after that of the model.

    Leaves no process and no socket. Raises AskError, and what `query.run_query` raises for a missing server.
    """
    reader = BreakdownReader(drafted=drafted)
    socket_path = Path(args[args.index("--host") + 1])
    _remove(socket_path)
    try:
        result = run_until([server, *args], env, deadline_s, lambda raw: reader.line(parse_line(raw)))
    finally:
        _remove(socket_path)
    breakdown = reader.breakdown()
    if breakdown is None:
        raise _failure(result, reader, deadline_s)
    return breakdown


def _remove(socket_path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        socket_path.unlink()


def _failure(result: QueryResult, reader: BreakdownReader, deadline_s: float) -> AskError:
    error = reader.first_error
    if result.timed_out:
        return AskError("late", f"no breakdown within {deadline_s:g} s")
    if result.returncode < 0:
        return AskError("crashed", error or f"killed by signal {-result.returncode}")
    if result.returncode > 0:
        return AskError("exited", error or f"exit status {result.returncode}")
    return AskError("silent", "it ended without one")


_ROW = re.compile(r"\w+breakdown_print: \|   - (?P<name>\S+)(?: \(.*\))? +\|(?P<numbers>[-\d =+()]*)\|?$")
_HEADING = "breakdown_print: | memory breakdown [MiB]"


_VISION = re.compile(r"worst-case memory usage of mmproj is (?P<mib>\d+(?:\.\d+)?) MiB")
# After the model's account: a draft's that could not be measured, or that this build does not give.
_NO_DRAFT = ("failed to measure the memory of the extra model", "load_tensors: loading model tensors")


class BreakdownReader:
    """Finds the first whole breakdown in the lines of a log, in either of its forms; the draft's is the second."""

    def __init__(self, *, drafted: bool = False) -> None:
        self._wanted = 2 if drafted else 1
        self._tables: list[_Table] = []
        self._recorded = False
        self._done = False
        self._vision_bytes = 0
        self.first_error = ""

    def line(self, line: LogLine) -> bool:
        """Take in a line; True when the breakdown is complete."""
        if line.level == "error" and not self.first_error:
            self.first_error = line.text
        if line.data is not None and line.data.get("type") == "fit_memory_breakdown":
            self._record(line.data)
        elif _HEADING in line.text:
            self._tables.append(_Table())
            self._recorded = False
        elif self._tables and (row := _ROW.match(line.text)) is not None:
            self._tables[-1].text_row(
                row["name"], [int(number) for number in re.findall(r"-?\d+", row["numbers"])]
            )
        elif whole := self._whole():  # no end mark: the host is the last row but for other host buffers
            self._done = whole >= self._wanted or any(words in line.text for words in _NO_DRAFT)
        elif (vision := _VISION.search(line.text)) is not None:
            self._vision_bytes = round(float(vision["mib"]) * MIB)
        return self._done

    def breakdown(self) -> Breakdown | None:
        """What was found; None if no table came, or none to its end."""
        if not self._whole():
            return None
        table = self._tables[0]
        found = Breakdown(table.devices, table.host, table.memory, vision_bytes=self._vision_bytes)
        if self._wanted > 1 and self._whole() > 1:
            draft = self._tables[1]
            return replace(found, draft=draft.devices, draft_host=draft.host)
        return found

    def _whole(self) -> int:
        """How many tables have come to their end."""
        return sum(table.host_seen for table in self._tables)

    def _record(self, record: Mapping[str, Any]) -> None:
        table = _Table()
        try:
            if record["data"]["unit"] != "MiB":
                return
            for row in record["data"]["rows"]:
                table.json_row(row)
        except (LookupError, TypeError, ValueError):
            return  # another form than is known: the text table that comes before it still counts
        if not table.host_seen:
            return
        if self._tables and not self._recorded:  # the same as the text table before it
            self._tables[-1] = table
        else:
            self._tables.append(table)
        self._recorded = True
        self._done = self._whole() >= self._wanted


class _Table:
    """The rows of one breakdown."""

    def __init__(self) -> None:
        self.devices: dict[str, Parts] = {}
        self.memory: dict[str, tuple[int, int]] = {}
        self.host = Parts()
        self.host_seen = False

    def text_row(self, name: str, numbers: list[int]) -> None:
        """`total = free + (self = model + context + compute) + unaccounted`; of a host row only `self = ...`."""
        if is_host(name) and len(numbers) >= 4:
            self._add_host(*numbers[1:4])
        elif len(numbers) >= 6:
            self._add_device(name, *numbers[:2], *numbers[3:6])

    def json_row(self, row: Mapping[str, Any]) -> None:
        """Raises LookupError, TypeError or ValueError where it is no row."""
        model, context, compute = (int(row[part]) for part in ("model", "context", "compute"))
        if row["kind"] == "device":
            self._add_device(str(row["name"]), int(row["total"]), int(row["free"]), model, context, compute)
        elif is_host(str(row["name"])):
            self._add_host(model, context, compute)

    def _add_device(self, name: str, total: int, free: int, model: int, context: int, compute: int) -> None:
        self.devices[name] = Parts(model * MIB, context * MIB, compute * MIB)
        self.memory[name] = (total * MIB, free * MIB)

    def _add_host(self, model: int, context: int, compute: int) -> None:
        self.host_seen = True
        self.host = Parts(
            self.host.weights_bytes + model * MIB,
            self.host.context_bytes + context * MIB,
            self.host.compute_bytes + compute * MIB,
        )
