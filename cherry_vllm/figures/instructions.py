"""Figures of the instructions at both ends of the IFD scale: a map, first words, and ratings."""

from collections.abc import Mapping
from typing import Any

import altair as alt
import polars as pl

from cherry_vllm.figures.figure import BAR_STEP, HEIGHT, Figure, color_by, inline, tooltips
from cherry_vllm.selection.sides import Side

MAP_HEIGHT = 420


def _side_names(fraction: float) -> dict[str, str]:
    share = f"{100 * fraction:g}%"
    names = {Side.TOP: f"top {share}", Side.LEAST: f"least {share}", Side.OTHERS: "others"}
    return {side.value: name for side, name in names.items()}


def draw_landscape(landscape: pl.DataFrame, num_usable: int, fraction: float) -> Figure:
    """A map of the instructions, with both ends of the IFD scale coloured (paper, Figure 7)."""
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
        "color": color_by("side", key),
        "tooltip": tooltips("row:Q", "ifd:Q", "cluster:N", "instruction:N"),
    }
    # The two ends are drawn after the others, which would hide them.
    is_other = pl.col("side") == names[Side.OTHERS.value]
    others = alt.Chart(inline(shown.filter(is_other))).mark_circle(size=16, opacity=0.45)
    ends = alt.Chart(inline(shown.filter(~is_other))).mark_circle(size=34, opacity=0.9)
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
    """First words of the instructions at both ends: least on the left, top on the right."""
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
        alt.Chart(inline(signed))
        .mark_bar(cornerRadius=2, size=BAR_STEP - 8)
        .encode(
            x=alt.X(
                "signed:Q",
                title="share of instructions",
                axis=alt.Axis(labelExpr="format(abs(datum.value), '~%')", tickCount=6),
            ),
            y=alt.Y("word:N", sort=order["word"].to_list(), title=None),
            color=color_by("side", key),
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


def draw_aspects(summary: Mapping[str, Any]) -> Figure:
    """The mean rating of every aspect at either end of the IFD scale (paper, Figure 6).

    ``summary`` holds the rows, the rated rows and the means of each side.
    """
    names = {Side.TOP.value: "highest IFD", Side.LEAST.value: "lowest IFD"}
    lines = [
        (aspect, names[side], mean)
        for side in names
        for aspect, mean in summary[side]["means"].items()
        if mean is not None
    ]
    frame = pl.DataFrame(
        lines,
        schema={"aspect": pl.String, "side": pl.String, "mean": pl.Float64},
        orient="row",
    )
    aspects = list(summary[Side.TOP.value]["means"])
    key = {name: place for place, name in enumerate(names.values())}
    bars = (
        alt.Chart(inline(frame))
        .mark_bar(cornerRadius=2)
        .encode(
            x=alt.X("mean:Q", title="mean rating", scale=alt.Scale(domain=[0, 10])),
            y=alt.Y("aspect:N", sort=aspects, title=None),
            yOffset=alt.YOffset("side:N", sort=list(names.values())),
            color=color_by("side", key),
            tooltip=["aspect:N", "side:N", "mean:Q"],
        )
        .properties(height=2 * BAR_STEP * len(aspects))
    )
    counts = "; ".join(
        f"{name}: {summary[side]['rated']:,} of {summary[side]['rows']:,} rows rated"
        for side, name in names.items()
    )
    caption = f"The judge's mean rating of the instructions, from 0 to 10. {counts}."
    return Figure("aspects", "How a judge rates the instructions", caption, bars, key)
