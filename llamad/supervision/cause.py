"""Why a child died, from what is known: pure. llama-server exits 1 for every load failure, so lines decide.

The first line that matches a signature names the cause, later ones are generic; which part of the load it was
stands in the lines around it. Of a child that had served only lines count that no client can have written.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import replace

from llamad.frozen import dataclass
from llamad.supervision.causes import CAUSES, Cause, Policy
from llamad.supervision.signatures import HARMLESS, PARTS, SERVED, SIGNATURES
from llamad.units import MIB

__all__ = ["Cause", "Death", "Policy", "cause_of_trouble", "classify"]

SUSPICIOUS_FREE_BYTES = 256 * MIB
"""With less than this free on its device, a GPU backend that aborts without a reason had run out of memory."""
_BY_US = {
    "stalled": "start-stalled", "placement": "placement", "warm-up": "warm-up", "hang": "hang",
    "requests": "gpu-out-of-memory-requests", "device-lost": "device-lost",
}  # fmt: skip
_CONDEMNED = ("placement", "warm-up")
_PART_CAUSES = {"draft": "bad-draft", "vision": "bad-projector", "lora": "bad-lora"}
_OF_A_FILE = ("model-missing", "model-bad", "model-unsupported", "permission")
_OWN_FAULT = re.compile(
    r"an illegal (memory|instruction)|misaligned address|device kernel image is invalid|Memory access fault by GPU"
)
"""Said of a device, and a program's own mistake as often: a device that does not answer fails at the first call."""
_KILLS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


@dataclass(frozen=True)
class Death:
    """What is known of a child that is gone. `returncode` as subprocess gives it: -N for signal N."""

    returncode: int
    lines: Sequence[str]
    """Its log: the first lines that could tell, and the last ones, oldest first."""
    oom_kills: int = 0
    """How many the kernel's out-of-memory killer took in our cgroup since the child was started."""
    served: bool = False
    """Whether it had been ready: then its lines may quote clients, who must not be able to have it given up."""
    killed_because: str = ""
    """Why we killed it ourselves: `stop`, `stalled`, `placement`, ...; empty if we did not."""
    warming: bool = False
    """Whether it had loaded, and computed its first batch."""
    free_bytes: int | None = None
    """The least that the driver showed free on a planned device around the death; None where it does not tell."""
    address_space_limited: bool = False


def classify(death: Death) -> Cause:
    """The cause of one death; never fails: what cannot be named is `crash`, `without-a-word`, `exit` or `killed`."""
    if death.killed_because and death.killed_because not in _BY_US:
        return CAUSES["stopped"]
    told = None if death.served else _by_lines(death)
    if death.killed_because in _BY_US:
        # A buffer that could not be had is why the bytes were missing or the warm-up failed.
        if death.killed_because in _CONDEMNED and told and told.policy is Policy.STEP_DOWN:
            return told
        return CAUSES[_BY_US[death.killed_because]]
    if death.returncode == -signal.SIGKILL and death.oom_kills > 0:
        return replace(
            CAUSES["host-out-of-memory"],
            text="the kernel's out-of-memory killer took llama-server",
            fix="lower `cache_ram` in [server], or give the unit more memory",
        )
    if death.served:
        told = _served(death)
    return told or _by_exit(death)


def _by_lines(death: Death) -> Cause | None:
    for line in death.lines:
        if HARMLESS.search(line):
            continue
        for pattern, name in SIGNATURES:
            if pattern.search(line):
                return _refined(name, death)
    return None


def _refined(name: str, death: Death) -> Cause:
    part = _part(death.lines)
    if name == "device-lost" and not death.served and not any(map(_OWN_FAULT.search, death.lines)):
        name = "device-lost-at-load"
    if name in _OF_A_FILE and part in _PART_CAUSES:
        name = _PART_CAUSES[part]
    if name == "gpu-error" and death.free_bytes is not None and death.free_bytes < SUSPICIOUS_FREE_BYTES:
        name = "gpu-out-of-memory"
    if name == "gpu-out-of-memory":
        if death.warming:
            name += "-warm-up"
        elif part in ("weights", "context", "compute", "vision", "draft"):
            name += f"-{part}"
    if name in ("host-out-of-memory", "too-many-tasks") and death.address_space_limited:
        name = "address-space"
    return CAUSES[name]


def _part(lines: Sequence[str]) -> str:
    """The part of the load that failed. Drafts and projectors fail with texts of any other part: they come first."""
    found = {
        name
        for line in lines
        if not HARMLESS.search(line)
        for pattern, name in PARTS
        if pattern.search(line)
    }
    return next((name for _, name in PARTS if name in found), "")


def _served(death: Death) -> Cause | None:
    """Only an abort, or an exit, can have been announced by a backend's own lines."""
    if death.returncode == 0 or -death.returncode in _KILLS:
        return None
    for line in death.lines:
        for pattern, name in SERVED:
            if pattern.match(line):
                refined = _refined(name, death)
                return CAUSES["gpu-out-of-memory-running"] if refined.policy is Policy.STEP_DOWN else refined
    return None


def _by_exit(death: Death) -> Cause:
    code = death.returncode
    if code >= 0:
        text = "ended by itself" if code == 0 else f"exited with status {code}"
        return replace(CAUSES["exit"], text=f"llama-server {text}")
    name = _signal_name(-code)
    if -code in _KILLS:
        return replace(CAUSES["killed"], text=f"somebody sent llama-server {name}")
    if any(
        re.search(r"GGML_ASSERT|terminate called|what\(\)|: error|\berror\b", line) for line in death.lines
    ):
        return replace(CAUSES["crash"], text=f"llama-server crashed with {name}")
    return replace(CAUSES["without-a-word"], text=f"llama-server died of {name} without a word")


def _signal_name(number: int) -> str:
    return (
        signal.Signals(number).name if number in {known.value for known in signal.Signals} else str(number)
    )


def cause_of_trouble(free_bytes: int | None) -> Cause | None:
    """What a child is condemned for whose batches fail again and again while it lives on.

    With memory left it is something else, which another plan would not cure.
    """
    scarce = free_bytes is None or free_bytes < SUSPICIOUS_FREE_BYTES
    return CAUSES["gpu-out-of-memory-requests"] if scarce else None
