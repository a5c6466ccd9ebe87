"""The rows at either end of the IFD scale."""

from enum import StrEnum

import polars as pl

from cherry_vllm.selection.ranking import take_share


class Side(StrEnum):
    """The part of the IFD scale that a usable row belongs to."""

    TOP = "top"
    LEAST = "least"
    OTHERS = "others"


def label_sides(
    scores: pl.DataFrame, *, fraction: float | None = None, count: int | None = None
) -> pl.DataFrame:
    """The usable rows of :data:`schema.SCORES`, highest IFD first, with their ``side``.

    Each end holds ``count`` rows, or else ``fraction`` of them, rounded down but at least one. Both
    ends have the same length and share no row.
    """
    usable = scores.filter(pl.col("drop_reason").is_null())
    ranked = usable.sort(["ifd", "row"], descending=[True, False])
    if count is None:
        count = max(1, take_share(ranked.height, fraction or 0))
    size = min(count, ranked.height // 2)
    position = pl.int_range(pl.len())
    return ranked.with_columns(
        side=pl.when(position < size)
        .then(pl.lit(Side.TOP.value))
        .when(position >= pl.len() - size)
        .then(pl.lit(Side.LEAST.value))
        .otherwise(pl.lit(Side.OTHERS.value))
    )
