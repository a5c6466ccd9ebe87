"""Figures of what became of the rows, and how their scores are distributed."""

import math
from collections.abc import Mapping

import altair as alt
import polars as pl

from cherry_vllm.figures.figure import (
    BAR_STEP,
    HEIGHT,
    Figure,
    Key,
    color_by,
    inline,
    rule,
    share,
    tooltips,
)
from cherry_vllm.figures.results import ScoredSelection
from cherry_vllm.schema import DropReason
from cherry_vllm.scoring.ifd import count_outcomes

BINS_PER_UNIT = 40  # of IFD: an edge lies at 1
MAX_POINTS = 5_000  # a scatter plot of more rows shows a sample
TREND_BUCKETS = 12
MIN_TREND_ROWS = 48
SELECTED, USABLE, DROPPED = "selected", "usable", "IFD above 1"


def draw_ledger(scores: pl.DataFrame, selection: ScoredSelection | None) -> Figure:
    """Rows read, rows dropped for each reason and rows left, as a falling staircase of bars."""
    outcomes = count_outcomes(scores)
    usable = outcomes.pop("usable")
    left = scores.height
    steps = [("rows read", 0, left, "remaining")]
    for reason, count in outcomes.items():
        if count:
            name = DROPPED if reason == DropReason.IFD_ABOVE_ONE else reason.replace("_", " ")
            steps.append((name, left - count, left, "dropped"))
            left -= count
    steps.append(("usable", 0, usable, "remaining"))
    if selection:
        steps.append(("selected", 0, selection.rows.height, "selected"))
    frame = pl.DataFrame(
        [(f"{name} \u00b7 {end - start:,}", start, end, kind) for name, start, end, kind in steps],
        schema=["step", "start", "end", "kind"],
        orient="row",
    )
    key = _emphasized(frame["kind"], "selected", "remaining", "dropped")
    chart = (
        alt.Chart(inline(frame))
        .mark_bar(cornerRadius=2, size=BAR_STEP - 4)
        .encode(
            x=alt.X("start:Q", title="rows", axis=alt.Axis(tickCount=5, format="~s")),
            x2="end:Q",
            y=alt.Y("step:N", sort=None, title=None),
            color=color_by("kind", key),
            tooltip=["step:N"],
        )
        .properties(height=max(HEIGHT, BAR_STEP * frame.height))
    )
    caption = (
        f"Of {scores.height:,} rows read, {usable:,} ({share(usable, scores.height)}) are usable "
        f"and {scores.height - usable:,} were dropped, each for the first reason that was met."
    )
    if selection:
        number = selection.rows.height
        caption += (
            f" {selection.mark['strategy']} chose {number:,}, {share(number, usable)} of the "
            "usable rows."
        )
    return Figure("ledger", "What went in and what came out", caption, chart, key)


def _with_status(scores: pl.DataFrame, selection: ScoredSelection | None) -> pl.DataFrame:
    """The scored rows with a ``status``: selected, usable or dropped."""
    chosen = selection.rows["row"].to_list() if selection else []
    status = (
        pl.when(pl.col("row").is_in(chosen))
        .then(pl.lit(SELECTED))
        .when(pl.col("drop_reason").is_not_null())
        .then(pl.lit(DROPPED))
        .otherwise(pl.lit(USABLE))
    )
    return scores.filter(pl.col("ifd").is_not_null()).with_columns(status=status)


def _emphasized(found: pl.Series, first: str, second: str, rest: str) -> Key:
    """A legend of what was found; without ``first``, ``second`` gets its colour."""
    places = {first: 0, second: 1, rest: 2} if first in found else {second: 0, rest: 2}
    return {label: place for label, place in places.items() if label in found}


def _status_key(scored: pl.DataFrame) -> Key:
    return _emphasized(scored["status"], SELECTED, USABLE, DROPPED) or {USABLE: 0}


