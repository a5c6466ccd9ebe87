"""Rows of the data to ratings: a judge looks at each answer by itself.

run_dir/replies.jsonl   every reply (:mod:`asking`)
.../ratings.parquet     one line per input row (:data:`RATINGS`)
.../ratings.json        settings and counts
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from cherry_vllm import __version__
from cherry_vllm.errors import UserError
from cherry_vllm.evaluation.endpoint import Endpoint
from cherry_vllm.evaluation.parsing import parse_rating
from cherry_vllm.evaluation.prompts import RatingRequests
from cherry_vllm.evaluation.replies import Reply
from cherry_vllm.evaluation.requests import ask_about_rows
from cherry_vllm.schema import Schema
from cherry_vllm.store.files import ROW_GROUP_ROWS, atomic_path, write_json

# One line per input row: ratings.parquet.
RATINGS: Schema = {
    "row": pl.Int64,
    "rating": pl.Float64,  # from 0 to 5
    "reason": pl.String,  # why there is none: a drop reason, "unparsed" or "failed"
    "request": pl.String,  # in replies.jsonl; null for a row that is not asked about
}


def rate(
    run_dir: Path,
    rows: pl.LazyFrame,
    requests: RatingRequests,
    endpoint: Endpoint,
    *,
    concurrency: int,
) -> tuple[pl.DataFrame, Counter[str]]:
    """Has every usable row rated; counts the reasons of requests that failed.

    ``rows`` is a frame of :data:`schema.ROWS`, the result one of :data:`RATINGS`.

    Raises:
        UserError: the endpoint refuses the settings or is down, or no request has a reply.
    """
    known = rows.select("row", "instruction", "input", "answer", "drop_reason").collect()
    asked = known.filter(pl.col("drop_reason").is_null()).drop("drop_reason")
    bodies = {row: requests.build(*texts) for row, *texts in asked.iter_rows()}
    replies, failures = ask_about_rows(run_dir, bodies, endpoint, concurrency=concurrency)
    lines: list[tuple[Any, ...]] = []
    for row, drop_reason in known.select("row", "drop_reason").iter_rows():
        name, reply = replies.get(row, (None, None))
        lines.append((row, *_read_rating(drop_reason, reply), name))
    return pl.DataFrame(lines, schema=RATINGS, orient="row"), failures


def _read_rating(drop_reason: str | None, reply: Reply | None) -> tuple[float | None, str | None]:
    """A row's rating, or else why it has none."""
    if drop_reason is not None:
        return None, drop_reason
    if reply is None:
        return None, "failed"
    rating = parse_rating(reply.text, is_whole=reply.is_whole)
    return rating, "unparsed" if rating is None else None


def write(
    output_dir: Path,
    ratings: pl.DataFrame,
    *,
    threshold: float,
    failures: Mapping[str, int],
    origin: str,
    settings: Mapping[str, Any],
) -> dict[str, int]:
    """Writes ``ratings.parquet`` and ``ratings.json``; returns the counts.

    ``origin`` names the data whose rows these are (:func:`pipeline.name_data`).
    """
    reasons = ratings["reason"].drop_nulls().value_counts(sort=True).iter_rows()
    counts = {
        "rows": ratings.height,
        "rated": ratings["rating"].count(),
        "reach_threshold": ratings.filter(pl.col("rating") >= threshold).height,
        **dict(reasons),
    }
    with atomic_path(output_dir / "ratings.parquet") as path:
        ratings.write_parquet(path, row_group_size=ROW_GROUP_ROWS, metadata={"origin": origin})
    write_json(
        output_dir / "ratings.json",
        {
            "version": __version__,
            "settings": settings,
            "threshold": threshold,
            "counts": counts,
            "failures": failures,
        },
    )
    return counts


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
