"""Figures of models: how they were trained, and what judges say about them."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import polars as pl

from cherry_vllm.figures.figure import HEIGHT, Figure, color_by, dash_by, inline, rule
from cherry_vllm.figures.results import JobResult

VERDICT_STEP = 44  # pixels of a bar whose name has two lines
VERDICT_KEY = {"win": 0, "tie": 2, "loss": 1}  # in the order of the bars


def draw_losses(losses: pl.DataFrame) -> Figure:
    """Loss and learning rate of every optimizer step, of one model or several."""
    models = losses["model"].unique(maintain_order=True).to_list()
    key = {model: place for place, model in enumerate(models)}
    color = color_by("model", key, columns=1)
    steps = alt.X(
        "step:Q",
        title="optimizer step",
        axis=alt.Axis(tickMinStep=1, format="d"),
        scale=alt.Scale(zero=False, nice=False, padding=8),
    )
    base = alt.Chart(inline(losses))
    loss = base.mark_line(point=losses.height <= 60 * len(models)).encode(
        x=steps,
        y=alt.Y("loss:Q", title="loss, nats per answer token", scale=alt.Scale(zero=False)),
        color=color,
        strokeDash=dash_by("model", key),
        tooltip=["model:N", "step:Q", "loss:Q", "learning_rate:Q"],
    )
    rate = base.mark_line(strokeDash=[2, 3], strokeWidth=1.2, opacity=0.8).encode(
        x=steps,
        y=alt.Y(
            "learning_rate:Q",
            title="learning rate",
            axis=alt.Axis(format=".1e", grid=False, tickCount=4),
        ),
        color=color,
    )
    last = losses.group_by("model", maintain_order=True).last()
    ends = "; ".join(f"{line['model']} ends at {line['loss']:.3f}" for line in last.to_dicts())
    caption = f"Solid: the loss of each step, left axis. Dotted: learning rate, right axis. {ends}."
    chart = alt.layer(loss, rate).resolve_scale(y="independent").properties(height=HEIGHT)
    return Figure("losses", "Training", caption, chart, key)


def _total(judgement: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of all test sets together."""
    whole = [row for row in judgement["figures"] if row["category"] is None]
    return dict(whole[-1])


def find_points(jobs: Sequence[JobResult]) -> pl.DataFrame:
    """One line for each judgement of a selection: its rows, winning score and interval."""
    schema = {
        "series": pl.String,
        "rows": pl.Int64,
        "score": pl.Float64,
        "low": pl.Float64,
        "high": pl.Float64,
    }
    lines = [
        (job.series, job.selection["num_selected"], total["winning_score"], *total["interval"])
        for job in jobs
        if job.selection
        for total in map(_total, job.judgements.values())
        if total["winning_score"] is not None
    ]
    return pl.DataFrame(lines, schema=schema, orient="row").sort("series", "rows")


def draw_winning_score(points: pl.DataFrame) -> Figure:
    """The winning score against the number of selected rows (paper, Figures 3 and 4)."""
    series = points["series"].unique(maintain_order=True)
    key = {name: place for place, name in enumerate(series)}
    base = alt.Chart(inline(points)).encode(
        x=alt.X("rows:Q", title="selected rows", scale=alt.Scale(zero=False, padding=16)),
        color=color_by("series", key, columns=1),
        tooltip=["series:N", "rows:Q", "score:Q", "low:Q", "high:Q"],
    )
    score = alt.Y("score:Q", title="winning score", scale=alt.Scale(zero=False))
    layers = [
        base.mark_rule(strokeWidth=2, opacity=0.5).encode(y=alt.Y("low:Q"), y2="high:Q"),
        base.mark_line(point={"size": 60, "filled": True}).encode(
            y=score, strokeDash=dash_by("series", key)
        ),
        rule("reference", y=alt.datum(1)),
    ]
    best = points.sort("score", descending=True).row(0, named=True)
    caption = (
        "Winning score, (wins \u2212 losses) / all decided + 1, with its 95% interval; "
        f"on the dashed line both models are equal. Highest: {best['score']:.3f} with "
        f"{best['rows']:,} rows ({best['series']})."
    )
    chart = alt.layer(*layers).properties(height=HEIGHT)
    return Figure("winning_score", "Winning score against data size", caption, chart, key)


def _verdict_lines(jobs: Sequence[JobResult]) -> list[tuple[str, str, int, int]]:
    """A name, a verdict, its count and its place in the bar, for every test set of every job.

    Only the first two lines of a name are shown; the third makes it unique.
    """
    lines = []
    for job in jobs:
        for folder, judgement in job.judgements.items():
            rows = f", {job.selection['num_selected']:,} rows" if job.selection else ""
            head = f"{job.series}{rows}" if len(jobs) > 1 else ""
            for row in judgement["figures"]:
                if row["category"] is None:
                    counts = " / ".join(f"{row[verdict]:,}" for verdict in VERDICT_KEY)
                    name = f"{head}\n{row['testset'] or 'all'} {counts}\n{folder}"
                    lines += [
                        (name, verdict, row[verdict], place)
                        for place, verdict in enumerate(VERDICT_KEY)
                    ]
    return lines


def draw_verdicts(jobs: Sequence[JobResult]) -> Figure:
    """Shares of wins, ties and losses on every test set (paper, Figure 2)."""
    frame = pl.DataFrame(
        _verdict_lines(jobs), schema=["group", "verdict", "questions", "place"], orient="row"
    )
    labels = frame["group"].unique(maintain_order=True).to_list()
    bars = (
        alt.Chart(inline(frame))
        .mark_bar(cornerRadius=2)
        .encode(
            x=alt.X(
                "questions:Q",
                stack="normalize",
                title="share of questions",
                axis=alt.Axis(format="%", tickCount=5),
            ),
            y=alt.Y(
                "group:N",
                sort=labels,
                title=None,
                axis=alt.Axis(labelExpr="slice(split(datum.label, '\\n'), 0, 2)", labelOffset=-7),
            ),
            color=color_by("verdict", VERDICT_KEY),
            order="place:Q",
            tooltip=["group:N", "verdict:N", "questions:Q"],
        )
    )
    totals = [_total(judgement) for job in jobs for judgement in job.judgements.values()]
    left_out = ("unparsed", "failed", "unanswered")
    unclear = sum(total.get(reason, 0) for total in totals for reason in left_out)
    caption = "Questions won / level / lost by the first model, each judged in both orders."
    if unclear:
        caption += f" {unclear:,} without a verdict are left out."
    bars = bars.properties(height=max(90, VERDICT_STEP * len(labels)))
    return Figure("verdicts", "Wins, ties and losses", caption, bars, VERDICT_KEY)
