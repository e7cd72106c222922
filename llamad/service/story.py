"""The story of one model's memory, in plain sentences: what runs, what was predicted and learned, what would help.

All of it was written by the service's user, who meets hostile files: it is data, and is shown without what a terminal
would obey.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llamad.ledger.lease import Lease
from llamad.service.deaths import Death, read_deaths
from llamad.service.overview import Overview
from llamad.supervision.causes import CAUSES
from llamad.supervision.learned import DamagedError, Learned, LearnedFile, Load
from llamad.text import printable
from llamad.units import MIB, format_bytes, listed, mib

_SOURCES = {
    "learned": "These bytes are what a former load of this very plan really took.",
    "asked": "These bytes are llama-server's own figures, asked before the load.",
    "computed": "These bytes are computed from the model file.",
}
_HOW = {
    "measured": "measured by the driver's own figures",
    "tried": "found by trying contexts out",
    "grown": "grown beyond the plan while it served",
    "guessed": "guessed, for nothing could be measured",
}
_MOST_EVENTS = 10


@dataclass(frozen=True)
class Story:
    """What is known of one model; `problems` says what could not be read."""

    name: str
    overview: Overview
    learned: Learned = field(default_factory=Learned)
    deaths: Sequence[Death] = ()
    leases: Sequence[Lease] = ()
    problems: tuple[str, ...] = ()


def read_story(name: str, overview: Overview, leases: Sequence[Lease], folders: Iterable[Path]) -> Story:
    """The story from the first state folder that has anything. Blocking, and nothing is raised."""
    problems: list[str] = []
    for folder in folders:
        try:
            learned, deaths = _learned(folder, problems), read_deaths(folder)
        except PermissionError:
            problems.append(f"{folder} can be read by root only: what was learned, and earlier deaths, are left out")
            continue
        except OSError as error:
            problems.append(f"{folder} cannot be read: {error.strerror}")
            continue
        if learned is not None or deaths:
            return Story(name, overview, learned or Learned(), deaths, leases, tuple(problems))
    return Story(name, overview, leases=leases, problems=tuple(problems))


def _learned(folder: Path, problems: list[str]) -> Learned | None:
    try:
        return LearnedFile(folder).read()
    except FileNotFoundError:
        return None
    except DamagedError as error:
        problems.append(f"what was learned is damaged ({error}): the next start sets it aside")
        return None


# -- for programs -----------------------------------------------------------------------------------------------


def story_json(story: Story) -> dict[str, object]:
    """The object that `llamad explain --json` prints; sizes in MiB, times in seconds since 1970."""
    learned = story.learned
    return {
        "name": story.name,
        "state": story.overview.state,
        "status": dict(story.overview.content),
        "loads": [
            {"device": one.device, "predicted_mib": _three(one.planned), "real_mib": _three(one.real)}
            for one in learned.loads
        ],
        "measured": [
            {"uuid": one.device, "loaded_mib": mib(one.loaded_bytes), "peak_mib": mib(one.peak_bytes), "used": one.used}
            for one in learned.measured
        ],
        "lessons": [dict(event) for event in learned.events],
        "left_out_mib": {device: mib(size) for device, size in learned.corrections.items()},
        "room_mib": {device: mib(size) for device, size in learned.rooms.items()},
        "deaths": [{"at": one.at_s, "cause": one.cause, "text": one.text} for one in story.deaths],
        "held_by_others_mib": {
            device: {lease: mib(size) for lease, size in held.items()} for device, held in _held(story).items()
        },
        "help": _help(story),
        "problems": list(story.problems),
    }


def _three(parts: object) -> dict[str, float]:
    return {name: mib(getattr(parts, f"{name}_bytes")) for name in ("weights", "context", "compute")}


# -- for people -------------------------------------------------------------------------------------------------


def story_text(story: Story) -> str:
    """The story, each chapter with a heading of its own; a chapter that has nothing to tell is left out."""
    chapters = [
        ("", _now(story)),
        ("Predicted and real bytes of the last proved load", [_load(one) for one in story.learned.loads]),
        ("Beyond the buffers, as the driver shows it", _measured(story)),
        ("What was learned from lack of memory", _lessons(story)),
        ("Last deaths of llama-server", _deaths(story)),
        ("What would help", _help(story)),
        ("Not known", list(story.problems)),
    ]
    blocks = []
    for heading, lines in chapters:
        shown = [printable(line) for line in lines]
        if heading and shown:
            shown = [heading, *(f"  {line}" for line in shown)]
        if shown:
            blocks.append("\n".join(shown))
    return "\n\n".join(blocks) + "\n"


def _now(story: Story) -> list[str]:
    content = story.overview.content
    state, text = story.overview.state, story.overview.text
    said = text if text.startswith(state) else f"{state}: {text}" if text else state
    lines = [f"{story.name} is {said}"]
    restarts = _number(content.get("restarts"))
    if restarts:
        lines.append(f"Its llama-server was started again {restarts} times after a death, since llamad started.")
    context = _number(content.get("context_tokens"))
    if not context:
        return [*lines, f"`llamad plan {story.name}` shows what a start would get now."]
    trained = _number(content.get("context_trained_tokens"))
    of = f" of the {trained} that it was trained for" if trained else ""
    engine = f", by llama-server {content['engine']}" if content.get("engine") else ""
    slots = _number(content.get("slots"))
    lines.append(f"The plan in force has a context of {context} tokens{of}, {slots} slots{engine}.")
    for device in _rows(content.get("devices")):
        buffers, planned, free = (_mib(device.get(f"{key}_mib")) for key in ("buffers", "planned", "free_at_start"))
        lines.append(f"On {device.get('name')}: {planned} with margin, of that {buffers} in buffers; {free} were free.")
    source = _SOURCES.get(str(content.get("source")))
    return [*lines, source] if source else lines


def _load(load: Load) -> str:
    parts = []
    for name in ("weights", "context", "compute"):
        planned, real = (getattr(one, f"{name}_bytes") for one in (load.planned, load.real))
        parts.append(f"{name} {format_bytes(real)} ({_against(real - planned)})")
    return f"{load.device}: {listed(parts)}"


def _against(off_bytes: int) -> str:
    if abs(off_bytes) < MIB:
        return "as predicted"
    return f"{format_bytes(abs(off_bytes))} {'more' if off_bytes > 0 else 'less'} than predicted"


def _measured(story: Story) -> list[str]:
    names = {str(row.get("uuid")): str(row.get("name")) for row in _rows(story.overview.content.get("devices"))}
    lines = []
    for one in story.learned.measured:
        device = names.get(one.device, one.device)
        use = "plans count with that" if one.used else "plans count with it once it has been in use for a while"
        grown = f"{format_bytes(one.grown_bytes)} more later" if one.grown_bytes >= MIB else "no more later"
        lines.append(f"{device}: {format_bytes(one.loaded_bytes)} when it was ready, {grown}; {use}")
    return lines


def _lessons(story: Story) -> list[str]:
    lines = [_lesson(story, event) for event in story.learned.events[-_MOST_EVENTS:]]
    earlier = len(story.learned.events) - _MOST_EVENTS
    if earlier > 0:
        lines.insert(0, f"({earlier} earlier ones)")
    for device, size in story.learned.corrections.items():
        lines.append(f"{format_bytes(size)} of {_device_name(story, device)} are left out of every plan.")
    for device, size in story.learned.rooms.items():
        lines.append(f"No more than {format_bytes(size)} of {_device_name(story, device)} are planned on.")
    return lines


def _lesson(story: Story, event: Mapping[str, object]) -> str:
    before, after = _number(event.get("context_tokens")), _number(event.get("stepped_to_tokens"))
    change = f"the context went from {before} to {after} tokens" if after else f"a context of {before} tokens failed"
    size = _number(event.get("size_mib"))
    asked = f", an allocation of {format_bytes(size * MIB)}" if size else ""
    device = _device_name(story, str(event.get("device")))
    how = _HOW.get(str(event.get("how")), str(event.get("how")))
    left = format_bytes(_number(event.get("correction_mib")) * MIB)
    return (
        f"{_date(event.get('at'))}  {event.get('cause')} on {device}{asked}: {change}; {left} less of the"
        f" device ({how})"
    )


def _deaths(story: Story) -> list[str]:
    lines = [f"{_date(death.at_s)}  {death.cause}: {death.text}" for death in story.deaths]
    return [*lines, f"`journalctl -u llamad@{story.name} -x` has each with an explanation."] if lines else []


def _help(story: Story) -> list[str]:
    lines = []
    following = story.overview.content.get("next_context")
    if isinstance(following, dict):
        device = str(following.get("device"))
        tokens, missing = _number(following.get("context_tokens")), _mib(following.get("missing_mib"))
        held = _held(story).get(device, {})
        by = listed(f"{name} ({format_bytes(size)})" for name, size in held.items())
        who = f", of which others were promised: {by}" if by else ""
        if following.get("missing_mib") == 0:  # a written context, or memory that came back since
            lines.append(f"A context of {tokens} tokens would have had room: see `context` in [placement].")
        else:
            lines.append(f"A context of {tokens} tokens needs {missing} more on {device}{who}.")
    cause = CAUSES.get(story.deaths[-1].cause) if story.deaths else None
    if cause is not None and cause.fix:
        lines.append(f"Against {cause.name}, the last cause: {cause.fix}.")
    if story.learned.corrections or story.learned.rooms:
        lines.append(f"`llamad forget {story.name}` has the larger context tried again, if the reason has gone.")
    return lines


def _held(story: Story) -> dict[str, dict[str, int]]:
    """What others were promised, by the name of the device."""
    found: dict[str, dict[str, int]] = {}
    for lease in story.leases:
        if lease.name != story.name:
            for place, size in lease.promised.items():
                found.setdefault(lease.names.get(place, place), {})[lease.name] = size
    return found


def _device_name(story: Story, key: str) -> str:
    rows = _rows(story.overview.content.get("devices"))
    return next((f"{row.get('name')} ({key})" for row in rows if row.get("uuid") == key and key), key)


def _rows(value: object) -> list[Mapping[str, object]]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _number(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 50 else 0


def _mib(value: object) -> str:
    known = isinstance(value, int | float) and 0 <= value < 1 << 40
    return format_bytes(value * MIB) if known and isinstance(value, int | float) else "an unknown size"


def _date(value: object) -> str:
    at_s = _number(value)
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_s)) if 0 < at_s < 1 << 36 else "at an unknown time"
