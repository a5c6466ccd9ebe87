"""How rows are chosen: the settings, each within its range."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from typing import Any

from cherry_vllm.checks import (
    FRACTION,
    LIMIT,
    MOST_LONG,
    SIMILARITY,
    Quota,
    check,
    number,
    whole,
)
from cherry_vllm.errors import UserError
from cherry_vllm.options import Dedup, DedupOn, Diversify, Order, Pool, Rule

RANDOM = "random"  # the rank of rows in random order


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which rows may be chosen, which come first, how many are chosen, and in which order.

    The steps, in this order:

    - ``pool``: the usable rows, or all that were scored;
    - ``where``: a SQL condition that they must meet (:mod:`selection.expressions`);
    - ``rank``: a SQL expression, highest first, of equals the earlier row; or "random", by
      ``seed``. A row without a finite value is not chosen;
    - ``threshold``: the rank that a row must reach;
    - ``dedup``: of rows with the same ``dedup_on``, or one of at least ``dedup_threshold``
      similarity, the highest stays (:mod:`selection.duplicates`);
    - ``max_per_group``: at most this many rows of each ``group`` (a SQL expression), the highest
      first;
    - the number: ``fraction`` is a share of the rows that meet ``where``, rounded down, computed
      exactly: 0.07 of 100 is 7. ``count`` takes precedence, and ``num_tokens`` over both: as many
      rows as fit into that many answer tokens. Without any of them all rows are chosen;
    - ``strata``: SQL expressions whose values divide that number, by ``quota``: "proportional" to
      the pool, "equal", or a mapping of weights (:mod:`selection.quotas`);
    - ``diversify``: diverse rows in place of the highest, of each stratum among the highest that
      are ``candidates`` times as many, or all of them (:mod:`selection.diversity`).

    The reference's rules are for ``rank="ifd"``, and set the output order. ``data_by_ifd`` takes
    int(fraction * N) in floating point, the later of equal rows first, in input order;
    ``select_from_ifd_json`` takes int(fraction * all rows) of those with IFD <= 1, by IFD.

    Raises:
        UserError: a value is out of range, or two values contradict each other.
    """

    strategy: str = "cherry"  # a name for people
    pool: Pool = Pool.usable
    where: str | None = None
    rank: str = "ifd"
    threshold: float | None = field(default=None, metadata={LIMIT: number()})
    fraction: float | None = field(default=None, metadata={LIMIT: FRACTION})
    count: int | None = field(default=None, metadata={LIMIT: whole(1)})
    num_tokens: int | None = field(default=None, metadata={LIMIT: whole(1, MOST_LONG)})
    dedup: Dedup | None = None
    dedup_on: DedupOn = DedupOn.instruction
    dedup_threshold: float = field(default=0.7, metadata={LIMIT: SIMILARITY})
    max_per_group: int | None = field(default=None, metadata={LIMIT: whole(1)})
    group: str = "instruction"
    strata: tuple[str, ...] = ()
    bins: int = field(default=10, metadata={LIMIT: whole(2)})
    quota: str | Mapping[str, float] = field(default="proportional", metadata={LIMIT: Quota()})
    diversify: Diversify | None = None
    candidates: float | None = field(default=None, metadata={LIMIT: number(at_least=1)})
    order: Order = Order.input
    rule: Rule = Rule.exact
    seed: int = field(default=0, metadata={LIMIT: whole(0)})

    def __post_init__(self) -> None:
        check(self, "select.")
        is_plain = self.rank == "ifd" and not (self.strata or self.dedup or self.diversify)
        if self.rule is not Rule.exact and not is_plain:
            raise UserError(
                f"select.rule={self.rule.value}: a rule of the reference, only for select=cherry "
                f"without further steps; use select.rule=exact with {self.strategy}"
            )
        if self.rank == RANDOM and self.threshold is not None:
            raise UserError(
                f"select.threshold={self.threshold:g}: rows in random order have no rank that "
                "could reach it; give null"
            )
        if isinstance(self.quota, Mapping) and not self.strata:
            raise UserError(
                "select.quota: names strata, but there are none; give select.strata, as in "
                "[record.source]"
            )
        sizes = (self.fraction, self.count, self.num_tokens)
        if self.diversify and all(size is None for size in sizes):
            raise UserError(
                f"select.diversify={self.diversify.value}: all rows would be chosen; give "
                "select.fraction, select.count or select.num_tokens"
            )
        limits = (*sizes, self.threshold, self.max_per_group, self.dedup)
        is_limited = any(limit is not None for limit in limits)
        if not (is_limited or self.where or re.search(r"\brating\b", self.rank)):
            raise UserError(
                "select.fraction: not given, and neither are select.count and select.num_tokens; "
                "give one of them"
            )

    def to_json(self) -> dict[str, Any]:
        """The settings as values that JSON can hold."""
        values = {
            name: value.value if isinstance(value, Enum) else value
            for name, value in asdict(self).items()
        }
        return values | {"strata": list(self.strata)}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> "Choice":
        """The choice that :meth:`to_json` described; ``facts`` may hold more than that.

        Raises:
            KeyError, TypeError, ValueError, UserError: the facts do not describe a choice.
        """
        values = {item.name: facts[item.name] for item in fields(cls)}
        dedup, diversify = values["dedup"], values["diversify"]
        typed = {
            "pool": Pool(values["pool"]),
            "dedup": dedup and Dedup(dedup),
            "dedup_on": DedupOn(values["dedup_on"]),
            "diversify": diversify and Diversify(diversify),
            "order": Order(values["order"]),
            "rule": Rule(values["rule"]),
            "strata": tuple(values["strata"]),
        }
        return cls(**(values | typed))
