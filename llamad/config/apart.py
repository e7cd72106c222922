"""Judging definitions in a process of its own, so that a daemon that runs for months keeps no parser and no schema.

They take a third of its memory, and it needs them only when a definition has changed. What the other process
finds comes back as text, exactly as `kept` writes it down; where there is no such process, or it fails, the
judging is done here as ever.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from llamad import errors
from llamad.config.kept import judge_definition, loaded_of, text_of
from llamad.config.loaded import Loaded
from llamad.errors import ConfigErrors, LlamadError, Where

DEADLINE_S = 10
"""For one definition, in the other process."""
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL")
_PROGRAM = "import sys; sys.path[:] = sys.argv[1:]; from llamad.config.apart import answer; answer()"


class Apart:
    """A `kept.Judge` with the same results and the same errors as `judge_definition`. A context; use it in one thread.

    The process is started with the first definition that must be judged, and ends with the context.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Apart:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # a question that nobody read
                pipe.close()
        process.wait()

    def __call__(self, name: str, file: Path, root: Path, contents: Mapping[Path, bytes]) -> Loaded:
        try:
            found = json.loads(self._ask(_question(name, file, root, contents)))
            problems = [_problem(row) for row in found["problems"]]
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return judge_definition(name, file, root, contents)
        if found["several"]:
            raise ConfigErrors(problems)
        for problem in problems:
            raise problem
        loaded = loaded_of(found["text"], name, file, contents)
        return judge_definition(name, file, root, contents) if loaded is None else loaded

    def _ask(self, question: bytes) -> bytes:
        if self._process is None:
            environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _PROGRAM, *sys.path],
                env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(question)
        self._process.stdin.flush()
        return self._process.stdout.readline()


def _question(name: str, file: Path, root: Path, contents: Mapping[Path, bytes]) -> bytes:
    pairs = [[str(path), data.decode("latin-1")] for path, data in contents.items()]
    return json.dumps([name, str(file), str(root), pairs]).encode("ascii") + b"\n"


def _problem(row: Any) -> LlamadError:
    kind, what, where, why, fix = row
    made = getattr(errors, kind)
    if not (isinstance(made, type) and issubclass(made, LlamadError)):
        raise ValueError(f"{kind} is no error")
    return made(what, where=Where(*where) if where else None, why=why, fix=fix)


# -- the other process ---------------------------------------------------------------------------------------


def answer() -> None:
    """Judge what is asked on stdin, an answer a line on stdout, until stdin ends."""
    sys.excepthook = lambda *_: None  # whoever asked judges by itself, and tells what it meets
    questions, answers = sys.stdin.buffer, sys.stdout.buffer
    for line in questions:
        signal.alarm(DEADLINE_S)
        _answer(line, answers)
        signal.alarm(0)


def _answer(line: bytes, answers: BinaryIO) -> None:
    name, file, root, pairs = json.loads(line)
    contents = {Path(path): data.encode("latin-1") for path, data in pairs}
    problems: list[LlamadError] = []
    text, several = "", False
    try:
        text = text_of(judge_definition(name, Path(file), Path(root), contents))
    except ConfigErrors as error:
        problems, several = error.problems, True
    except LlamadError as error:
        problems = [error]
    rows = [_row(problem) for problem in problems]
    answers.write(json.dumps({"text": text, "problems": rows, "several": several}).encode("ascii") + b"\n")
    answers.flush()


def _row(error: LlamadError) -> list[object]:
    where = error.where
    place = [where.path, where.line, where.column] if where else None
    return [type(error).__name__, error.what, place, error.why, error.fix]
