"""Scores to chosen rows: where, rank, duplicates, caps, balance, diversity.

A step takes the rows that the last one left, best first, and leaves some of them.
"""

from fractions import Fraction
from typing import NamedTuple

import numpy as np
import polars as pl

from cherry_vllm.errors import UserError
from cherry_vllm.options import Order, Pool, Rule
from cherry_vllm.schema import DropReason
from cherry_vllm.selection.choice import Choice
from cherry_vllm.selection.columns import RANK, Sources
from cherry_vllm.selection.diversity import keep_embedded, pick_diverse
from cherry_vllm.selection.duplicates import drop_duplicates
from cherry_vllm.selection.expressions import Expression, Expressions, evaluate
from cherry_vllm.selection.quotas import Strata, allocate, apportion, divide, weigh

NO_SOURCES = Sources()


class Chosen(NamedTuple):
    """Chosen rows, and how they came to be chosen."""

    rows: pl.DataFrame  # in output order; the scores, the columns that were added, and the rank
    pool: pl.DataFrame  # the rows that met ``where``, by row
    steps: dict[str, int]  # how many rows each step left
    dropped: dict[str, int]  # ranked rows that cannot be chosen: "duplicate", "no_embedding"
    strata: pl.DataFrame  # stratum, pool, selected (rows), is_short (has less than its part)


def select_rows(scores: pl.DataFrame, choice: Choice) -> pl.DataFrame:
    """The chosen lines of ``scores``, in output order; expressions see only its columns.

    See :func:`choose`.
    """
    return choose(scores, choice).rows.select(scores.columns)


def choose(scores: pl.DataFrame, choice: Choice, sources: Sources = NO_SOURCES) -> Chosen:
    """Chooses lines of ``scores`` (:data:`schema.SCORES`, in any order) by the steps of ``choice``.

    Raises:
        UserError: no row would be chosen, or more rows than there are; or an expression does not
            fit the columns.
    """
    expressions = Expressions(choice, [*scores.columns, *sources.known])
    pool = _pool(scores, choice.pool)
    steps = {"rows read": scores.height, choice.pool.value: pool.height}
    pool = sources.add(pool.sort("row"), expressions.columns)
    expressions.check(pool.columns, sources.known)
    if expressions.where:
        pool = _where(pool, expressions.where)
        steps["where"] = pool.height
    ranked = _rank(pool, choice, expressions.rank)
    if ranked.height < pool.height:
        steps["with a rank"] = ranked.height
    if choice.threshold is not None:
        ranked = ranked.filter(pl.col(RANK) >= choice.threshold)
        steps["threshold"] = ranked.height
    if ranked.is_empty():
        raise UserError(
            f"none of {pool.height} {_rows(choice)} have {_what(choice)}; change select.rank or "
            "select.threshold"
        )
    ranked, dropped = _drop(ranked, choice, sources, steps)
    if expressions.group:
        ranked = _cap(ranked, choice.max_per_group or 1, expressions.group)
        steps["max_per_group"] = ranked.height
    budget = _budget(ranked, pool.height, scores.height, choice)
    parts = divide(pool, expressions.strata, choice.bins)
    rows, strata = _take(ranked, pool, choice, budget, parts, sources=sources)
    steps["selected"] = rows.height
    return Chosen(_order(rows, choice), pool, steps, dropped, strata)


def take_share(number: int, fraction: float) -> int:
    """``fraction`` of ``number``, rounded down. The product is exact: 0.29 of 100 is 29."""
    return int(Fraction(str(fraction)) * number)


def _pool(scores: pl.DataFrame, pool: Pool) -> pl.DataFrame:
    kept = pl.col("drop_reason").is_null()
    if pool is Pool.scored:
        kept |= pl.col("drop_reason") == DropReason.IFD_ABOVE_ONE.value
    found = scores.filter(kept)
    if found.is_empty():
        raise UserError(f"no row is {pool.value}; the summary of `score` counts the reasons")
    return found


def _where(pool: pl.DataFrame, where: Expression) -> pl.DataFrame:
    """The rows that meet the condition; one that is neither true nor false is not met."""
    meets = evaluate(where, pool)
    if meets.dtype != pl.Boolean:
        raise where.refuse(f"{meets.dtype}, not true or false; give a condition, as in 'ifd < 0.9'")
    kept = pool.filter(meets)
    if kept.is_empty():
        raise where.refuse(f"met by none of {pool.height} rows; ask for less")
    return kept


def _rank(pool: pl.DataFrame, choice: Choice, rank: Expression | None) -> pl.DataFrame:
    """The rows that have a rank, best first."""
    if rank is None:
        return pool[np.random.default_rng(choice.seed).permutation(pool.height)]
    values = evaluate(rank, pool)
    if not values.dtype.is_numeric():
        raise rank.refuse(f"{values.dtype}, not a number; give one to rank by")
    later_of_equals = choice.rule is Rule.data_by_ifd
    return (
        pool.with_columns(values.cast(pl.Float64).alias(RANK))
        .filter(pl.col(RANK).is_finite())
        .sort([RANK, "row"], descending=[True, later_of_equals])
    )


def _drop(
    ranked: pl.DataFrame, choice: Choice, sources: Sources, steps: dict[str, int]
) -> tuple[pl.DataFrame, dict[str, int]]:
    """The rows without duplicates, and with an embedding if one is needed; and how many go.

    Raises:
        UserError: the texts or embeddings that this takes are not there.
    """
    dropped, before = {}, ranked.height
    if choice.diversify:
        ranked = keep_embedded(ranked, sources.embeddings)
        steps["with an embedding"] = ranked.height
        dropped["no_embedding"] = before - ranked.height
        before = ranked.height
    if choice.dedup:
        texts = sources.open_rows(f"select.dedup={choice.dedup.value}")
        ranked = drop_duplicates(
            ranked, texts, choice.dedup, choice.dedup_on, choice.dedup_threshold
        )
        steps["dedup"] = ranked.height
        dropped["duplicate"] = before - ranked.height
    return ranked, dropped


