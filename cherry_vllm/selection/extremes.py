"""The rows at either end of the IFD scale."""

from enum import StrEnum
from fractions import Fraction

import polars as pl


class Side(StrEnum):
    """Where a usable row stands by its IFD."""

    TOP = "top"
    LEAST = "least"
    OTHERS = "others"


def mark_sides(scores: pl.DataFrame, fraction: float) -> pl.DataFrame:
    """The usable rows of :data:`schema.SCORES`, highest IFD first, with their ``side``.

    Each end holds ``fraction`` of them, rounded down but at least one; of a single row none.
    """
    usable = scores.filter(pl.col("drop_reason").is_null())
    ranked = usable.sort(["ifd", "row"], descending=[True, False])
    size = min(max(1, int(Fraction(str(fraction)) * ranked.height)), ranked.height // 2)
    position = pl.int_range(pl.len())
    return ranked.with_columns(
        side=pl.when(position < size)
        .then(pl.lit(Side.TOP.value))
        .when(position >= pl.len() - size)
        .then(pl.lit(Side.LEAST.value))
        .otherwise(pl.lit(Side.OTHERS.value))
    )
