"""Colours and fonts of the figures, as Vega-Lite configuration: one for light, one for dark."""

from typing import Any

# The first three mean the same everywhere: the highlighted rows, their counterpart, and the rest.
# Colour-blind readers can tell all six apart (a test simulates three kinds); further series get
# other dashes, see DASHES.
LIGHT_COLORS = ("#b3294e", "#2f6da8", "#b6bcc5", "#e8a200", "#1b1b2f", "#8a5a00")
DARK_COLORS = ("#f26d90", "#6fb0ea", "#59636f", "#fff3b0", "#c77b30", "#2e5fd0")
DASHES = {
    "": [1, 0],
    "dashed": [6, 3],
    "dash-dotted": [8, 3, 2, 3],
    "dotted": [3, 3],
    "long dashes": [12, 4],
    "sparse dots": [2, 5],
}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def _config(colors: tuple[str, ...], *, text: str, muted: str, grid: str) -> dict[str, Any]:
    axis = {
        "domainColor": grid,
        "gridColor": grid,
        "tickColor": grid,
        "labelColor": muted,
        "titleColor": muted,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 8,
        "labelLimit": 150,
        "labelOverlap": "greedy",
        "labelSeparation": 8,
    }
    legend = {
        "labelColor": text,
        "labelFontSize": 12,
        "labelLimit": 260,
        "orient": "top",
        "symbolOpacity": 1,
        "symbolStrokeWidth": 0,
        "symbolType": "circle",
        "title": None,
    }
    return {
        "background": None,
        "font": FONT,
        "axis": axis,
        "axisQuantitative": {"tickCount": 6},
        "axisY": {"domain": False, "ticks": False},
        "bar": {"color": colors[0]},
        "circle": {"color": colors[0]},
        "legend": legend,
        "line": {"color": colors[0], "strokeWidth": 2},
        "range": {"category": list(colors)},
        "rule": {"color": text},
        "style": {
            "cut": {"color": text, "strokeWidth": 1.5},
            "reference": {"color": text, "strokeDash": [4, 4], "strokeWidth": 1},
            "trend": {"color": text, "strokeWidth": 2, "opacity": 1},
        },
        "text": {"color": text},
        "title": {"color": text, "fontSize": 14, "anchor": "start", "offset": 12},
        "view": {"stroke": None},
    }


LIGHT = _config(LIGHT_COLORS, text="#1d2127", muted="#57606b", grid="#e3e6ea")
DARK = _config(DARK_COLORS, text="#e8ebf0", muted="#9ba5b2", grid="#2c323b")
