"""Instructions with the highest and the lowest IFD, rated aspect by aspect (paper, Figure 6).

run_dir/replies.jsonl       every reply (:mod:`requests`)
.../aspects.parquet         one line per rated row (:data:`ASPECTS` and a column for each aspect)
.../aspects.json            settings, counts and means
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from cherry_vllm.errors import UserError
from cherry_vllm.evaluation.endpoint import Endpoint
from cherry_vllm.evaluation.parsing import parse_aspects
from cherry_vllm.evaluation.prompts import AspectRequests
from cherry_vllm.evaluation.ratings import Rated
from cherry_vllm.evaluation.requests import ask_about_rows
from cherry_vllm.evaluation.result_files import ResultFiles
from cherry_vllm.schema import Schema
from cherry_vllm.selection.ranking import take_share
from cherry_vllm.selection.sides import Side, label_sides
from cherry_vllm.store.run_folder import File

SIDES = (Side.TOP.value, Side.LEAST.value)
COUNTS = ("rows", "rated", "unparsed", "failed")

# The aspects, from 0 to 10, follow as columns of Float64.
ASPECTS: Schema = {
    "row": pl.Int64,
    "side": pl.Enum(SIDES),
    "ifd": pl.Float64,
    "reason": pl.String,  # why there is no rating: "unparsed" or "failed"
    "request": pl.String,  # in replies.jsonl
}


def highest_and_lowest(
    scores: pl.DataFrame, *, fraction: float | None, count: int | None
) -> pl.DataFrame:
    """The usable rows with the highest and with the lowest IFD: columns row, side and ifd.

    Each side has ``count`` rows, or else ``fraction`` of the usable rows, rounded down.

    Raises:
        UserError: a side would be empty, or the two would overlap.
    """
    if fraction is None and count is None:
        raise UserError(
            "judge.fraction: not given, and neither is judge.count; give one of the two"
        )
    usable = scores["drop_reason"].null_count()
    number = take_share(usable, fraction or 0) if count is None else count
    if not 0 < number <= usable // 2:
        asked = f"judge.fraction={fraction}" if count is None else f"judge.count={count}"
        raise UserError(
            f"{asked}: {number} rows on each side, of {usable} usable ones; ask for at least 1 and "
            "at most half of them"
        )
    ends = label_sides(scores, count=number).filter(pl.col("side") != Side.OTHERS.value)
    return ends.select("row", pl.col("side").cast(ASPECTS["side"]), "ifd")


def rate(run_dir: Path, rows: pl.DataFrame, requests: AspectRequests, endpoint: Endpoint) -> Rated:
    """Has the judge rate every row's instruction.

    ``rows`` has the columns row, side, ifd, instruction and input. The ratings are a frame of
    :data:`ASPECTS` and one column per aspect; a row has all aspects or none.

    Raises:
        UserError: the endpoint refuses the settings or is down, or no request has a reply.
    """
    texts = {row: shown for row, *shown in rows.select("row", "instruction", "input").iter_rows()}
    bodies = {row: requests.build(*shown) for row, shown in texts.items()}
    replies, failures = ask_about_rows(run_dir, bodies, endpoint)
    lines: list[tuple[Any, ...]] = []
    for row, side, ifd in rows.select("row", "side", "ifd").iter_rows():
        name, reply = replies[row]
        found = reply and parse_aspects(reply.text, requests.aspects, is_whole=reply.is_whole)
        missing = "failed" if reply is None else "unparsed"
        gap = (None,) * len(requests.aspects)
        lines.append((row, side, ifd, None if found else missing, name, *(found or gap)))
    schema = {**ASPECTS, **dict.fromkeys(requests.aspects, pl.Float64)}
    with_markers = [row for row, shown in texts.items() if requests.holds_marker(shown)]
    return Rated(pl.DataFrame(lines, schema=schema, orient="row"), failures, with_markers)


def summarize(ratings: pl.DataFrame, aspects: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The counts and means of each side; a mean over no rating is None."""
    summary = {}
    for side in SIDES:
        part = ratings.filter(side=side)
        reasons = {name: part.filter(reason=name).height for name in COUNTS[2:]}
        summary[side] = {
            "rows": part.height,
            "rated": part["reason"].null_count(),
            **reasons,
            "means": {name: part[name].mean() for name in aspects},
        }
    return summary


def find_results(output_dir: Path) -> ResultFiles:
    return ResultFiles(output_dir / File.ASPECTS, output_dir / File.ASPECT_SUMMARY)


def write(
    results: ResultFiles, rated: Rated, summary: Mapping[str, Any], *, settings: Mapping[str, Any]
) -> None:
    """Writes the ratings, and the summary of both sides."""
    results.write(
        rated.ratings,
        {
            "settings": settings,
            "sides": summary,
            "failures": rated.failures,
            "with_markers": rated.rows_with_markers,
        },
    )
