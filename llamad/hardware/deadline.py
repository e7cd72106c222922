"""Calls into drivers that may never come back, each with an end to the waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from llamad.errors import DeviceError

T = TypeVar("T")


class Bounded:
    """Runs blocking calls one after another, each in a thread of its own that is left behind when it is late.

    At most one thread is ever left behind: while it hangs, later calls fail at once, and when its call does come
    back, they work again.
    """

    def __init__(self, what: str, deadline_s: float) -> None:
        """`what` is who does not answer, in words: `the NVIDIA driver`."""
        self._what = what
        self._deadline_s = deadline_s
        self._turn = threading.Lock()
        self._hangs = False

    def call(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises. Raises DeviceError past the deadline, or without a thread."""
        end_s = time.monotonic() + self._deadline_s
        if not self._turn.acquire(timeout=0 if self._hangs else self._deadline_s):
            raise self._late()
        answers: list[T] = []
        failures: list[BaseException] = []

        def run() -> None:
            try:
                answers.append(work())
            except BaseException as error:
                failures.append(error)
            finally:
                self._hangs = False
                self._turn.release()  # here and not by the caller, who may have given up long ago

        thread = threading.Thread(target=run, name="llamad-driver", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            self._turn.release()  # nobody else will
            raise DeviceError(
                f"{self._what} cannot be asked", why=f"there is no thread for it: {error}",
                fix="raise TasksMax= or LimitNPROC=; see who made so many",
            ) from error  # fmt: skip
        thread.join(max(0.0, end_s - time.monotonic()))
        if failures:
            raise failures[0]
        if answers:
            return answers[0]
        self._hangs = thread.is_alive()
        raise self._late()

    def _late(self) -> DeviceError:
        return DeviceError(
            f"{self._what} does not answer",
            why=f"no answer within {self._deadline_s:g} s: it hangs, or wakes its GPUs slowly",
            fix="look into the kernel log; nvidia-persistenced keeps GPUs awake",
        )
