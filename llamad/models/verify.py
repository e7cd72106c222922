"""Whether the files of a model are whole: their structure in milliseconds, every byte of them against a known hash.

Files are hostile: headers are read with the limits of `llamad.gguf`, bytes are hashed and never believed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from llamad.errors import BadModelError, ExitCode, LlamadError, ModelMissingError, os_error
from llamad.frozen import dataclass
from llamad.gguf.header import Header
from llamad.gguf.identity import shard_of, shard_path
from llamad.gguf.read import file_type, kind_of, model_facts
from llamad.gguf.shards import read_model
from llamad.models.choose import HubFile
from llamad.models.fetch import sha256_of
from llamad.models.sums import written_sum
from llamad.text import shown

Show = Callable[[str, int, int], None]
"""Name of a file, bytes that were read, its size."""
_SEVERITY = (ExitCode.BAD_MODEL, ExitCode.NO_MODEL_FILE, ExitCode.NO_PERMISSION, ExitCode.TEMPORARY)


@dataclass(frozen=True)
class FileReport:
    """One file. `sha256` is empty where it was not hashed; `against` names what holds the hash it should have."""

    path: str
    size_bytes: int
    sha256: str = ""
    against: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Report:
    """One model or other GGUF file, from all its shards; `problem` is empty where nothing is wrong with it."""

    path: str
    kind: str = ""
    architecture: str = ""
    quantisation: str = ""
    files: tuple[FileReport, ...] = ()
    problem: str = ""
    fix: str = ""
    exit_code: int = 0
    notes: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """All shards together."""
        return sum(file.size_bytes for file in self.files)

    @property
    def proved(self) -> bool:
        """Whether every byte of it is the one that a hash promises."""
        return (
            not self.problem
            and bool(self.files)
            and all(file.sha256 and file.against for file in self.files)
        )

    def content(self) -> dict[str, object]:
        """For `--json`."""
        return {
            "path": self.path,
            "good": not self.problem,
            "proved": self.proved,
            "problem": self.problem,
            "fix": self.fix,
            "kind": self.kind,
            "architecture": self.architecture,
            "quantisation": self.quantisation,
            "size_bytes": self.size_bytes,
            "notes": list(self.notes),
            "files": [
                {
                    "path": file.path,
                    "size_bytes": file.size_bytes,
                    "sha256": file.sha256,
                    "against": file.against,
                    "problem": file.problem,
                }
                for file in self.files
            ],
        }


def verify(
    path: str, show: Show, *, full: bool, published: Sequence[HubFile] | None = None, hub: str = ""
) -> Report:
    """Look at one model, given by any of its shards. Raises nothing for a file that is bad, missing or not readable.

    Without `full` only headers and sizes are read. A hash is looked for among what `hub` has `published`, else beside
    the file (`FILE.sha256`, `SHA256SUMS`).
    """
    first = _first(path)
    try:
        headers = read_model(first)
        report = _structure(first, headers)
        files = tuple(_file(header, show, full=full, published=published, hub=hub) for header in headers)
    except LlamadError as error:
        where = str(error.where) if error.where is not None and str(error.where) != first else ""
        why = ": ".join(filter(None, (where, error.why or error.what)))
        return Report(first, problem=shown(why, 500), fix=error.fix, exit_code=int(error.exit_code))
    bad = next((file for file in files if file.problem), None)
    if bad is not None:
        why = bad.problem if len(files) == 1 else f"{bad.path}: {bad.problem}"
        fix, code = "fetch it again: llamad pull", int(ExitCode.BAD_MODEL)
        return replace(report, files=files, problem=shown(why, 500), fix=fix, exit_code=code)
    return replace(report, files=files)


def exit_code(reports: Sequence[Report]) -> int:
    """Of all: what is worst. A damaged file before one that is missing or cannot be read."""
    codes = {report.exit_code for report in reports} - {0}
    return int(next((code for code in _SEVERITY if code in codes), min(codes, default=0)))


def _first(path: str) -> str:
    shard = shard_of(path)
    return shard_path(shard[0], 1, shard[2]) if shard is not None else path


def _structure(path: str, headers: tuple[Header, ...]) -> Report:
    """What it is, once nothing is wrong with its headers. Raises BadModelError."""
    first = headers[0]
    tensors = tuple(tensor for header in headers for tensor in header.tensors)
    kind = kind_of(first, tensors)
    for header in headers:
        if header.warnings:
            why = header.warnings[0].rpartition(": ")[2]
            raise BadModelError(
                "cannot use this model", why=f"llama-server refuses it: {why}", fix="fetch it again"
            )
    if kind == "model":
        model_facts(headers)
    notes = [
        f"{shown(os.path.basename(header.path), 200)}: {behind} bytes after the last tensor"
        for header in headers
        if (behind := header.file_bytes - header.needs_bytes) > header.alignment
    ]
    quantisation = file_type(first, tensors) if tensors else ""
    architecture = first.text("general.architecture")
    return Report(path, kind, shown(architecture), quantisation, notes=tuple(notes))


def _file(
    header: Header, show: Show, *, full: bool, published: Sequence[HubFile] | None, hub: str
) -> FileReport:
    path, size_bytes = Path(header.path), header.file_bytes
    expected, against = "", ""
    if published is not None:
        there = [file for file in published if file.path.rpartition("/")[2] == path.name]
        there = [file for file in there if file.size_bytes == size_bytes] or there
        if not there:
            return FileReport(header.path, size_bytes, problem=f"{hub} publishes no file of this name")
        if there[0].size_bytes != size_bytes:
            why = f"it has {size_bytes} bytes, {hub} publishes {there[0].size_bytes}"
            return FileReport(header.path, size_bytes, problem=why)
        expected, against = there[0].sha256, hub if there[0].sha256 else ""
    elif (written := written_sum(path)) is not None:
        expected, against = written[0], str(written[1])
    if not full:
        return FileReport(header.path, size_bytes, against=against)
    try:
        found = sha256_of(path, lambda done: show(path.name, done, size_bytes))
    except FileNotFoundError as error:
        raise ModelMissingError("it was removed while it was read") from error
    except OSError as error:
        raise os_error("cannot read it now", error, "check the disk or the network mount") from error
    problem = f"its SHA-256 is {found}, {against} says {expected}" if expected and found != expected else ""
    return FileReport(header.path, size_bytes, found, against, problem)


def summary(report: Report) -> str:
    """One line, as `llamad verify` prints it."""
    name = shown(report.path, 300)
    if report.problem:
        return f"BAD   {name}: {report.problem}"
    hashed = [file for file in report.files if file.sha256]
    if report.proved:
        words = f"every byte as {shown(report.files[0].against, 300)} says"
    elif hashed:
        words = f"whole; no hash is known to compare with: {hashed[0].sha256}"
    elif all(file.against for file in report.files):
        words = "whole by its headers; --full compares every byte with the known hash"
    else:
        words = "whole by its headers; no hash of it is known"
    return f"good  {name}: {words}"
