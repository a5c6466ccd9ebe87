"""A judge's ratings of rows, as ``judge judge=rating`` leaves them."""

from pathlib import Path

import polars as pl

from cherry_vllm.errors import UserError

NOT_RATED = "not rated"


def read_ratings(file: Path, origin: str | None = None) -> pl.DataFrame:
    """Ratings that :func:`write` left, or a Parquet file of one's own with ``row`` and ``rating``.

    Without ``origin`` they may be of any data.

    Raises:
        UserError: the file is no such table, or its rows are not those of the data ``origin``.
    """
    try:
        found = pl.read_parquet_metadata(file).get("origin")
        frame = pl.read_parquet(file, glob=False)
    except FileNotFoundError:
        raise UserError(
            f"{file}: no such file; make it with `cherry-vllm judge judge=rating`, or name another "
            "with select.ratings"
        ) from None
    except (pl.exceptions.PolarsError, OSError) as error:
        fault = str(error).strip().splitlines()[0]
        raise UserError(f"{file}: not readable ({fault}); give a ratings.parquet") from None
    if found and origin and found != origin:
        raise UserError(f"{file}: ratings of other data than was scored; rate the same data.path")
    schema = dict(frame.schema)
    numbers = [schema.get(name, pl.Null()) for name in ("row", "rating")]
    if not (numbers[0].is_integer() and numbers[1].is_numeric()):
        raise UserError(f"{file}: no ratings; give a Parquet file with the numbers row and rating")
    is_fault = (
        pl.col("row").is_null() | pl.col("row").is_duplicated() | ~pl.col("rating").is_finite()
    )
    for row, rating in frame.filter(is_fault).select("row", "rating").head(1).iter_rows():
        raise UserError(
            f"{file}: row {row}, rating {rating}: give each row once, with a finite number or null"
        )
    reason = pl.col("reason") if "reason" in schema else pl.lit(None)
    return frame.select(
        pl.col("row").cast(pl.Int64), pl.col("rating").cast(pl.Float64), reason=reason
    ).cast({"reason": pl.String})


def add_ratings(scores: pl.DataFrame, ratings: pl.DataFrame) -> pl.DataFrame:
    """``scores`` with the columns ``rating`` and ``rating_reason``, which says why there is none.

    ``ratings`` holds row, rating and reason; a row that it does not have is "not rated".
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
    """Why usable rows of a frame with ratings have none, counted."""
    unrated = scores.filter(pl.col("drop_reason").is_null() & pl.col("rating").is_null())
    return dict(unrated["rating_reason"].value_counts(sort=True).iter_rows())
