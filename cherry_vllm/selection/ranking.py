"""Scores to chosen rows: the cherry data and what it is compared with."""

from fractions import Fraction

import numpy as np
import polars as pl

from cherry_vllm.errors import UserError
from cherry_vllm.options import Order, Rule, Strategy


def select_rows(
    scores: pl.DataFrame,
    *,
    strategy: Strategy,
    fraction: float | None,
    count: int | None,
    num_tokens: int | None = None,
    threshold: float | None = None,
    order: Order,
    rule: Rule,
    seed: int,
) -> pl.DataFrame:
    """The chosen lines of ``scores`` (:data:`schema.SCORES`), in output order.

    A row is usable if it has no ``drop_reason``. Of N usable rows ``fraction`` chooses
    floor(fraction x N), the product taken exactly: 0.07 of 100 is 7. ``count`` chooses that many
    and takes precedence; ``num_tokens``, which takes precedence over both, chooses as many as hold
    no more answer tokens than that. Of equal scores the earlier row comes first.

    ``rating`` needs the columns of :func:`add_ratings`. A row without a rating, or with one below
    ``threshold``, is not chosen; without ``fraction``, ``count`` and ``num_tokens`` all others
    are.

    The reference's rules are for ``cherry``, and set the output order. ``data_by_ifd`` takes
    int(fraction * N) in floating point, the later of equal rows first, in input order;
    ``select_from_ifd_json`` takes int(fraction * all rows) of those with IFD <= 1, by IFD.

    Raises:
        UserError: the number of rows is none, or more than are usable.
    """
    if rule is not Rule.exact and strategy is not Strategy.cherry:
        raise UserError(
            f"select.rule={rule.value} is the reference's rule for select.strategy=cherry; "
            f"use select.rule=exact with {strategy.value}"
        )
    usable = scores.filter(pl.col("drop_reason").is_null())
    ranked = _rank(usable, strategy, later_of_equals=rule is Rule.data_by_ifd, seed=seed)
    if strategy is Strategy.rating:
        ranked = _reaching(ranked, threshold)
    if num_tokens is not None:
        number = _number_within(ranked, num_tokens)
    elif strategy is Strategy.rating and fraction is None and count is None:
        number = ranked.height
    else:
        number = _number(usable.height, scores.height, fraction=fraction, count=count, rule=rule)
    if strategy is Strategy.rating and number > ranked.height:
        raise UserError(
            f"{number} rows are asked for, and {ranked.height} usable ones have a rating of "
            f"{_at_least(threshold)}; ask for fewer, or change select.threshold"
        )
    chosen = ranked.head(number)
    by_ifd = order is Order.ifd if rule is Rule.exact else rule is Rule.select_from_ifd_json
    return chosen.sort(["ifd", "row"], descending=[True, False]) if by_ifd else chosen.sort("row")


def take_share(number: int, fraction: float) -> int:
    """``fraction`` of ``number``, rounded down. The product is exact: 0.29 of 100 is 29."""
    return int(Fraction(str(fraction)) * number)


def _reaching(ranked: pl.DataFrame, threshold: float | None) -> pl.DataFrame:
    rated = ranked.drop_nulls("rating")
    reaching = rated if threshold is None else rated.filter(pl.col("rating") >= threshold)
    if reaching.is_empty():
        raise UserError(
            f"no usable row has a rating of {_at_least(threshold)}; lower select.threshold, or "
            "have the rows of this run rated"
        )
    return reaching


def _at_least(threshold: float | None) -> str:
    return "any kind" if threshold is None else f"at least {threshold:g}"


def _rank(
    usable: pl.DataFrame, strategy: Strategy, *, later_of_equals: bool, seed: int
) -> pl.DataFrame:
    """The usable rows, best first."""
    if strategy is Strategy.random:
        return usable[np.random.default_rng(seed).permutation(usable.height)]
    columns = {
        Strategy.high_conditioned: "conditioned_score",
        Strategy.longest: "num_answer_tokens",
        Strategy.rating: "rating",
    }
    column = columns.get(strategy, "ifd")
    highest_first = strategy is not Strategy.low_ifd
    return usable.sort([column, "row"], descending=[highest_first, later_of_equals])


def _number_within(ranked: pl.DataFrame, num_tokens: int) -> int:
    number = int((ranked["num_answer_tokens"].cast(pl.Int64).cum_sum() <= num_tokens).sum())
    if number == 0:
        raise UserError(
            f"select.num_tokens={num_tokens} chooses no row of {ranked.height} usable ones; "
            "ask for more"
        )
    return number


def _number(
    usable: int, rows: int, *, fraction: float | None, count: int | None, rule: Rule
) -> int:
    if count is not None:
        number, asked = count, f"select.count={count}"
    elif fraction is not None and 0 < fraction <= 1:
        asked = f"select.fraction={fraction}"
        if rule is Rule.exact:
            number = take_share(usable, fraction)
        else:
            number = int(fraction * (usable if rule is Rule.data_by_ifd else rows))
    else:
        raise UserError(f"select.fraction={fraction}: give a number above 0 and up to 1")
    if usable == 0:
        raise UserError("no row is usable; the summary of `score` counts the reasons")
    if number <= 0:
        raise UserError(f"{asked} chooses no row of {usable} usable ones; ask for more")
    if number > usable and not (rule is Rule.select_from_ifd_json and count is None):
        raise UserError(f"{asked}: only {usable} rows are usable; ask for fewer")
    return number
