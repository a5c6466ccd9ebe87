"""Colours that stay apart, for every reader and for any number of series."""

from itertools import combinations

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from cherry_vllm.figures.models import draw_losses, draw_winning_score
from cherry_vllm.figures.theme import DARK_COLORS, LIGHT_COLORS

# What a dichromat sees of linear RGB, after Machado et al. (2009), at full severity.
VISION = {
    "all cones": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
CLEARLY_APART = 14  # CIE 1976 colour difference; about 2 can just be told side by side
XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
WHITE = [0.9505, 1.0, 1.089]


def linear(color: str) -> NDArray[np.float64]:
    """Linear RGB of "#rrggbb"."""
    values = np.array([int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def to_lab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """CIE L*a*b* of linear RGB."""
    ratio = np.array(XYZ) @ np.clip(rgb, 0, 1) / np.array(WHITE)
    x, y, z = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("colors", [LIGHT_COLORS, DARK_COLORS], ids=["light", "dark"])
@pytest.mark.parametrize("vision", VISION)
def test_no_two_colours_merge(colors: tuple[str, ...], vision: str) -> None:
    seen = [to_lab(np.array(VISION[vision]) @ linear(color)) for color in colors]
    assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > CLEARLY_APART


def looks(spec: dict[str, object], field: str) -> list[tuple[str, str]]:
    """Colour and dashes of each series that a drawing's first line layer has."""
    found: list[tuple[str, str]] = []
    layers: list[dict[str, dict[str, dict[str, dict[str, list[str]]]]]] = spec["layer"]  # type: ignore[assignment]
    for layer in layers:
        encoding = layer["encoding"]
        if "strokeDash" in encoding:
            domain = encoding["color"]["scale"]["domain"]
            dashes = encoding["strokeDash"]["scale"]
            for name, dash in zip(dashes["domain"], dashes["range"], strict=True):
                place = domain.index(name) % len(LIGHT_COLORS)
                found.append((LIGHT_COLORS[place], str(dash)))
    assert found, f"no dashes for {field}"
    return found


def test_twenty_series_all_look_different() -> None:
    names = [f"model {number}" for number in range(20)]
    losses = pl.DataFrame(
        [(name, step, 2.0, 1e-5) for name in names for step in (1, 2)],
        schema=["model", "step", "loss", "learning_rate"],
        orient="row",
    )
    points = pl.DataFrame(
        [(name, rows, 1.0, 0.9, 1.1) for name in names for rows in (10, 20)],
        schema=["series", "rows", "score", "low", "high"],
        orient="row",
    )
    for figure in (draw_losses(losses), draw_winning_score(points)):
        found = looks(figure.spec(560), figure.name)
        assert len(set(found)) == len(names)
