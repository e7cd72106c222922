"""`llamad bench NAME`: how fast a model reads and writes, through its real address."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from llamad.cli.unprivileged import own_command, run_as_service
from llamad.config.load import load_definition
from llamad.errors import os_error
from llamad.measure.report import bench_text
from llamad.measure.results import BenchResult, read_result
from llamad.measure.runner import BenchOptions, Here, run_bench, to_end
from llamad.measure.subject import find_service, given_key

SPARE_S = 120.0
"""What starting and stopping may take beyond the time that is given."""


def run(args: argparse.Namespace) -> int:
    """Measure; print a table or JSON, write `-o`."""
    loaded = load_definition(args.name, args.config)
    key = given_key(args.key_file)
    if os.geteuid() == 0:
        service = find_service(loaded, os.environ, key)
        key = service.target.key if service else key
        words = [*_same_words(args), *(["--key-file", "-"] if key else [])]
        limit_s = 2 * args.timeout + SPARE_S  # starting may take the time, and measuring again
        code, text = run_as_service(
            args.config, words, args.name, sandboxed=service is None, words=f"{key or ''}\n", limit_s=limit_s
        )
        if code:
            return code
        result = read_result(BenchResult, text)
    else:
        options = BenchOptions(
            args.prompt or BenchOptions.prompts_tokens, args.concurrency, args.generate, args.repeats, args.timeout, key
        )
        here = Here(loaded, args.config.absolute(), own_command(), os.environ)
        result = to_end(run_bench(here, options, progress))
    text = result.model_dump_json(indent=2) + "\n"
    if args.output:
        write_output(Path(args.output), text)
    print(text if args.json else bench_text(result), end="")
    return 0


def progress(text: str) -> None:
    """A line of what is going on, where somebody looks at it."""
    import sys

    print(f"... {text}", file=sys.stderr, flush=True)


def write_output(path: Path, text: str) -> None:
    """Replace a file by the result, whole or not at all. Raises AccessError, BusyError."""
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    try:
        try:
            # Root may name a folder in which others can put links.
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                file.write(text)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise os_error(f"cannot write {path}", error, "choose another file") from error


def _same_words(args: argparse.Namespace) -> list[str]:
    words = ["bench", args.name, "--json", f"--generate={args.generate}", f"--repeats={args.repeats}"]
    words += [f"--timeout={args.timeout:g}s", *(f"--prompt={tokens}" for tokens in args.prompt)]
    words += [f"--concurrency={count}" for count in args.concurrency]
    return words


