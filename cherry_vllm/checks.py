"""Limits of settings: one style of check and one kind of message.

A limit stands beside its setting (:mod:`config`), so that every setting is checked before any
work starts. A module that takes a number from elsewhere uses the same limits::

    whole(at_least=1).check("sample.num_clusters", 0)
    UserError: sample.num_clusters=0: give a whole number of at least 1
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import Field, dataclass, fields, is_dataclass
from typing import Any

from cherry_vllm.errors import UserError

LIMIT = "limit"  # the key of a field's metadata that holds its limit
AUTO = "auto"  # the value of a setting that the program decides
MOST = 2**31 - 1  # the largest whole number: C and torch count in 32 bits
MOST_LONG = 2**63 - 1
YEAR_S = 366 * 24 * 3600.0  # longer waits overflow the system's clocks


class Limit(ABC):
    """The values that a setting may have."""

    @abstractmethod
    def allows(self, value: Any) -> bool:
        """Whether a value is within the limit. It is never None."""

    @abstractmethod
    def advice(self, value: Any) -> str:
        """What to give instead of ``value``, such as "a whole number of at least 1"."""

    def check(self, key: str, value: Any) -> None:
        """Raises a UserError that names the key, the value and what to give.

        Raises:
            UserError: the value is outside the limit.
        """
        if value is not None and not self.allows(value):
            raise UserError(f"{key}={_show(value)}: give {self.advice(value)}")


@dataclass(frozen=True, slots=True)
class Number(Limit):
    """A finite number between two bounds; ``above`` and ``below`` exclude the bound itself."""

    is_whole: bool = False
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def allows(self, value: Any) -> bool:
        """See :class:`Limit`."""
        if isinstance(value, bool) or not isinstance(value, int if self.is_whole else int | float):
            return False
        return (
            (self.is_whole or math.isfinite(value))
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def advice(self, value: Any) -> str:
        """See :class:`Limit`."""
        is_too_large = isinstance(value, int | float) and value > (self.at_most or math.inf)
        is_technical = self.at_most in (MOST, MOST_LONG, YEAR_S)  # named only if exceeded
        bounds = {
            "of at least": self.at_least,
            "above": self.above,
            "below": self.below,
            "up to": None if is_technical and not is_too_large else self.at_most,
        }
        given = [f"{words} {bound}" for words, bound in bounds.items() if bound is not None]
        kind = "a whole number" if self.is_whole else "a number"
        return " ".join([kind, " and ".join(given)]).strip()


@dataclass(frozen=True, slots=True)
class Text(Limit):
    """Text that matches a pattern as a whole."""

    what: str
    pattern: str = r"(?s)(?=.*\S)[^\0]*"

    def allows(self, value: Any) -> bool:
        """See :class:`Limit`."""
        return isinstance(value, str) and re.fullmatch(self.pattern, value) is not None

    def advice(self, value: Any) -> str:  # noqa: ARG002
        """See :class:`Limit`."""
        return self.what


@dataclass(frozen=True, slots=True)
class OneOf(Limit):
    """One of a few words."""

    words: tuple[str, ...]

    def allows(self, value: Any) -> bool:
        """See :class:`Limit`."""
        return value in self.words

    def advice(self, value: Any) -> str:  # noqa: ARG002
        """See :class:`Limit`."""
        return " or ".join([", ".join(self.words[:-1]), self.words[-1]])


@dataclass(frozen=True, slots=True)
class Switch(Limit):
    """True or false, or ``auto``: the program decides."""

    def allows(self, value: Any) -> bool:
        """See :class:`Limit`."""
        return isinstance(value, bool) or value == AUTO

    def advice(self, value: Any) -> str:  # noqa: ARG002
        """See :class:`Limit`."""
        return "auto, true or false"


@dataclass(frozen=True, slots=True)
class Named(Limit):
    """A mapping."""

    what: str

    def allows(self, value: Any) -> bool:
        """See :class:`Limit`."""
        return isinstance(value, dict)

    def advice(self, value: Any) -> str:  # noqa: ARG002
        """See :class:`Limit`."""
        return self.what


@dataclass(frozen=True, slots=True)
class Quota(Limit):
    """How a number is divided: a word, or a weight for each name."""

    def allows(self, value: Any) -> bool:
        """See :class:`Limit`."""
        if not isinstance(value, dict):
            return value in ("proportional", "equal")
        weight = number(at_least=0)
        return all(map(weight.allows, value.values())) and any(value.values())

    def advice(self, value: Any) -> str:  # noqa: ARG002
        """See :class:`Limit`."""
        return "proportional, equal, or a mapping of weights, as in '{code: 2, chat: 1}'"


@dataclass(frozen=True, slots=True)
class Each(Limit):
    """A list whose every item is within a limit; ``one_will_do`` also takes a lone item."""

    item: Limit
    what: str
    one_will_do: bool = False
    min_items: int = 0

    def allows(self, value: Any) -> bool:
        """See :class:`Limit`."""
        if self.one_will_do and not isinstance(value, list):
            return self.item.allows(value)
        is_list = isinstance(value, list) and len(value) >= self.min_items
        return is_list and all(map(self.item.allows, value))

    def advice(self, value: Any) -> str:  # noqa: ARG002
        """See :class:`Limit`."""
        return self.what


@dataclass(frozen=True, slots=True)
class Interval(Limit):
    """Two numbers, the lower first, from ``low`` to ``high``."""

    low: float
    high: float

    def allows(self, value: Any) -> bool:
        """See :class:`Limit`."""
        bound = number(at_least=self.low, at_most=self.high)
        if not (isinstance(value, list) and len(value) == 2 and all(map(bound.allows, value))):
            return False
        return bool(value[0] <= value[1])

    def advice(self, value: Any) -> str:  # noqa: ARG002
        """See :class:`Limit`."""
        return f"two numbers from {self.low:g} to {self.high:g}, the lower first"


@dataclass(frozen=True, slots=True)
class Free(Limit):
    """Any value of the setting's type; ``reason`` says why it needs no limit."""

    reason: str

    def allows(self, value: Any) -> bool:  # noqa: ARG002
        """See :class:`Limit`."""
        return True

    def advice(self, value: Any) -> str:  # noqa: ARG002
        """See :class:`Limit`."""
        return "any value"


