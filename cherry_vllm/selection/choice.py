"""How rows are chosen: the settings, each within its range."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from typing import Any

from cherry_vllm.checks import FRACTION, LIMIT, MOST_LONG, check, number, whole
from cherry_vllm.errors import UserError
from cherry_vllm.options import Order, Rule, Strategy


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which usable rows come first, how many are chosen, and in which order they are written.

    ``fraction`` chooses floor(fraction x N) of N usable rows, computed exactly: 0.07 of 100 is 7.
    ``count`` takes precedence and chooses that many. ``num_tokens`` takes precedence over both and
    chooses as many rows as fit into that many answer tokens. Of equal scores the earlier row comes
    first.

    The strategy ``rating`` never chooses a row without a rating, or with one below ``threshold``.
    Without ``fraction``, ``count`` and ``num_tokens`` it chooses all others.

    The reference's rules are for ``cherry``, and set the output order. ``data_by_ifd`` takes
    int(fraction * N) in floating point, the later of equal rows first, in input order;
    ``select_from_ifd_json`` takes int(fraction * all rows) of those with IFD <= 1, by IFD.

    Raises:
        UserError: a value is out of range, or two values contradict each other.
    """

    strategy: Strategy = Strategy.cherry
    fraction: float | None = field(default=None, metadata={LIMIT: FRACTION})
    count: int | None = field(default=None, metadata={LIMIT: whole(1)})
    num_tokens: int | None = field(default=None, metadata={LIMIT: whole(1, MOST_LONG)})
    threshold: float | None = field(default=None, metadata={LIMIT: number()})  # of ratings
    order: Order = Order.input
    rule: Rule = Rule.exact
    seed: int = field(default=0, metadata={LIMIT: whole(0)})  # for the strategy random

    def __post_init__(self) -> None:
        check(self, "select.")
        if self.rule is not Rule.exact and self.strategy is not Strategy.cherry:
            raise UserError(
                f"select.rule={self.rule.value}: a rule of the reference, only for "
                f"select.strategy=cherry; use select.rule=exact with {self.strategy.value}"
            )
        has_size = any(size is not None for size in (self.fraction, self.count, self.num_tokens))
        if not has_size and self.strategy is not Strategy.rating:
            raise UserError(
                "select.fraction: not given, and neither are select.count and select.num_tokens; "
                "give one of them"
            )

    def to_json(self) -> dict[str, Any]:
        """The settings as values that JSON can hold."""
        return {
            name: value.value if isinstance(value, Enum) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> "Choice":
        """The choice that :meth:`to_json` described; ``facts`` may hold more than that.

        Raises:
            KeyError, TypeError, ValueError, UserError: the facts do not describe a choice.
        """
        values = {item.name: facts[item.name] for item in fields(cls)}
        enums = {
            "strategy": Strategy(values["strategy"]),
            "order": Order(values["order"]),
            "rule": Rule(values["rule"]),
        }
        return cls(**(values | enums))
