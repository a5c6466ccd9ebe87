"""Rows of the data to ratings: the judge sees one answer at a time.

run_dir/replies.jsonl   every reply (:mod:`requests`)
.../ratings.parquet     one line per input row (:data:`RATINGS`)
.../ratings.json        settings and counts
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from cherry_vllm.conversation import show_conversations
from cherry_vllm.evaluation.endpoint import Endpoint
from cherry_vllm.evaluation.parsing import parse_rating
from cherry_vllm.evaluation.prompts import RatingRequests
from cherry_vllm.evaluation.replies import Reply
from cherry_vllm.evaluation.requests import ask_about_rows
from cherry_vllm.evaluation.result_files import ResultFiles
from cherry_vllm.schema import Schema
from cherry_vllm.store.run_folder import File

# One line per input row: ratings.parquet.
RATINGS: Schema = {
    "row": pl.Int64,
    "rating": pl.Float64,  # from 0 to 5
    "reason": pl.String,  # why there is none: a drop reason, "unparsed" or "failed"
    "request": pl.String,  # in replies.jsonl; null for a row that is not asked about
}


@dataclass(frozen=True)
class Rated:
    """Ratings, and what went wrong or is doubtful about them."""

    ratings: pl.DataFrame
    failures: Counter[str]  # reasons of failed requests
    rows_with_markers: Sequence[int]  # their text contains markers of the judge's prompt


def rate(run_dir: Path, rows: pl.LazyFrame, requests: RatingRequests, endpoint: Endpoint) -> Rated:
    """Has the judge rate every usable row of a frame of :data:`schema.ROWS`.

    The ratings are a frame of :data:`RATINGS`, which has all rows.

    Raises:
        UserError: the endpoint refuses the settings or is down, or no request has a reply.
    """
    known = rows.select("row", "messages", "tools", "drop_reason").collect()
    asked = show_conversations(known.filter(pl.col("drop_reason").is_null()))
    shown = asked.select("row", "instruction", "input", "answer").iter_rows()
    texts = {row: texts for row, *texts in shown}
    bodies = {row: requests.build(*shown) for row, shown in texts.items()}
    replies, failures = ask_about_rows(run_dir, bodies, endpoint)
    lines: list[tuple[Any, ...]] = []
    for row, drop_reason in known.select("row", "drop_reason").iter_rows():
        name, reply = replies.get(row, (None, None))
        lines.append((row, *_read_rating(drop_reason, reply), name))
    with_markers = [row for row, shown in texts.items() if requests.holds_marker(shown)]
    return Rated(pl.DataFrame(lines, schema=RATINGS, orient="row"), failures, with_markers)


def _read_rating(drop_reason: str | None, reply: Reply | None) -> tuple[float | None, str | None]:
    """A row's rating, and why it has none."""
    if drop_reason is not None:
        return None, drop_reason
    if reply is None:
        return None, "failed"
    rating = parse_rating(reply.text, is_whole=reply.is_whole)
    return rating, "unparsed" if rating is None else None


def find_results(output_dir: Path) -> ResultFiles:
    return ResultFiles(output_dir / File.RATINGS, output_dir / File.RATING_SUMMARY)


def write(
    results: ResultFiles,
    rated: Rated,
    *,
    threshold: float,
    origin: str,
    settings: Mapping[str, Any],
) -> dict[str, int]:
    """Writes the ratings and their summary; returns the counts.

    ``origin`` names the data whose rows these are (:func:`row_shards.name_data`).
    """
    ratings = rated.ratings
    reasons = ratings["reason"].drop_nulls().value_counts(sort=True).iter_rows()
    counts = {
        "rows": ratings.height,
        "rated": ratings["rating"].count(),
        "reach_threshold": ratings.filter(pl.col("rating") >= threshold).height,
        **dict(reasons),
    }
    summary = {
        "settings": settings,
        "threshold": threshold,
        "counts": counts,
        "failures": rated.failures,
        "with_markers": rated.rows_with_markers,
    }
    results.write(ratings, summary, origin=origin)
    return counts
