"""The drawings, each a function from numbers to a figure that a page and a PNG share."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import altair as alt
import polars as pl
import vl_convert

from cherry_vllm.report import count_outcomes
from cherry_vllm.reporting.extremes import Side
from cherry_vllm.reporting.facts import Job, Selection
from cherry_vllm.reporting.theme import LIGHT
from cherry_vllm.schema import DropReason

Chart = alt.Chart | alt.LayerChart | alt.FacetChart

PNG_WIDTH = 560
PNG_SCALE = 2
HEIGHT = 300
MAP_HEIGHT = 420
BAR_STEP = 26  # pixels of a horizontal bar and its gap
VERDICT_STEP = 44  # its names have two lines
BINS_PER_UNIT = 40  # of IFD: an edge lies at 1
MAX_POINTS = 5_000  # a scatter of more shows a sample
TREND_BUCKETS = 12
MIN_TREND_ROWS = 48
VERDICT_KEY = {"win": 0, "tie": 2, "loss": 1}  # in the order of the bars
SELECTED, USABLE, DROPPED = "selected", "usable", "IFD above 1"
DIGITS = 5  # significant
NOT_XML = r"[\x00-\x08\x0B\x0C\x0E-\x1F\x{FFFE}\x{FFFF}]"  # a PNG is drawn by way of SVG


Key = Mapping[str, int]
"""What a legend names, and the place of its colour in the palette."""


class Figure(NamedTuple):
    """A drawing and what is to be said of it."""

    name: str  # of its PNG
    title: str
    caption: str
    chart: Chart
    key: Key

    def spec(self, width: int | str) -> dict[str, Any]:
        """The Vega-Lite specification; ``width`` in pixels, or "container"."""
        chart = self.chart.properties(width=width, description=f"{self.title}. {self.caption}")
        spec: dict[str, Any] = chart.to_dict()
        return spec


def save_png(path: Path, *figures: Figure) -> None:
    """Writes the figures, side by side, in light colours."""
    titled = [figure.chart.properties(width=PNG_WIDTH, title=figure.title) for figure in figures]
    chart = titled[0] if len(titled) == 1 else alt.hconcat(*titled, spacing=40)
    png = vl_convert.vegalite_to_png(
        chart.properties(padding=16).to_dict(),
        config={**LIGHT, "background": "white"},
        scale=PNG_SCALE,
    )
    path.write_bytes(png)


def _data(frame: pl.DataFrame) -> alt.InlineData:
    values = frame.with_columns(
        pl.col(pl.Float32, pl.Float64).round_sig_figs(DIGITS),
        pl.col(pl.String).str.replace_all(NOT_XML, "\ufffd"),
    )
    return alt.InlineData(values=values.to_dicts())


def _color(column: str, key: Key, *, columns: int = 3) -> alt.Color:
    """Colours by the places in the palette; a place that ``key`` leaves out stays unused."""
    labels = {place: label for label, place in key.items()}
    domain = [labels.get(place, f"unused {place}") for place in range(max(labels) + 1)]
    legend = alt.Legend(values=list(key), columns=columns)
    return alt.Color(f"{column}:N", scale=alt.Scale(domain=domain), legend=legend)


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "none"


def _rule(style: str, **encoding: Any) -> alt.Chart:
    rule: alt.Chart = alt.Chart(alt.InlineData(values=[{}])).mark_rule(style=style)
    return rule.encode(**encoding)


def draw_ledger(scores: pl.DataFrame, selection: Selection | None) -> Figure:
    """Rows read, dropped for each reason, and what was left, as a falling staircase of bars."""
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
        alt.Chart(_data(frame))
        .mark_bar(cornerRadius=2, size=BAR_STEP - 4)
        .encode(
            x=alt.X("start:Q", title="rows", axis=alt.Axis(tickCount=5, format="~s")),
            x2="end:Q",
            y=alt.Y("step:N", sort=None, title=None),
            color=_color("kind", key),
            tooltip=["step:N"],
        )
        .properties(height=max(HEIGHT, BAR_STEP * frame.height))
    )
    caption = (
        f"Of {scores.height:,} rows read, {usable:,} ({_share(usable, scores.height)}) are usable "
        f"and {scores.height - usable:,} were dropped, each for the first reason that applies."
    )
    if selection:
        number = selection.rows.height
        caption += (
            f" {selection.meta['strategy']} chose {number:,}, {_share(number, usable)} of the "
            "usable rows."
        )
    return Figure("ledger", "What went in and what came out", caption, chart, key)


def _with_status(scores: pl.DataFrame, selection: Selection | None) -> pl.DataFrame:
    """The scored rows with a ``status``: selected, usable or dropped."""
    chosen = selection.rows["row"].to_list() if selection else []
    status = (
        pl.when(pl.col("drop_reason").is_not_null())
        .then(pl.lit(DROPPED))
        .when(pl.col("row").is_in(chosen))
        .then(pl.lit(SELECTED))
        .otherwise(pl.lit(USABLE))
    )
    return scores.filter(pl.col("ifd").is_not_null()).with_columns(status=status)


def _emphasized(found: pl.Series, first: str, second: str, rest: str) -> Key:
    """A key of what was found; where there is no ``first``, ``second`` has its colour."""
    places = {first: 0, second: 1, rest: 2} if first in found else {second: 0, rest: 2}
    return {label: place for label, place in places.items() if label in found}


def _status_key(scored: pl.DataFrame) -> Key:
    return _emphasized(scored["status"], SELECTED, USABLE, DROPPED) or {USABLE: 0}


def _last_bin(scored: pl.DataFrame) -> int:
    return max(BINS_PER_UNIT * 5 // 4, round((scored["ifd"].quantile(0.995) or 0) * BINS_PER_UNIT))


def draw_ifd(
    scores: pl.DataFrame,
    selection: Selection | None = None,
    cuts: Mapping[str, float] | None = None,
) -> Figure:
    """The distribution of IFD. ``cuts`` are the lowest IFDs chosen, by the name of the choice."""
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
        alt.Chart(_data(binned))
        .mark_bar(binSpacing=1)
        .encode(
            x=alt.X("start:Q", bin="binned", title="IFD = s(A|Q) / s(A)"),
            x2="end:Q",
            y=alt.Y("rows:Q", title="rows"),
            color=_color("status", key),
            order="place:Q",
            tooltip=["start:Q", "end:Q", "rows:Q", "status:N"],
        )
    )
    one = _rule("reference", x=alt.datum(1))
    lines = [_rule("cut", x=alt.datum(float(cut))) for cut in (cuts or {}).values()]
    above = scored.filter(status=DROPPED).height
    caption = (
        f"{scored.height:,} scored rows in bins of {1 / BINS_PER_UNIT}; {above:,} above 1 are "
        "dropped (dashed line), since their instruction makes the answer harder."
    )
    if cuts:
        places = ", ".join(f"{value:.3f} ({name})" for name, value in cuts.items())
        caption += f" The cut (solid line), the lowest IFD chosen, is at {places}."
    if (scored["ifd"] * BINS_PER_UNIT >= last).any():
        caption += " The last bin holds all that lies beyond."
    chart = alt.layer(bars, one, *lines).properties(height=HEIGHT)
    return Figure("ifd", "How IFD is distributed", caption, chart, key)


def _sampled(scored: pl.DataFrame) -> tuple[pl.DataFrame, str]:
    """At most ``MAX_POINTS`` rows, and what to say of it."""
    if scored.height <= MAX_POINTS:
        return scored, f"All {scored.height:,} scored rows."
    shown = scored.sample(MAX_POINTS, seed=0).sort("row")
    return shown, f"A random sample of {MAX_POINTS:,} of {scored.height:,} scored rows."


def _tooltips(*names: str) -> list[alt.Tooltip]:
    titles = {
        "ifd": "IFD",
        "direct_score": "s(A)",
        "conditioned_score": "s(A|Q)",
        "num_answer_tokens": "answer tokens",
    }
    return [
        alt.Tooltip(name, title=titles.get(name.partition(":")[0], name.partition(":")[0]))
        for name in names
    ]


def draw_scores(scores: pl.DataFrame, selection: Selection | None = None) -> Figure:
    """The two scores that IFD is the ratio of, against each other."""
    scored = _with_status(scores, selection)
    shown, caption = _sampled(scored)
    key = _status_key(scored)
    names = ("direct_score", "conditioned_score")
    limit = 1.05 * max(scored[name].quantile(0.99) or 1 for name in names)
    scale = alt.Scale(domain=[0, limit], nice=False)
    points = (
        alt.Chart(_data(shown.select("row", "ifd", *names, "status")))
        .mark_circle(size=18, opacity=0.55, clip=True)
        .encode(
            x=alt.X("direct_score:Q", title="direct score s(A), nats per token", scale=scale),
            y=alt.Y("conditioned_score:Q", title="conditioned score s(A|Q)", scale=scale),
            color=_color("status", key),
            tooltip=_tooltips("row:Q", "ifd:Q", "direct_score:Q", "conditioned_score:Q"),
        )
    )
    ends = _data(pl.DataFrame({"at": [0.0, limit]}))
    diagonal = alt.Chart(ends).mark_line(style="reference").encode(x="at:Q", y="at:Q")
    helped = scored.filter(pl.col("ifd") <= 1).height
    caption += (
        f" Below the dashed line, where {_share(helped, scored.height)} lie, the instruction makes "
        "the answer likelier. The axes end a little beyond the 99th percentile."
    )
    chart = alt.layer(points, diagonal).properties(height=HEIGHT)
    return Figure("scores", "Direct against conditioned score", caption, chart, key)


def draw_length(scores: pl.DataFrame, selection: Selection | None = None) -> Figure:
    """IFD against the length of the answer, with Spearman's rank correlation."""
    scored = _with_status(scores, selection)
    shown, caption = _sampled(scored)
    key = _status_key(scored)
    points = (
        alt.Chart(_data(shown.select("row", "num_answer_tokens", "ifd", "status")))
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
            color=_color("status", key),
            tooltip=_tooltips("row:Q", "ifd:Q", "num_answer_tokens:Q"),
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
            alt.Chart(_data(trend))
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


def _side_names(fraction: float) -> dict[str, str]:
    share = f"{100 * fraction:g}%"
    names = {Side.TOP: f"top {share}", Side.LEAST: f"least {share}", Side.OTHERS: "others"}
    return {side.value: name for side, name in names.items()}


def draw_landscape(landscape: pl.DataFrame, num_usable: int, fraction: float) -> Figure:
    """The instructions in the plane, the two ends of the IFD scale coloured (paper, Figure 7)."""
    names = _side_names(fraction)
    key = {name: place for place, name in enumerate(names.values())}
    shown = landscape.select(
        "row",
        "x",
        "y",
        "ifd",
        "cluster",
        "instruction",
        pl.col("side").replace_strict(names).alias("side"),
    )
    encoding = {
        "x": alt.X("x:Q", axis=None, scale=alt.Scale(zero=False, padding=10)),
        "y": alt.Y("y:Q", axis=None, scale=alt.Scale(zero=False, padding=10)),
        "color": _color("side", key),
        "tooltip": _tooltips("row:Q", "ifd:Q", "cluster:N", "instruction:N"),
    }
    # The two ends are drawn after the others, which would hide them.
    is_other = pl.col("side") == names[Side.OTHERS.value]
    others = alt.Chart(_data(shown.filter(is_other))).mark_circle(size=16, opacity=0.45)
    ends = alt.Chart(_data(shown.filter(~is_other))).mark_circle(size=34, opacity=0.9)
    whole = "All" if landscape.height == num_usable else "A random sample of"
    caption = (
        f"{whole} {landscape.height:,} of {num_usable:,} usable rows: t-SNE of the embeddings of "
        f"their instructions, {names['top']} and {names['least']} of IFD among all usable rows "
        "coloured. Near points are alike; axes and gaps have no scale."
    )
    chart = alt.layer(others.encode(**encoding), ends.encode(**encoding))
    chart = chart.properties(height=MAP_HEIGHT)
    return Figure("landscape", "Where the instructions lie", caption, chart, key)


def draw_words(shares: pl.DataFrame, fraction: float) -> Figure:
    """First words of the instructions at either end: least to the left, top to the right."""
    names = _side_names(fraction)
    signed = shares.with_columns(
        side=pl.col("side").replace_strict(names),
        signed=pl.col("share") * pl.when(side=Side.LEAST.value).then(-1).otherwise(1),
    )
    totals = signed.group_by("word").agg(pl.col("signed").sum())
    order = totals.sort(["signed", "word"], descending=True)
    ends = [names[Side.TOP.value], names[Side.LEAST.value]]
    key = {ends[0]: 0, ends[1]: 1}
    bars = (
        alt.Chart(_data(signed))
        .mark_bar(cornerRadius=2, size=BAR_STEP - 8)
        .encode(
            x=alt.X(
                "signed:Q",
                title="share of instructions",
                axis=alt.Axis(labelExpr="format(abs(datum.value), '~%')", tickCount=6),
            ),
            y=alt.Y("word:N", sort=order["word"].to_list(), title=None),
            color=_color("side", key),
            tooltip=["word:N", alt.Tooltip("share:Q", format=".1%"), "count:Q", "side:N"],
        )
    )
    caption = (
        f"First words of the instructions, {ends[0]} of IFD to the right and {ends[1]} to the "
        "left: the most frequent of each. The first word of an English request is mostly its verb; "
        "\u201cplease\u201d and the like are skipped, and no grammar is consulted."
    )
    bars = bars.properties(height=max(HEIGHT, (BAR_STEP - 4) * order.height))
    return Figure("words", "How the instructions begin", caption, bars, key)


def draw_losses(losses: pl.DataFrame) -> Figure:
    """Loss and learning rate of every optimizer step, of one model or several."""
    models = losses["model"].unique(maintain_order=True).to_list()
    key = {model: place for place, model in enumerate(models)}
    color = _color("model", key, columns=1)
    steps = alt.X(
        "step:Q",
        title="optimizer step",
        axis=alt.Axis(tickMinStep=1, format="d"),
        scale=alt.Scale(zero=False, nice=False, padding=8),
    )
    base = alt.Chart(_data(losses))
    loss = base.mark_line(point=losses.height <= 60 * len(models)).encode(
        x=steps,
        y=alt.Y("loss:Q", title="loss, nats per answer token", scale=alt.Scale(zero=False)),
        color=color,
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


def find_points(jobs: Sequence[Job]) -> pl.DataFrame:
    """One line for each selection that was judged: its rows, winning score and interval."""
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
    base = alt.Chart(_data(points)).encode(
        x=alt.X("rows:Q", title="selected rows", scale=alt.Scale(zero=False, padding=16)),
        color=_color("series", key, columns=1),
        tooltip=["series:N", "rows:Q", "score:Q", "low:Q", "high:Q"],
    )
    score = alt.Y("score:Q", title="winning score", scale=alt.Scale(zero=False))
    layers = [
        base.mark_rule(strokeWidth=2, opacity=0.5).encode(y=alt.Y("low:Q"), y2="high:Q"),
        base.mark_line(point={"size": 60, "filled": True}).encode(y=score),
        _rule("reference", y=alt.datum(1)),
    ]
    best = points.sort("score", descending=True).row(0, named=True)
    caption = (
        "Winning score, (wins \u2212 losses) / all decided + 1, with its 95% bootstrap interval; "
        f"on the dashed line both models are equal. Highest: {best['score']:.3f} with "
        f"{best['rows']:,} rows ({best['series']})."
    )
    chart = alt.layer(*layers).properties(height=HEIGHT)
    return Figure("winning_score", "Winning score against data size", caption, chart, key)


def _verdict_lines(jobs: Sequence[Job]) -> list[tuple[str, str, int, int]]:
    """A name, a verdict, its count and its place in the bar, for every test set of every job.

    The third line of a name tells apart what the first two, which are shown, may not.
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


def draw_verdicts(jobs: Sequence[Job]) -> Figure:
    """Shares of wins, ties and losses on every test set (paper, Figure 2)."""
    frame = pl.DataFrame(
        _verdict_lines(jobs), schema=["group", "verdict", "questions", "place"], orient="row"
    )
    labels = frame["group"].unique(maintain_order=True).to_list()
    bars = (
        alt.Chart(_data(frame))
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
            color=_color("verdict", VERDICT_KEY),
            order="place:Q",
            tooltip=["group:N", "verdict:N", "questions:Q"],
        )
    )
    totals = [_total(judgement) for job in jobs for judgement in job.judgements.values()]
    unclear = sum(total["unparsed"] + total["failed"] for total in totals)
    caption = "Questions won / level / lost by the first model, each judged in both orders."
    if unclear:
        caption += f" {unclear:,} without a verdict are left out."
    bars = bars.properties(height=max(90, VERDICT_STEP * len(labels)))
    return Figure("verdicts", "Wins, ties and losses", caption, bars, VERDICT_KEY)
