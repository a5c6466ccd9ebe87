"""Two choices side by side: what they share, and what each prefers."""

from collections.abc import Sequence
from typing import Any

import polars as pl
from polars import selectors as cs

from cherry_vllm.selection.explanation import QUARTILES
from cherry_vllm.selection.quotas import Strata

FIRST, BOTH, SECOND = "only_first", "both", "only_second"  # the groups of the chosen rows
GROUPS = (FIRST, BOTH, SECOND)


def group_rows(scores: pl.DataFrame, first: Sequence[int], second: Sequence[int]) -> pl.DataFrame:
    """The lines of ``scores`` that either chose, with a column ``group``."""
    in_first, in_second = (pl.col("row").is_in(list(rows)) for rows in (first, second))
    group = (
        pl.when(in_first & in_second)
        .then(pl.lit(BOTH))
        .when(in_first)
        .then(pl.lit(FIRST))
        .when(in_second)
        .then(pl.lit(SECOND))
    )
    return scores.with_columns(group=group).filter(pl.col("group").is_not_null())


def compare(grouped: pl.DataFrame) -> dict[str, Any]:
    """What two choices have in common, from the frame of :func:`group_rows`.

    ``num_rows`` has the rows of each group; ``jaccard`` is the share of the rows of both among
    those of either. ``quartiles`` has, for each column of numbers that differ, those of each group;
    null for a group without a finite value.
    """
    counts = dict(grouped.group_by("group").len().iter_rows())
    held = {group: grouped.filter(pl.col("group") == group) for group in GROUPS}
    columns = grouped.select(cs.numeric().exclude("row")).columns
    return {
        "num_rows": {group: counts.get(group, 0) for group in GROUPS},
        "jaccard": counts.get(BOTH, 0) / grouped.height,
        "quartiles": {
            name: {group: _quartiles(rows[name]) for group, rows in held.items()}
            for name in columns
            if grouped[name].drop_nulls().n_unique() > 1
        },
    }


def share_strata(
    pool: pl.DataFrame, strata: Strata, first: Sequence[int], second: Sequence[int]
) -> dict[str, dict[str, int]]:
    """The rows of each stratum in the pool and in each choice."""
    codes = pool.select("row", stratum=strata.codes)
    chosen = {"pool": pool["row"].to_list(), "first": list(first), "second": list(second)}
    counts = {
        name: dict(codes.filter(pl.col("row").is_in(rows)).group_by("stratum").len().iter_rows())
        for name, rows in chosen.items()
    }
    return {
        label: {name: found.get(code, 0) for name, found in counts.items()}
        for code, label in enumerate(strata.labels)
    }


def _quartiles(values: pl.Series) -> list[float] | None:
    numbers = values.drop_nulls().cast(pl.Float64)
    numbers = numbers.filter(numbers.is_finite())
    if numbers.is_empty():
        return None
    return [float(numbers.quantile(q, "linear")) for q in QUARTILES]  # type: ignore[arg-type]
