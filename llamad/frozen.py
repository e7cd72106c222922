"""`dataclass(frozen=True)`, made in a third of the time: a start makes sixty of them before llama-server runs.

The standard library writes and compiles source for every method of every class. Here only `__init__` is made so; the
rest is shared. To the type checker, which is the one that holds the promise not to assign, it is the standard
library's own; so nothing guards against assignment at run time, and making an object takes a third of the time too.
"""

from __future__ import annotations

import dataclasses
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(*, frozen: bool, slots: bool = False) -> Any:
        """As `dataclasses.dataclass(frozen=True)`: equal and hashed by value, shown with its fields.

        With `slots` it is the standard library's: for objects of which there are thousands.
        """
        assert frozen, "what may be assigned to is the standard library's"
        return dataclasses.dataclass(frozen=True, slots=True) if slots else _made


_Class = TypeVar("_Class", bound=type)


def _made(cls: _Class) -> _Class:
    # By any other name mypy would look for a plugin.
    made: Any = getattr(dataclasses, "dataclass")(eq=False, repr=False)(cls)  # noqa: B009
    parts = dataclasses.fields(made)
    compared = [part.name for part in parts if part.compare]
    value_of = attrgetter(*compared) if compared else lambda _: ()
    shown = [part.name for part in parts if part.repr]

    def equal(self: Any, other: object) -> bool:
        return value_of(self) == value_of(other) if other.__class__ is self.__class__ else NotImplemented

    def hashed(self: Any) -> int:
        return hash(value_of(self))

    def represented(self: Any) -> str:
        return f"{cls.__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    own = cls.__dict__
    if "__eq__" not in own:
        made.__eq__, made.__hash__ = equal, hashed
    if "__repr__" not in own:
        made.__repr__ = represented
    return made  # type: ignore[no-any-return]
