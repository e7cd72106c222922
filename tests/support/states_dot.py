"""docs/states.dot from the state table: `python3 -m tests.support.states_dot > docs/states.dot`."""

from __future__ import annotations

from llamad.supervision.machine import TRANSITIONS, State

_HEADING = """\
// The life of one model, made from llamad/supervision/machine.py by tests/support/states_dot.py; do not edit.
// An edge has the event and, below it, what the supervisor does. dot -Tsvg docs/states.dot
digraph states {
    rankdir=TB;
    node [shape=box, style=rounded, fontname="sans-serif"];
    edge [fontname="sans-serif", fontsize=9];
"""


def states_dot() -> str:
    """The diagram of all states and transitions."""
    lines = [_HEADING]
    lines += [f'    "{state}";' for state in State]
    for (before, event), (after, effects) in sorted(TRANSITIONS.items()):
        done = "\\n" + ", ".join(effects) if effects else ""
        lines.append(f'    "{before}" -> "{after}" [label="{event}{done}"];')
    return "\n".join([*lines, "}", ""])


if __name__ == "__main__":
    print(states_dot(), end="")
