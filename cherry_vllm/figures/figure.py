"""A figure, which the page and a PNG share, and the parts that all figures are made of."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import altair as alt
import polars as pl
import vl_convert

from cherry_vllm.figures.theme import DASHES, LIGHT, LIGHT_COLORS

PNG_WIDTH = 560
PNG_SCALE = 2
HEIGHT = 300
BAR_STEP = 26  # pixels of a horizontal bar and its gap
DIGITS = 5  # significant
NOT_XML = r"[\x00-\x08\x0B\x0C\x0E-\x1F\x{FFFE}\x{FFFF}]"  # a PNG is drawn by way of SVG

Chart = alt.Chart | alt.LayerChart | alt.FacetChart
Key = Mapping[str, int]
"""A legend: each label and the position of its colour in the palette."""


class Figure(NamedTuple):
    """A drawing with its title, caption and legend."""

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
    """Writes the figures side by side, in light colours."""
    titled = [figure.chart.properties(width=PNG_WIDTH, title=figure.title) for figure in figures]
    chart = titled[0] if len(titled) == 1 else alt.hconcat(*titled, spacing=40)
    png = vl_convert.vegalite_to_png(
        chart.properties(padding=16).to_dict(),
        config={**LIGHT, "background": "white"},
        scale=PNG_SCALE,
    )
    path.write_bytes(png)


def inline(frame: pl.DataFrame) -> alt.InlineData:
    """The frame as a chart's data, rounded to visible digits; encodings must name their types."""
    values = frame.with_columns(
        pl.col(pl.Float32, pl.Float64).round_sig_figs(DIGITS),
        pl.col(pl.String).str.replace_all(NOT_XML, "\ufffd"),
    )
    return alt.InlineData(values=values.to_dicts())


def color_by(column: str, key: Key, *, columns: int = 3) -> alt.Color:
    """Colours by position in the palette; a position that ``key`` leaves out stays unused."""
    labels = {place: label for label, place in key.items()}
    domain = [labels.get(place, f"unused {place}") for place in range(max(labels) + 1)]
    legend = alt.Legend(values=list(key), columns=columns)
    return alt.Color(f"{column}:N", scale=alt.Scale(domain=domain), legend=legend)


def dash_name(place: int) -> str:
    """The name of the dashes of the line at a position of the palette; "" if it is solid."""
    return list(DASHES)[place // len(LIGHT_COLORS) % len(DASHES)]


def dash_by(column: str, key: Key) -> alt.StrokeDash:
    """Dashes for lines whose colours repeat.

    With them, as many series differ as there are colours times :data:`theme.DASHES`.
    """
    ordered = sorted(key, key=key.__getitem__)
    patterns = [DASHES[dash_name(key[label])] for label in ordered]
    legend = alt.Legend(values=list(key), columns=1)
    return alt.StrokeDash(
        f"{column}:N", scale=alt.Scale(domain=ordered, range=patterns), legend=legend
    )


def share(part: float, whole: float) -> str:
    """A part in percent."""
    return f"{part / whole:.1%}" if whole else "none"


def rule(style: str, **encoding: Any) -> alt.Chart:
    """A line across the drawing, in a style of :mod:`theme`."""
    rule: alt.Chart = alt.Chart(alt.InlineData(values=[{}])).mark_rule(style=style)
    return rule.encode(**encoding)


def tooltips(*names: str) -> list[alt.Tooltip]:
    """What a mark shows when the mouse points at it."""
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
