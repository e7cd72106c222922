"""Whether a child that serves still works on what it was given.

Progress is a token (an SSE `data:` event), a byte of a body, a batch of a prompt, or a slot whose figures changed.
That it answers /health, sends comments or takes CPU time is none: all that goes on with its compute threads frozen.
A picture is encoded in one step, on the CPU of minutes and without a word: it has ten times as long.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llamad.clock import Clock
from llamad.engine.log import LogLine, Sign, is_of_the_server
from llamad.errors import BusyError, ChildError
from llamad.supervision.causes import CAUSES, Cause
from llamad.supervision.child import Child
from llamad.supervision.intake import Intake
from llamad.supervision.launch import Launch, Reporter, Seams

SLOWER = 10.0
LONGEST_TICK_S = 5.0
FAILED_BATCHES = 3
FORGIVEN_S = 60.0
CACHE_FULL_EVERY_S = 600.0
FULL_PIPE_BYTES = 4096


class ProgressWatch:
    """Pure: is told what was seen and when, and says whether it takes too long."""

    def __init__(self, hang_s: float, batch_s: float, now_s: float) -> None:
        """`batch_s`: what one batch takes on this child, from its warm-up."""
        self.hang_s = hang_s
        """The least bound."""
        self._slowest_s = batch_s
        self._since_s = now_s
        self._seen = 0

    def look(self, at_work: int, seen: int, now_s: float) -> float:
        """Seconds without progress. `seen` counts signs of progress, `at_work` the requests that wait for one."""
        if seen != self._seen:
            if at_work:
                self._slowest_s = max(self._slowest_s, now_s - self._since_s)
            self._since_s = now_s
        elif not at_work:
            self._since_s = now_s
        self._seen = seen
        return now_s - self._since_s

    def excuse(self, now_s: float) -> None:
        """There was progress after all, or it is not the child's fault."""
        self._since_s = now_s

    @property
    def bound_s(self) -> float:
        """Ten times the slowest step that this child has shown: it grows with the depth of its prompts."""
        return max(self.hang_s, SLOWER * self._slowest_s)


class Trouble:
    """Batches that fail while the child lives on; pure."""

    def __init__(self) -> None:
        self._failed_at_s: list[float] = []
        self._told_full_at_s: float | None = None

    def batch_failed(self, now_s: float) -> bool:
        """Whether that was one too many in a short time."""
        recent = [at for at in self._failed_at_s if now_s - at < FORGIVEN_S]
        self._failed_at_s = [*recent, now_s][-FAILED_BATCHES:]
        return len(self._failed_at_s) >= FAILED_BATCHES

    def cache_full(self, now_s: float) -> bool:
        """Whether it is time to tell that the cache was full."""
        if self._told_full_at_s is not None and now_s - self._told_full_at_s < CACHE_FULL_EVERY_S:
            return False
        self._told_full_at_s = now_s
        return True


class Hung(Exception):
    """The child must go. `because` is the word for the classifier: `hang`, `requests`."""

    def __init__(self, because: str, error: ChildError) -> None:
        super().__init__(str(error))
        self.because = because
        self.error = error


async def watch_hang(
    child: Child,
    intake: Intake,
    launch: Launch,
    seams: Seams,
    clock: Clock,
    batch_s: float,
    hang_s: Callable[[], float],
) -> None:
    """Watch a child that serves for as long as this is not cancelled. `hang_s`: as it is now. Raises Hung."""
    watch = ProgressWatch(hang_s(), batch_s, clock.monotonic())
    signs = _Signs(intake, seams, clock)
    figures: str | None = None
    while True:
        await clock.sleep(min(LONGEST_TICK_S, watch.hang_s / 6))
        watch.hang_s = hang_s()
        await signs.judge(launch)
        at_work = seams.front.at_work()
        still_s = watch.look(at_work, seams.front.progress_count() + signs.batches, clock.monotonic())
        bound_s = watch.bound_s * (SLOWER if signs.encoding else 1)
        if still_s < bound_s / 2:
            figures = None
            continue
        if figures is None:
            figures = await seams.engine.figures(launch.socket_path)
        elif still_s >= bound_s:
            await _judge(child, launch, seams, clock, watch, (at_work, still_s, bound_s, figures))
            figures = None


