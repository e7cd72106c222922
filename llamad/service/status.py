"""The public state of a model: a small JSON file that `llamad status` and `list` read without root."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from pathlib import Path

from llamad.service.paths import RUNTIME_ROOT
from llamad.store import read_regular
from llamad.supervision.launch import Launch
from llamad.units import mib

STATUS_NAME = "status.json"
_LIMIT_BYTES = 64 << 10
_MOST_LEVELS = 16
_LONGEST_CAUSE = 300


class StatusFile:
    """Written whole and atomically, mode 0644, without secrets. A full /run costs a stale status, no more."""

    def __init__(self, folder: Path, name: str) -> None:
        self._path = folder / STATUS_NAME
        self._content: dict[str, object] = {"name": name, "pid": os.getpid(), "since": int(time.time()), "restarts": 0}
        self.failed = ""

    def update(self, **fields: object) -> None:
        """Change some fields and write the file."""
        if fields.get("state") != self._content.get("state"):
            self._content["since"] = int(time.time())
        self._content.update(fields)
        self._write()

    def not_served(self, state: str, text: str) -> None:
        """Nothing is served now: forget what was, and write why."""
        kept = ("name", "pid", "since", "state", "restarts", "last_death")
        self._content = {key: value for key, value in self._content.items() if key in kept}
        self.update(state=state, text=text)

    def died(self, cause: str, text: str) -> None:
        """A llama-server has died: the name of the cause, and the cause in words."""
        self.update(last_death={"at": int(time.time()), "cause": cause, "text": text[:_LONGEST_CAUSE]})

    def serving(self, launch: Launch) -> None:
        """Put in what is served."""
        plan, following = launch.plan, launch.plan.next_context
        self.update(
            model=plan.model,
            context_tokens=plan.context_tokens,
            context_trained_tokens=plan.context_train_tokens,
            next_context=following and {
                "context_tokens": following.context_tokens,
                "device": following.device,
                "missing_mib": mib(following.missing_bytes),
            },
            slots=plan.slots,
            unified_cache=plan.unified_cache,
            ubatch_tokens=plan.ubatch_tokens,
            flash_attention=plan.flash_attention,
            cache_type_k=plan.cache_type_k,
            cache_type_v=plan.cache_type_v,
            layers=plan.layers,
            layers_total=plan.layers_total,
            source=plan.source,
            engine=launch.engine,
            devices=[
                {
                    "name": device.name,
                    "uuid": device.uuid,
                    "weights_mib": mib(device.parts.weights_bytes),
                    "context_mib": mib(device.parts.context_bytes),
                    "compute_mib": mib(device.parts.compute_bytes),
                    "margin_mib": mib(device.parts.margin_bytes),
                    "total_mib": mib(device.total_device_bytes),
                    "buffers_mib": mib(device.parts.buffers_bytes),
                    "planned_mib": mib(device.parts.total_bytes),
                    "free_at_start_mib": mib(device.free_bytes),
                }
                for device in plan.devices
            ],
            host={"buffers_mib": mib(plan.host.buffers_bytes)},
        )

    def remove(self) -> None:
        """The model is not served any more."""
        with contextlib.suppress(OSError):
            self._path.unlink()

    def _write(self) -> None:
        temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                json.dump(self._content, file)
            os.chmod(temporary, 0o644)
            os.replace(temporary, self._path)
        except OSError as error:
            self.failed = str(error)
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def read_status(name: str, root: Path = RUNTIME_ROOT) -> dict[str, object] | None:
    """What the model's daemon wrote last; None where none runs. Garbage, of any kind, reads as None."""
    try:
        text = read_regular(root / name / STATUS_NAME, _LIMIT_BYTES)
        content = json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and _is_shallow(content, _MOST_LEVELS) else None


def _no_number(word: str) -> float:
    raise ValueError(word)


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _no_number(digits)


def _is_shallow(content: object, levels: int) -> bool:
    """Whether it can be printed as well as it was read: to write JSON takes more of the stack than to read it."""
    inner = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    return levels > 0 and all(_is_shallow(one, levels - 1) for one in inner)
