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
