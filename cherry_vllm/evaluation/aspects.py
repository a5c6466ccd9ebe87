"""What sets the rows with the highest IFD apart: their instructions, rated aspect by aspect.

The paper's Figure 6: six aspects of the rows with the highest and with the lowest IFD.

run_dir/replies.jsonl       every reply (:mod:`asking`)
.../aspects.parquet         one line per rated row (:data:`ASPECTS` and a column for each aspect)
.../aspects.json, aspects.png   settings, counts and means; the means as bars
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from cherry_vllm import __version__
from cherry_vllm.errors import UserError
from cherry_vllm.evaluation.endpoint import Endpoint
from cherry_vllm.evaluation.parsing import parse_aspects
from cherry_vllm.evaluation.prompts import AspectRequests
from cherry_vllm.evaluation.requests import ask_about_rows
from cherry_vllm.schema import Schema
from cherry_vllm.selection.extremes import Side, mark_sides
from cherry_vllm.selection.ranking import take_share
from cherry_vllm.store.files import atomic_path, write_json

SIDES = ("top", "least")  # highest IFD, lowest IFD
COUNTS = ("rows", "rated", "unparsed", "failed")

# The aspects, from 0 to 10, follow as columns of Float64.
ASPECTS: Schema = {
    "row": pl.Int64,
    "side": pl.Enum(SIDES),
    "ifd": pl.Float64,
    "reason": pl.String,  # why there is no rating: "unparsed" or "failed"
    "request": pl.String,  # in replies.jsonl
}


def take_sides(scores: pl.DataFrame, *, fraction: float | None, count: int | None) -> pl.DataFrame:
    """The usable rows with the highest and with the lowest IFD: row, side and ifd.

    ``fraction`` of the usable rows on either side, rounded down, or ``count``, which takes
    precedence. No row is on both sides.

    Raises:
        UserError: a side would be empty, or both would overlap.
    """
    if count is None and not 0 < (fraction or 0) <= 0.5:
        raise UserError(f"judge.fraction={fraction}: give a number above 0 and up to 0.5")
    usable = scores["drop_reason"].null_count()
    number = take_share(usable, fraction or 0) if count is None else count
    if not 0 < number <= usable // 2:
        asked = f"judge.fraction={fraction}" if count is None else f"judge.count={count}"
        raise UserError(
            f"{asked}: {number} rows on either side, of {usable} usable ones; ask for "
            "at least 1 and at most half of them"
        )
    ends = mark_sides(scores, count=number).filter(pl.col("side") != Side.OTHERS.value)
    return ends.select("row", pl.col("side").cast(ASPECTS["side"]), "ifd")


def rate(
    run_dir: Path,
    rows: pl.DataFrame,
    requests: AspectRequests,
    endpoint: Endpoint,
    *,
    concurrency: int,
) -> tuple[pl.DataFrame, Counter[str]]:
    """Has every row's instruction rated; counts the reasons of requests that failed.

    ``rows`` holds row, side, ifd, instruction and input; the result is a frame of
    :data:`ASPECTS` with the aspects, which are all there or all null.

    Raises:
        UserError: the endpoint refuses the settings or is down, or no request has a reply.
    """
    texts = rows.select("row", "instruction", "input").iter_rows()
    bodies = {row: requests.build(instruction, extra) for row, instruction, extra in texts}
    replies, failures = ask_about_rows(run_dir, bodies, endpoint, concurrency=concurrency)
    lines: list[tuple[Any, ...]] = []
    for row, side, ifd in rows.select("row", "side", "ifd").iter_rows():
        name, reply = replies[row]
        found = reply and parse_aspects(reply.text, requests.aspects, is_whole=reply.is_whole)
        missing = "failed" if reply is None else "unparsed"
        gap = (None,) * len(requests.aspects)
        lines.append((row, side, ifd, None if found else missing, name, *(found or gap)))
    schema = {**ASPECTS, **dict.fromkeys(requests.aspects, pl.Float64)}
    return pl.DataFrame(lines, schema=schema, orient="row"), failures


def summarize(ratings: pl.DataFrame, aspects: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By side: rows, rated, unparsed and failed, which add up, and the means; None of no rating."""
    found = {}
    for side in SIDES:
        part = ratings.filter(side=side)
        reasons = {name: part.filter(reason=name).height for name in COUNTS[2:]}
        found[side] = {
            "rows": part.height,
            "rated": part["reason"].null_count(),
            **reasons,
            "means": {name: part[name].mean() for name in aspects},
        }
    return found


def write(
    output_dir: Path,
    ratings: pl.DataFrame,
    summary: Mapping[str, Any],
    *,
    failures: Mapping[str, int],
    settings: Mapping[str, Any],
) -> None:
    """Writes ``aspects.parquet``, ``aspects.json`` and ``aspects.png``."""
    from cherry_vllm.figures.figure import save_png
    from cherry_vllm.figures.instructions import draw_aspects

    with atomic_path(output_dir / "aspects.parquet") as path:
        ratings.write_parquet(path)
    with atomic_path(output_dir / "aspects.png") as path:
        save_png(path, draw_aspects(summary))
    write_json(
        output_dir / "aspects.json",
        {"version": __version__, "settings": settings, "sides": summary, "failures": failures},
    )


def show(summary: Mapping[str, Any]) -> str:
    """The means of both sides, aspect by aspect, below the counts."""
    top, least = (summary[side] for side in SIDES)
    lines = [f"{'':<24}{'highest IFD':>14}{'lowest IFD':>14}{'difference':>14}"]
    lines += [f"{name:<24}{top[name]:>14,}{least[name]:>14,}" for name in COUNTS]
    for name in top["means"]:
        high, low = top["means"][name], least["means"][name]
        difference = None if high is None or low is None else high - low
        shown = [_show(high), _show(low), "-" if difference is None else f"{difference:+.2f}"]
        lines.append(f"{name:<24}" + "".join(f"{text:>14}" for text in shown))
    return "\n".join(lines)


def _show(mean: float | None) -> str:
    return "-" if mean is None else f"{mean:.2f}"