def whole(at_least: int, at_most: int = MOST) -> Number:
    """The limit to whole numbers of at least ``at_least``."""
    return Number(is_whole=True, at_least=at_least, at_most=at_most)


def number(
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> Number:
    """The limit to finite numbers within the bounds."""
    return Number(at_least=at_least, above=above, at_most=at_most, below=below)


def seconds() -> Number:
    """The limit to a time to wait."""
    return Number(above=0, at_most=YEAR_S)


FRACTION = number(above=0, at_most=1)
SIMILARITY = number(at_least=0.3, at_most=0.95)  # where 128 MinHash values tell sets apart
HALF = number(above=0, at_most=0.5)  # a fraction of the rows, taken at both ends


def walk(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any, Field[Any]]]:
    """Every setting of a tree of dataclasses: its key, its value and its field."""
    for field in fields(settings):
        key, value = f"{prefix}{field.name}", getattr(settings, field.name)
        if is_dataclass(value):
            yield from walk(value, f"{key}.")
        else:
            yield key, value, field


def check(settings: Any, prefix: str = "") -> None:
    """Checks every setting of a tree of dataclasses against its limit.

    Only a setting whose default is None may be None.

    Raises:
        UserError: a setting is outside its limit; the first one is named.
    """
    for key, value, field in walk(settings, prefix):
        limit = field.metadata.get(LIMIT)
        if limit is None:
            continue
        if value is None and field.default is not None:
            raise UserError(f"{key}=null: give {limit.advice(value)}")
        limit.check(key, value)


def _show(value: Any) -> str:
    """A value on one line, shortened if it is long."""
    text = repr(value) if isinstance(value, list | dict) else str(value)
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= 60 else f"{text[:60]}..."