def _last_bin(scored: pl.DataFrame) -> int:
    return max(BINS_PER_UNIT * 5 // 4, round((scored["ifd"].quantile(0.995) or 0) * BINS_PER_UNIT))


def draw_ifd(
    scores: pl.DataFrame,
    selection: ScoredSelection | None = None,
    cuts: Mapping[str, float] | None = None,
) -> Figure:
    """The distribution of IFD; ``cuts`` holds the lowest IFD chosen, by name of the choice."""
    scored = _with_status(scores, selection)
    key, last = _status_key(scored), _last_bin(scored)
    binned = (
        scored.with_columns(bin=(pl.col("ifd") * BINS_PER_UNIT).floor().clip(0, last - 1))
        .group_by("bin", "status")
        .agg(rows=pl.len())
        .sort("bin", "status")
        .with_columns(
            place=pl.col("status").replace_strict(key, return_dtype=pl.Int8),
            start=pl.col("bin") / BINS_PER_UNIT,
            end=(pl.col("bin") + 1) / BINS_PER_UNIT,
        )
    )
    bars = (
        alt.Chart(inline(binned))
        .mark_bar(binSpacing=1)
        .encode(
            x=alt.X("start:Q", bin="binned", title="IFD = s(A|Q) / s(A)"),
            x2="end:Q",
            y=alt.Y("rows:Q", title="rows"),
            color=color_by("status", key),
            order="place:Q",
            tooltip=["start:Q", "end:Q", "rows:Q", "status:N"],
        )
    )
    one = rule("reference", x=alt.datum(1))
    lines = [rule("cut", x=alt.datum(float(cut))) for cut in (cuts or {}).values()]
    above = scored.filter(status=DROPPED).height
    caption = (
        f"{scored.height:,} scored rows in bins of {1 / BINS_PER_UNIT}; {above:,} above 1 are "
        "dropped (dashed line), since their instruction makes the answer harder."
    )
    if cuts:
        places = ", ".join(f"{value:.3f} ({name})" for name, value in cuts.items())
        caption += f" The cut (solid line), the lowest IFD chosen, is at {places}."
    if (scored["ifd"] * BINS_PER_UNIT >= last).any():
        caption += " The last bin holds all higher values."
    chart = alt.layer(bars, one, *lines).properties(height=HEIGHT)
    return Figure("ifd", "How IFD is distributed", caption, chart, key)


def _sampled(scored: pl.DataFrame) -> tuple[pl.DataFrame, str]:
    """At most ``MAX_POINTS`` rows, and a sentence that says which."""
    if scored.height <= MAX_POINTS:
        return scored, f"All {scored.height:,} scored rows."
    shown = scored.sample(MAX_POINTS, seed=0).sort("row")
    return shown, f"A random sample of {MAX_POINTS:,} of {scored.height:,} scored rows."


def draw_scores(scores: pl.DataFrame, selection: ScoredSelection | None = None) -> Figure:
    """The direct against the conditioned score, whose ratio is IFD."""
    scored = _with_status(scores, selection)
    shown, caption = _sampled(scored)
    key = _status_key(scored)
    names = ("direct_score", "conditioned_score")
    limit = 1.05 * max(scored[name].quantile(0.99) or 1 for name in names)
    scale = alt.Scale(domain=[0, limit], nice=False)
    points = (
        alt.Chart(inline(shown.select("row", "ifd", *names, "status")))
        .mark_circle(size=18, opacity=0.55, clip=True)
        .encode(
            x=alt.X("direct_score:Q", title="direct score s(A), nats per token", scale=scale),
            y=alt.Y("conditioned_score:Q", title="conditioned score s(A|Q)", scale=scale),
            color=color_by("status", key),
            tooltip=tooltips("row:Q", "ifd:Q", "direct_score:Q", "conditioned_score:Q"),
        )
    )
    ends = inline(pl.DataFrame({"at": [0.0, limit]}))
    diagonal = alt.Chart(ends).mark_line(style="reference").encode(x="at:Q", y="at:Q")
    helped = scored.filter(pl.col("ifd") <= 1).height
    caption += (
        f" Below the dashed line, where {share(helped, scored.height)} lie, the instruction makes "
        "the answer likelier. The axes end a little beyond the 99th percentile."
    )
    chart = alt.layer(points, diagonal).properties(height=HEIGHT)
    return Figure("scores", "Direct against conditioned score", caption, chart, key)


def draw_length(scores: pl.DataFrame, selection: ScoredSelection | None = None) -> Figure:
    """IFD against the length of the answer, with Spearman's rank correlation."""
    scored = _with_status(scores, selection)
    shown, caption = _sampled(scored)
    key = _status_key(scored)
    points = (
        alt.Chart(inline(shown.select("row", "num_answer_tokens", "ifd", "status")))
        .mark_circle(size=18, opacity=0.55, clip=True)
        .encode(
            x=alt.X(
                "num_answer_tokens:Q",
                title="answer tokens, logarithmic",
                scale=alt.Scale(type="log", nice=False, padding=8),
                axis=alt.Axis(format="~s", grid=False),
            ),
            y=alt.Y(
                "ifd:Q",
                title="IFD",
                scale=alt.Scale(domain=[0, _last_bin(scored) / BINS_PER_UNIT], nice=False),
            ),
            color=color_by("status", key),
            tooltip=tooltips("row:Q", "ifd:Q", "num_answer_tokens:Q"),
        )
    )
    layers = [points]
    if scored.height >= MIN_TREND_ROWS:
        trend = (
            scored.sort("num_answer_tokens", "row")
            .with_columns(bucket=pl.int_range(pl.len()) * TREND_BUCKETS // pl.len())
            .group_by("bucket")
            .agg(pl.col("num_answer_tokens", "ifd").median())
            .sort("bucket")
        )
        layers.append(
            alt.Chart(inline(trend))
            .mark_line(style="trend", point={"style": "trend", "size": 30})
            .encode(x="num_answer_tokens:Q", y="ifd:Q")
        )
        caption += " The line joins the medians of twelve groups of equal size."
    usable = scored.filter(pl.col("drop_reason").is_null())
    rho = usable.select(pl.corr("num_answer_tokens", "ifd", method="spearman")).item()
    known = rho is not None and math.isfinite(rho)
    caption += (
        f" Spearman\u2019s rank correlation over the {usable.height:,} usable rows: "
        f"{f'{rho:+.3f}' if known else 'not defined'}."
    )
    chart = alt.layer(*layers).properties(height=HEIGHT)
    return Figure("length", "IFD against the length of the answer", caption, chart, key)
