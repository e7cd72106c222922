"""Several models behind one address: which lane a request takes, and what the address itself answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llamad.front.answers import (
    HEALTH_PATHS,
    MODELS_PATHS,
    OK,
    OPTIONS_LINES,
    Answer,
    entries_of,
    error,
    list_answer,
    local_path,
    model_answer,
    model_health,
    no_such_model,
    not_allowed,
    wanted_model,
)
from llamad.front.choice import Choice, Routed
from llamad.front.head import RequestHead, with_target
from llamad.front.keys import KeySet
from llamad.front.lane import Lane
from llamad.front.reply import ClientSide
from llamad.front.routing import Names, RoutingError, model_in_query, split_upstream
from llamad.front.settings import ModelDescription
from llamad.front.shared import Shared

_READY = b"/ready"


@dataclass
class Branch:
    """One model: the way to it, the keys that open it (none: the address's own), and what it says of itself."""

    lane: Lane
    keys: KeySet
    describe: Callable[[], ModelDescription]
    leaves: bool = False
    """Whether it only finishes what it has: nobody finds it any more."""


class Switch:
    """The branches by the names of their definitions. `not_ready` names what the address still waits for."""

    def __init__(self, shared: Shared, not_ready: Callable[[], Sequence[str]]) -> None:
        self.lanes: tuple[Lane, ...] = ()
        self.names = Names({})
        self._shared = shared
        self._not_ready = not_ready
        self._branches: dict[str, Branch] = {}
        self._there = self._branches

    def put(self, name: str, branch: Branch) -> None:
        """Have a branch, or another one of this name."""
        self._branches[name] = branch
        self.renew()

    def set_keys(self, name: str, keys: KeySet) -> None:
        """Have other keys open a branch, whose settings may have changed too."""
        self._branches[name].keys = keys
        self.renew()

    def leave(self, name: str) -> None:
        """Let nobody find a branch any more; what is on its lane goes on."""
        self._branches[name].leaves = True
        self.renew()

    def remove(self, name: str) -> None:
        """Have a branch no more. Its lane must be quiet."""
        del self._branches[name]
        self.renew()

    def renew(self) -> None:
        """Names or aliases have changed."""
        self._shared.let_in.clear()
        self.lanes = tuple(branch.lane for branch in self._branches.values())
        self._there = {name: branch for name, branch in self._branches.items() if not branch.leaves}
        self.names = Names({name: branch.lane.settings.aliases for name, branch in self._there.items()})

    # --- requests --------------------------------------------------------------------------------------------

    def route(self, head: RequestHead) -> Routed:
        """What can be told from the head alone."""
        try:
            behind = split_upstream(head.target)
            if behind is not None:
                return Routed(with_target(head, behind[1]), None, behind[0])
            path = head.path if head.method == b"OPTIONS" else local_path(head)
            return Routed(head, path, None if path is not None else model_in_query(head.target))
        except RoutingError as problem:
            return Routed(head, None, None, problem)

    def choice(self, routed: Routed, client: ClientSide, request_id: bytes, begun_s: float) -> Choice:
        """The way of a request that is not answered here."""
        return Choice(self._shared, self.lane_for, routed, client, request_id, begun_s)

    def lane_for(self, model: str | None, head: RequestHead) -> Lane:
        """The lane of the model that a request names. Raises RoutingError: 400, 401 or 404."""
        hint = "" if head.method == b"POST" else f" ({head.raw_path.decode()}?model=NAME, or /upstream/NAME/...)"
        branch = self._there[self.names.only(hint) if model is None else self.names.find(model)]
        asked = (branch.lane, head.credentials)
        if asked not in self._shared.let_in:
            keys = branch.keys or self._shared.keys
            if keys and not keys.allows(head.credentials):
                raise RoutingError(401, "invalid_api_key", "a valid API key for this model is needed")
            self._shared.remember(asked, head)
        return branch.lane

    def may_let_in(self, head: RequestHead) -> bool:
        """Whether any model may be meant for a client with these keys: what it asks for is in the body."""
        own = self._shared.keys
        sets = [branch.keys or own for branch in self._there.values()] or [own]
        return any(not keys or keys.allows(head.credentials) for keys in sets)

    # --- the address's own answers ---------------------------------------------------------------------------

    def answer(self, path: bytes, head: RequestHead, request_id: bytes) -> Answer:
        """The answer for a request that has a `Routed.path`."""
        if head.method == b"OPTIONS":
            return Answer(204, None, OPTIONS_LINES)
        if head.method not in (b"GET", b"HEAD"):
            return not_allowed(path, request_id)
        if path in HEALTH_PATHS:
            return self._health(path, head, request_id)
        branches = self._there.values()
        entries = [entry for one in branches for entry in entries_of(one.lane.settings, one.describe())]
        if path in MODELS_PATHS:
            return list_answer(entries)
        wanted = wanted_model(path)
        if found := model_answer(entries, wanted):
            return found
        try:
            self.names.find(wanted)
        except RoutingError as problem:
            return error(problem.status, problem.code, problem.message, request_id)
        return error(404, "model_not_found", "another model has this alias", request_id)

    def _health(self, path: bytes, head: RequestHead, request_id: bytes) -> Answer:
        """Of the address, or with `?model=NAME` of a model, which is not loaded for it."""
        try:
            wanted = model_in_query(head.target)
        except RoutingError as problem:
            return error(problem.status, problem.code, problem.message, request_id)
        if wanted is None:
            return self._ready(request_id) if path == _READY else OK
        try:
            name = self.names.find(wanted)
        except RoutingError:
            return no_such_model(request_id)
        branch = self._there[name]
        return model_health(name, branch.lane.gate.admission, branch.describe(), request_id)

    def _ready(self, request_id: bytes) -> Answer:
        names = self._not_ready()
        if not names:
            return OK
        return error(503, "not_ready", f"not ready yet: {', '.join(names)}", request_id)
