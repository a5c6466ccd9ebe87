"""Scores to chosen rows: the cherry data and its baselines."""

from fractions import Fraction

import numpy as np
import polars as pl

from cherry_vllm.errors import UserError
from cherry_vllm.options import Order, Rule, Strategy
from cherry_vllm.selection.choice import Choice

RANKED_BY = {
    Strategy.cherry: "ifd",
    Strategy.low_ifd: "ifd",
    Strategy.high_conditioned: "conditioned_score",
    Strategy.longest: "num_answer_tokens",
    Strategy.rating: "rating",
}


def select_rows(scores: pl.DataFrame, choice: Choice) -> pl.DataFrame:
    """The chosen lines of ``scores`` (:data:`schema.SCORES`), in output order.

    A row is usable if it has no ``drop_reason``. The strategy ``rating`` needs the columns of
    :func:`add_ratings`.

    Raises:
        UserError: no row would be chosen, or more rows than are usable.
    """
    usable = scores.filter(pl.col("drop_reason").is_null())
    if usable.is_empty():
        raise UserError("no row is usable; the summary of `score` counts the reasons")
    ranked = _rank(usable, choice)
    if choice.strategy is Strategy.rating:
        ranked = _reaching(ranked, choice.threshold)
    chosen = ranked.head(_count(ranked, usable.height, scores.height, choice))
    if choice.rule is Rule.exact:
        by_ifd = choice.order is Order.ifd
    else:
        by_ifd = choice.rule is Rule.select_from_ifd_json
    return chosen.sort(["ifd", "row"], descending=[True, False]) if by_ifd else chosen.sort("row")


def take_share(number: int, fraction: float) -> int:
    """``fraction`` of ``number``, rounded down. The product is exact: 0.29 of 100 is 29."""
    return int(Fraction(str(fraction)) * number)


def _rank(usable: pl.DataFrame, choice: Choice) -> pl.DataFrame:
    """The usable rows, best first."""
    if choice.strategy is Strategy.random:
        return usable[np.random.default_rng(choice.seed).permutation(usable.height)]
    column = RANKED_BY[choice.strategy]
    highest_first = choice.strategy is not Strategy.low_ifd
    later_of_equals = choice.rule is Rule.data_by_ifd
    return usable.sort([column, "row"], descending=[highest_first, later_of_equals])


def _reaching(ranked: pl.DataFrame, threshold: float | None) -> pl.DataFrame:
    """The ranked rows whose rating reaches the threshold."""
    rated = ranked.drop_nulls("rating")
    reaching = rated if threshold is None else rated.filter(pl.col("rating") >= threshold)
    if reaching.is_empty():
        raise UserError(
            f"no usable row has a rating{_at_least(threshold)}; lower select.threshold, or rate "
            "the rows of this run first"
        )
    return reaching


def _at_least(threshold: float | None) -> str:
    return "" if threshold is None else f" of at least {threshold:g}"


def _count(ranked: pl.DataFrame, usable: int, rows: int, choice: Choice) -> int:
    """How many of the ``ranked`` rows are chosen; ``usable`` and ``rows`` count usable and all."""
    if choice.num_tokens is not None:
        tokens = ranked["num_answer_tokens"].cast(pl.Int64).cum_sum()
        number, asked = int((tokens <= choice.num_tokens).sum()), f"num_tokens={choice.num_tokens}"
    elif choice.count is not None:
        number, asked = choice.count, f"count={choice.count}"
    elif choice.fraction is not None:
        number = _share(usable, rows, choice.fraction, choice.rule)
        asked = f"fraction={choice.fraction}"
    else:
        return ranked.height
    if number == 0:
        raise UserError(f"select.{asked}: chooses none of {usable} usable rows; ask for more")
    if number > usable:
        raise UserError(f"select.{asked}: only {usable} rows are usable; ask for fewer")
    if number > ranked.height:
        raise UserError(
            f"select.{asked}: asks for {number} rows, but only {ranked.height} usable rows have a "
            f"rating{_at_least(choice.threshold)}; ask for fewer, or change select.threshold"
        )
    return number


def _share(usable: int, rows: int, fraction: float, rule: Rule) -> int:
    if rule is Rule.exact:
        return take_share(usable, fraction)
    if rule is Rule.data_by_ifd:
        return int(fraction * usable)
    return min(int(fraction * rows), usable)
