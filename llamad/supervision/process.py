"""Starting a llama-server process, with no event loop: the child loads while llamad is still starting itself."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
from collections.abc import Mapping, Sequence

from llamad.errors import ChildError
from llamad.frozen import dataclass

PIPE_BYTES = 1 << 20

# setpriv makes the kernel kill the child when we die; the shell closes the gap before that was set (our
# death then shows as another parent), and makes the child, not us, the first choice of the kernel's
# out-of-memory killer.
_WRAPPER = 'test "$PPID" = "$0" || exit 125; echo 300 2>/dev/null >/proc/self/oom_score_adj; exec "$@"'


@dataclass(frozen=True)
class Started:
    """A process that nobody listens to yet; its pipes hold 1 MiB each until somebody does."""

    process: subprocess.Popen[bytes]
    argv: tuple[str, ...]
    env: Mapping[str, str]

    def is_of(self, argv: Sequence[str], env: Mapping[str, str]) -> bool:
        """Whether it is what these arguments and this environment would start."""
        return self.argv == tuple(argv) and dict(self.env) == dict(env)

    def abandon(self) -> None:
        """Kill and reap it."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


def start(argv: Sequence[str], env: Mapping[str, str], inherit: Sequence[int] = ()) -> Started:
    """Start `argv` as a child that dies with us and leads its own process group. Raises ChildError.

    `inherit`: descriptors that it gets besides the pipes, under the same numbers.
    """
    wrapped = ["setpriv", "--pdeathsig", "KILL", "--", "sh", "-c", _WRAPPER, str(os.getpid()), *argv]
    try:
        process = subprocess.Popen(
            wrapped,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
            close_fds=True,
            pass_fds=inherit,
            cwd="/",
        )
    except OSError as error:
        raise spawn_error(error) from error
    for pipe in (process.stdout, process.stderr):
        assert pipe is not None
        with contextlib.suppress(OSError):  # over the user limit: a smaller pipe works, with less slack
            fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return Started(process, tuple(argv), env)


def spawn_error(error: OSError) -> ChildError:
    """What to say when the kernel refuses a process."""
    return ChildError(
        "llama-server cannot be started", why=str(error), fix="check the limits on processes and open files"
    )
