"""A unit that is stopped for a measurement and started again, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterable, Iterator

from llamad.errors import BusyError, UsageError

ENDS = (signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def stopped(name: str, by: str) -> Iterator[None]:
    """Stop `llamad@NAME`, and start it again at the end. Raises UsageError for what is not a unit's, BusyError."""
    unit = f"llamad@{name}.service"
    active = _systemctl("is-active", "--quiet", unit)
    if by != "unit" or active.returncode:
        raise UsageError(f"{name} is served by no unit of its own: --stop cannot stop it",
                         fix="stop what serves it, or tune it beside that")  # fmt: skip
    with ends_interrupt():
        try:  # also while it stops, which takes its time
            done = _systemctl("stop", unit)
            if done.returncode:
                raise BusyError(f"{unit} could not be stopped", why=done.stderr.strip(), fix=f"systemctl status {unit}")
            yield
        finally:
            started = _systemctl("start", "--no-block", unit)
    if started.returncode:
        raise BusyError(f"{unit} could not be started again", why=started.stderr.strip(), fix=f"systemctl start {unit}")


@contextlib.contextmanager
def ends_interrupt() -> Iterator[None]:
    """A SIGTERM, or a terminal that is gone, is taken as Ctrl-C is: what was begun is undone before we end."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in heard(ENDS)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def heard(numbers: Iterable[signal.Signals]) -> list[signal.Signals]:
    """Those that are not ignored: with nohup a hangup is nothing."""
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


def _systemctl(*words: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False)
    except OSError as error:
        raise UsageError("there is no systemctl here", why=str(error)) from error
