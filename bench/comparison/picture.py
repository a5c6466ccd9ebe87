"""The picture of a comparison: differences to random rows, with their intervals."""

from collections.abc import Sequence

import altair as alt
import polars as pl

from bench.comparison.results import Line
from cherry_vllm.figures.figure import BAR_STEP, Figure, color_by, inline, rule

KEY = {"better than random": 1, "worse than random": 0, "undecided": 2}  # by the interval


def draw_differences(lines: Sequence[Line]) -> list[Figure]:
    """A figure for each held-out set; none while there is nothing to compare."""
    names = [name for line in lines[:1] for name in line.losses]
    return [figure for name in names if (figure := _draw(lines, name))]


def _draw(lines: Sequence[Line], name: str) -> Figure | None:
    rows = [
        {"model": line.name, **found._asdict(), "verdict": _judge(found.low, found.high)}
        for line in lines
        if (found := line.losses[name].difference)
    ]
    if not rows:
        return None
    frame = pl.DataFrame(rows).sort("value")
    order = frame["model"].to_list()
    base = alt.Chart(inline(frame)).encode(
        y=alt.Y("model:N", sort=order, title=None, axis=alt.Axis(labelLimit=260)),
        color=color_by("verdict", KEY),
        tooltip=["model:N", "value:Q", "low:Q", "high:Q"],
    )
    title = "loss minus that of random rows, nats per answer token"
    layers = [
        rule("reference", x=alt.datum(0)),
        base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=title), x2="high:Q"),
        base.mark_point(size=60, filled=True, opacity=1).encode(x="value:Q"),
    ]
    chart = alt.layer(*layers).properties(height=BAR_STEP * frame.height)
    caption = "Differences to random rows of the same budget, with 95% intervals; left is better."
    return Figure(f"comparison-{name}", f"Loss on the {name} rows", caption, chart, KEY)


def _judge(low: float, high: float) -> str:
    if high < 0:
        return "better than random"
    return "worse than random" if low > 0 else "undecided"
