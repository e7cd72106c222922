"""The terminal of `llamad top`: its own screen, keys as they are typed, and everything as it was at the end."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from llamad.cli.terminal import colour_of
from llamad.service.picture import Line

_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l\x1b[H\x1b[J", "\x1b[0m\x1b[?25h\x1b[?1049l"
_HOME, _TO_END_OF_LINE, _BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
_STYLES = {
    "bold": "1", "dim": "2", "reverse": "7", "green": "32", "yellow": "33", "red": "31",
    "weights": "34", "context": "36", "compute": "35", "others": "33",
}  # fmt: skip
_ATTRIBUTES = frozenset({"bold", "dim", "reverse"})
_ARROWS = {b"\x1b[A": "up", b"\x1bOA": "up", b"\x1b[B": "down", b"\x1bOB": "down"}


class Screen:
    """Draws whole pictures. `colours` False: attributes alone (bold, reverse), as NO_COLOR asks."""

    def __init__(self, colours: bool) -> None:
        self._colours = colours
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines now."""
        with contextlib.suppress(OSError):
            return os.get_terminal_size(sys.stdout.fileno())
        return shutil.get_terminal_size()

    def draw(self, lines: Sequence[Line]) -> None:
        """Show these lines, in one write."""
        drawn = f"{_TO_END_OF_LINE}\n".join("".join(map(self._styled, line)) for line in lines)
        sys.stdout.write(f"{_HOME}{drawn}{_TO_END_OF_LINE}{_BELOW}")
        sys.stdout.flush()

    def _styled(self, span: tuple[str, str]) -> str:
        text, style = span
        name = style if style in _STYLES else colour_of(style) if style else ""
        if not name or (name not in _ATTRIBUTES and not self._colours):
            return text
        return f"\x1b[{_STYLES[name]}m{text}\x1b[0m"

    def key(self, timeout_s: float) -> str:
        """The next key (a letter, `up`, `down`), `resize`, `closed` when the terminal is gone, or "" after the time."""
        ready = select.select([sys.stdin, self._wake_read], [], [], timeout_s)[0]
        if self._wake_read in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 4096)
            return "resize"
        if not ready:
            return ""
        typed = os.read(sys.stdin.fileno(), 64)
        if not typed:
            return "closed"
        return _ARROWS.get(typed) or (chr(typed[0]) if 0x20 < typed[0] < 0x7F else "other")

    def wake(self, *_signal: object) -> None:
        """Have `key` return `resize` at once."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"!")


@contextmanager
def taken(screen: Screen) -> Iterator[None]:
    """Take the terminal, and give it back however this ends: also while stopped by Ctrl-Z."""
    stdin = sys.stdin.fileno()
    before = termios.tcgetattr(stdin)

    def enter(*_signal: object) -> None:
        tty.setcbreak(stdin)
        sys.stdout.write(_ENTER)
        sys.stdout.flush()
        screen.wake()

    def leave() -> None:
        with contextlib.suppress(OSError, termios.error, ValueError):  # the terminal may be gone
            sys.stdout.write(_LEAVE)
            sys.stdout.flush()
            termios.tcsetattr(stdin, termios.TCSADRAIN, before)

    def stop(*_signal: object) -> None:
        leave()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)

    def go_on(*_signal: object) -> None:
        signal.signal(signal.SIGTSTP, stop)
        enter()

    def end(*_signal: object) -> None:
        raise KeyboardInterrupt

    reactions: dict[signal.Signals, Callable[..., None]] = {
        signal.SIGWINCH: screen.wake, signal.SIGTSTP: stop, signal.SIGCONT: go_on, signal.SIGTERM: end,
        signal.SIGHUP: end,
    }  # fmt: skip
    former = {number: signal.signal(number, react) for number, react in reactions.items()}
    enter()
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        leave()