async def _judge(
    child: Child,
    launch: Launch,
    seams: Seams,
    clock: Clock,
    watch: ProgressWatch,
    found: tuple[int, float, float, str],
) -> None:
    """Past the bound: look for what would excuse the child, then tell the evidence. Raises Hung."""
    at_work, still_s, bound_s, before = found
    unread = child.unread_bytes()
    now = await seams.engine.figures(launch.socket_path)
    if unread > FULL_PIPE_BYTES or (now and before and now != before):
        watch.excuse(clock.monotonic())
        return
    slots = "/slots unchanged" if now else "/slots not answered"
    healthy = "health good" if await seams.engine.healthy(launch.socket_path) else "health not answered"
    evidence = (
        f"{at_work} requests at work and no token, byte or batch for {still_s:.0f} s (bound {bound_s:.0f} s);"
        f" {slots}, {healthy}, process {process_state(child.pid)}, {unread} bytes unread in its log"
    )
    seams.reporter.event("no-progress", f"llama-server hangs: {evidence}", CAUSE=evidence)
    raise Hung("hang", ChildError("requests made no progress", why=evidence))


class _Signs:
    """What the log of a child that serves says, as it comes."""

    def __init__(self, intake: Intake, seams: Seams, clock: Clock) -> None:
        self.batches = 0
        self.encoding = False
        """The last that was heard is that a picture is being encoded."""
        self._trouble = Trouble()
        self._failing = ""
        self._seams = seams
        self._clock = clock
        intake.on_sign = self._sign

    def _sign(self, sign: Sign, line: LogLine) -> None:
        if sign in (Sign.PROMPT_PROGRESS, Sign.ENCODING):
            self.batches += 1
            self.encoding = sign is Sign.ENCODING
            return
        if not is_of_the_server(line):
            return
        if sign is Sign.COMPUTE_FAILED and self._trouble.batch_failed(self._clock.monotonic()):
            self._failing = line.text
        elif sign is Sign.CACHE_FULL and self._trouble.cache_full(self._clock.monotonic()):
            why = "the requests together needed more context than there is; some were answered with HTTP 500"
            fix = "set a larger `context`, a smaller `parallel`, or limit the clients' max_tokens"
            self._seams.reporter.event("cache-full", f"Context full: {why}", CAUSE=why, FIX=fix)

    async def judge(self, launch: Launch) -> None:
        """Raises Hung where batches fail again and again for lack of memory."""
        text, self._failing = self._failing, ""
        if not text:
            return
        free = await self._seams.planner.free_bytes(launch)
        from llamad.supervision.cause import cause_of_trouble

        trouble: Cause | None = cause_of_trouble(min(free.values(), default=None))
        if trouble:
            raise Hung("requests", ChildError(CAUSES[trouble.name].text, why=text))


def process_state(pid: int) -> str:
    """The kernel's letter for what a process does: R runs, S sleeps, D waits for a device, T is stopped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "unknown"


def stuck_error(pid: int) -> BusyError:
    """What to say of a process that SIGKILL did not end: the kernel's word for what it does, and what can be done."""
    letter = process_state(pid)
    doing = "waits in the kernel for a device or a file system" if letter == "D" else f"is in state {letter}"
    fix = "see the kernel log (`journalctl -k`); it goes on by itself when the process ends, else the host must reboot"
    return BusyError("llama-server cannot be killed", why=f"process {pid} {doing} and keeps its memory", fix=fix)


def tell_stuck(pid: int, reporter: Reporter) -> str:
    """Report `stuck_error`; why, for the status."""
    error = stuck_error(pid)
    reporter.event("unkillable", str(error), CAUSE=error.why, FIX=error.fix)
    return error.why
