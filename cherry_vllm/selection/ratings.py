"""A judge's ratings of rows, as ``cherry-vllm judge judge=rating`` writes them."""

from pathlib import Path

import polars as pl

from cherry_vllm.errors import UserError
from cherry_vllm.runtime.text import first_line

NOT_RATED = "not rated"
RATING_REASON = "rating_reason"  # a column: why a row has no rating


def read_ratings(file: Path, origin: str | None = None) -> pl.DataFrame:
    """Reads a judge's ratings, or any Parquet file with the columns ``row`` and ``rating``.

    ``origin`` names the data whose rows are rated (:func:`row_shards.name_data`).

    Raises:
        UserError: the file is not such a table, or rates rows of other data.
    """
    try:
        rated = pl.read_parquet_metadata(file).get("origin")
        frame = pl.read_parquet(file, glob=False)
    except FileNotFoundError:
        raise UserError(
            f"{file}: no such file; run `cherry-vllm judge judge=rating` first, or set "
            "select.ratings to another file"
        ) from None
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise UserError(
            f"{file}: not a Parquet file ({first_line(error)}); check select.ratings"
        ) from None
    if rated and origin and rated != origin:
        raise UserError(
            f"{file}: ratings of other data than this run scored; rate the same data.path with the "
            "same data.columns, score.turns and settings of the format"
        )
    schema = dict(frame.schema)
    numbers = [schema.get(name, pl.Null()) for name in ("row", "rating")]
    if not (numbers[0].is_integer() and numbers[1].is_numeric()):
        raise UserError(
            f"{file}: no ratings; it needs the columns row (whole numbers) and rating (numbers)"
        )
    reason = schema.get("reason", pl.String())
    if not isinstance(reason, pl.String | pl.Enum | pl.Categorical | pl.Null):
        raise UserError(f"{file}: the column reason holds {reason}; make it text, or leave it out")
    number = pl.col("row").cast(pl.Int64, strict=False)  # a number that is too large becomes null
    rating = pl.col("rating").cast(pl.Float64)
    is_fault = number.is_null() | number.is_duplicated() | ~rating.is_finite()
    for row, found in frame.filter(is_fault).select("row", "rating").head(1).iter_rows():
        raise UserError(
            f"{file}: row {row} has the rating {found}; each row may occur once, with a finite "
            "number or null"
        )
    reasons = pl.col("reason") if "reason" in schema else pl.lit(None)
    return frame.select(pl.col("row").cast(pl.Int64), rating, reason=reasons.cast(pl.String))


def add_ratings(scores: pl.DataFrame, ratings: pl.DataFrame) -> pl.DataFrame:
    """Adds the columns ``rating`` and ``rating_reason``, which says why a row has no rating.

    ``ratings`` has the columns row, rating and reason; a row that is not in it is "not rated".
    """
    joined = scores.join(
        ratings.select("row", "rating", rating_reason="reason"),
        on="row",
        how="left",
        maintain_order="left",
    )
    is_unknown = pl.col("rating").is_null() & pl.col("rating_reason").is_null()
    reason = pl.when(is_unknown).then(pl.lit(NOT_RATED)).otherwise("rating_reason")
    return joined.with_columns(rating_reason=reason)


def count_unrated(scores: pl.DataFrame) -> dict[str, int]:
    """Counts the usable rows without a rating, by reason."""
    unrated = scores.filter(pl.col("drop_reason").is_null() & pl.col("rating").is_null())
    return dict(unrated["rating_reason"].value_counts(sort=True).iter_rows())