def _cap(ranked: pl.DataFrame, most: int, group: Expression) -> pl.DataFrame:
    """The first ``most`` rows of each group; a row without a value is a group of its own."""
    groups = evaluate(group, ranked).rename("group")
    place = pl.int_range(pl.len()).over("group")
    kept = groups.to_frame().select((place < most) | pl.col("group").is_null()).to_series()
    return ranked.filter(kept)


def _budget(ranked: pl.DataFrame, in_pool: int, rows: int, choice: Choice) -> int:
    """How many rows are chosen, or how many answer tokens if ``num_tokens`` is given.

    ``in_pool`` and ``rows`` count the rows that met ``where``, and all rows.
    """
    if choice.num_tokens is not None:
        return choice.num_tokens
    if choice.count is not None:
        number, asked = choice.count, f"count={choice.count}"
    elif choice.fraction is not None:
        number = _share(in_pool, rows, choice.fraction, choice.rule)
        asked = f"fraction={choice.fraction}"
    else:
        return ranked.height
    if number == 0:
        raise UserError(f"select.{asked}: chooses none of {in_pool} {_rows(choice)}; ask for more")
    if number > in_pool:
        raise UserError(f"select.{asked}: there are only {in_pool} {_rows(choice)}; ask for fewer")
    if number > ranked.height:
        within = " and an embedding" if choice.diversify else ""
        within += " without duplicates" if choice.dedup else ""
        within += "" if choice.max_per_group is None else " within select.max_per_group"
        raise UserError(
            f"select.{asked}: asks for {number} rows, but only {ranked.height} {_rows(choice)} "
            f"have {_what(choice)}{within}; ask for fewer"
            f"{', or lower select.threshold' if choice.threshold is not None else ''}"
        )
    return number


def _share(usable: int, rows: int, fraction: float, rule: Rule) -> int:
    if rule is Rule.exact:
        return take_share(usable, fraction)
    if rule is Rule.data_by_ifd:
        return int(fraction * usable)
    return min(int(fraction * rows), usable)


def _take(
    ranked: pl.DataFrame,
    pool: pl.DataFrame,
    choice: Choice,
    budget: int,
    strata: Strata,
    *,
    sources: Sources,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The first rows of each stratum, or diverse ones, as many as fit into its part of the budget.

    Also returns the strata.

    ``strata`` are those of the pool. The budget is a number of rows, or of answer tokens if
    ``num_tokens`` is given, and so are the sizes by which it is divided.
    """
    by_tokens = choice.num_tokens is not None
    cost = pl.col("num_answer_tokens").cast(pl.Int64) if by_tokens else pl.lit(1, pl.Int64)
    held = pool.select("row", stratum=strata.codes, cost=cost)
    placed = ranked.select("row").join(held, on="row", how="left", maintain_order="left")
    num_strata = len(strata.labels)
    weights = weigh(choice.quota, strata.labels, _sum_by_stratum(held, num_strata))
    capacities = _sum_by_stratum(placed, num_strata)
    parts = allocate(budget, weights, capacities)
    if not by_tokens and sum(parts) < budget:
        raise UserError(
            f"select.quota: its strata have only {sum(parts)} of {budget} rows; name more of them"
        )
    if choice.diversify:
        embeddings = sources.embeddings
        fits = pick_diverse(
            placed, parts, embeddings, method=choice.diversify, times=choice.candidates
        )
    else:
        spent = placed.select(pl.col("cost").cum_sum().over("stratum")).to_series()
        fits = spent <= pl.Series(parts, dtype=pl.Int64).gather(placed["stratum"])
    if not fits.any():
        raise UserError(
            f"select.num_tokens={choice.num_tokens}: chooses none of {pool.height} "
            f"{_rows(choice)}; ask for more"
        )
    wanted = apportion(budget, weights)
    shown = pl.DataFrame(
        {
            "stratum": strata.labels,
            "pool": np.bincount(held["stratum"], minlength=num_strata),
            "selected": np.bincount(placed["stratum"].filter(fits), minlength=num_strata),
            "is_short": [had < asked for had, asked in zip(capacities, wanted, strict=True)],
        }
    )
    return ranked.filter(fits), shown


def _sum_by_stratum(rows: pl.DataFrame, num_strata: int) -> list[int]:
    sums = dict(rows.group_by("stratum").agg(pl.col("cost").sum()).iter_rows())
    return [sums.get(code, 0) for code in range(num_strata)]


def _order(rows: pl.DataFrame, choice: Choice) -> pl.DataFrame:
    if choice.rule is Rule.exact:
        by_ifd = choice.order is Order.ifd
    else:
        by_ifd = choice.rule is Rule.select_from_ifd_json
    return rows.sort(["ifd", "row"], descending=[True, False]) if by_ifd else rows.sort("row")


def _rows(choice: Choice) -> str:
    """What the rows of the pool are called."""
    return f"{choice.pool.value} rows{' that meet select.where' if choice.where else ''}"


def _what(choice: Choice) -> str:
    """What a row needs to be chosen."""
    name = "a rating" if choice.rank == "rating" else "a finite rank"
    return name if choice.threshold is None else f"{name} of at least {choice.threshold:g}"
