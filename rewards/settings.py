"""Types that state the range of a setting: `workers: Positive = 2` in a dataclass.

`data_prep.runs.settings` checks each value of a YAML. A class that is also created in Python calls `check` itself.
"""

import dataclasses
import math
import typing
from typing import Annotated, Any


@dataclasses.dataclass(frozen=True)
class Range:
    """Finite numbers from `low` to `high`. An `open` range excludes `low`."""

    low: float = -math.inf
    high: float = math.inf
    open: bool = False

    def __contains__(self, value: float) -> bool:
        return math.isfinite(value) and self.low <= value <= self.high and not (self.open and value == self.low)

    def __str__(self) -> str:
        if self.low == -math.inf:
            return "a finite number" if self.high == math.inf else f"at most {self.high:g}"
        if self.high == math.inf:
            return f"a number above {self.low:g}" if self.open else f"at least {self.low:g}"
        return f"a number from {self.low:g} to {self.high:g}" + f", but not {self.low:g}" * self.open


class _Filled:
    def __contains__(self, value: Any) -> bool:
        return len(value) > 0

    def __str__(self) -> str:
        return "at least one"


Positive = Annotated[int, Range(1)]
Count = Annotated[int, Range(0)]
Finite = Annotated[float, Range()]
Seconds = Annotated[float, Range(0, open=True)]
NotNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
FILLED = _Filled()  # a list or mapping that is not empty


def check(settings: Any, prefix: str = "") -> None:
    """Raises ValueError for the first setting of a dataclass whose type or range does not match its hint. The message
    names the key and what to write."""
    hints = typing.get_type_hints(type(settings), include_extras=True)
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.init and (wanted := _fault(value, hints[field.name])):
            raise ValueError(f"`{prefix}{field.name}` is {value!r}; write {wanted}")


def _fault(value: Any, hint: Any) -> str | None:
    """What to write instead of a value that does not match its hint. It knows numbers, strings and choices."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        kind, allowed = arguments[:2]
        return _fault(value, kind) or (None if value in allowed else str(allowed))
    if origin is typing.Literal:
        return None if value in arguments else f"one of {', '.join(map(str, arguments))}"
    if origin is tuple:
        fits = isinstance(value, list | tuple) and len(value) == len(arguments)
        return None if fits and not any(map(_fault, value, arguments)) else f"{len(arguments)} finite numbers"
    if hint in (int, float):
        fits = isinstance(value, int | hint) and not isinstance(value, bool)
        return None if fits else f"a {'whole ' * (hint is int)}number"
    if hint in (bool, str):
        return None if isinstance(value, hint) else {bool: "true or false", str: "text"}[hint]
    if arguments and type(None) in arguments:
        return None if value is None else next(filter(None, (_fault(value, one) for one in arguments)), None)
    return None
