"""Greedy picks against slow statements of their rules, and what holds for all of them."""

from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cherry_vllm.selection import greedy
from cherry_vllm.selection.greedy import ONE, Pick, facility_location, k_center, to_grid

Grid = NDArray[np.float32]


def similarities(grid: Grid) -> list[list[int]]:
    """Cosines in Python's whole numbers."""
    rows = [[int(value) for value in row] for row in grid]
    return [[sum(map(int.__mul__, one, other)) for other in rows] for one in rows]


def slow_facility_location(grid: Grid, number: int) -> Iterator[Pick]:
    """Computes f of each larger set, from its definition."""
    cosine = similarities(grid)

    def cover(chosen: list[int]) -> int:
        return sum(max([row[j] for j in chosen], default=-ONE) for row in cosine)

    chosen: list[int] = []
    for _ in range(number):
        gains = {
            j: cover([*chosen, j]) - cover(chosen) for j in range(len(grid)) if j not in chosen
        }
        best = max(gains, key=lambda j: (gains[j], -j))
        yield Pick(best, gains[best] / ONE)
        chosen.append(best)


def slow_k_center(grid: Grid, number: int) -> Iterator[Pick]:
    cosine = similarities(grid)
    chosen = [0]
    yield Pick(0, -1)
    for _ in range(number - 1):
        nearest = {
            i: max(cosine[i][j] for j in chosen) for i in range(len(grid)) if i not in chosen
        }
        best = min(nearest, key=lambda i: (nearest[i], i))
        yield Pick(best, nearest[best] / ONE)
        chosen.append(best)


METHODS = pytest.mark.parametrize(
    ("method", "slow"),
    [(facility_location, slow_facility_location), (k_center, slow_k_center)],
    ids=["facility_location", "k_center"],
)
# Blocks as for many points: the names of the limits, and their values.
SMALL = [
    {},
    {"TILE": 7, "AHEAD": 3, "ROW_BYTES": 1, "LIST_BYTES": 0, "NEAR": 5, "BEHIND": 2},
    {"TILE": 16, "AHEAD": 4, "ROW_BYTES": 4 * 40 * 9, "LIST_BYTES": 8 * 60, "NEAR": 8, "BEHIND": 9},
    {"TILE": 1, "AHEAD": 8, "LIST_BYTES": 10**6, "LONGEST": 1, "NEAR": 1, "BEHIND": 1},
]


def points(number: int, width: int, seed: int) -> Grid:
    """Random directions; some points are equal, and one is zero."""
    vectors = np.random.default_rng(seed).normal(size=(number, width)).astype(np.float32)
    vectors[number // 2 : number // 2 + number // 4] = vectors[: number // 4]
    vectors[number // 3] = 0
    return to_grid(vectors)


@METHODS
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    number=st.integers(1, 40),
    width=st.integers(1, 9),
    seed=st.integers(0, 99),
    limits=st.sampled_from(SMALL),
)
def test_the_picks_are_those_of_the_definition_whatever_the_blocks(
    method: Any, slow: Any, *, number: int, width: int, seed: int, limits: dict[str, float]
) -> None:
    grid = points(number, width, seed)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in limits.items():
            patch.setattr(greedy, name, value)
        found = list(method(grid))
    assert sorted(pick.place for pick in found) == list(range(number))
    asked = min(number, 12)
    assert found[:asked] == list(slow(grid, asked))


@pytest.mark.slow
@METHODS
@pytest.mark.parametrize("limits", SMALL[1:3])
def test_many_points_are_picked_as_with_other_blocks(
    method: Any,
    slow: Any,  # noqa: ARG001
    limits: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grid = points(1500, 24, seed=1)
    expected = list(islice(method(grid), 200))
    for name, value in limits.items():
        monkeypatch.setattr(greedy, name, value)
    assert list(islice(method(grid), 200)) == expected


def test_gains_never_increase_and_add_up() -> None:
    grid = points(700, 16, seed=3)
    found = list(facility_location(grid))
    gains = [pick.value for pick in found]
    assert all(later <= earlier for earlier, later in pairwise(gains))
    assert gains[-1] >= 0
    self_similar = np.square(grid.astype(np.float64)).sum() / ONE
    assert sum(gains) == self_similar + len(grid)  # at last each point covers itself


def test_points_get_nearer_to_those_picked() -> None:
    found = [pick.value for pick in k_center(points(700, 16, seed=3))]
    assert all(later >= earlier for earlier, later in pairwise(found))


@pytest.mark.parametrize("method", [facility_location, k_center])
def test_blobs_are_picked_one_each(method: Any) -> None:
    source = np.random.default_rng(0)
    blobs = source.permutation(np.repeat(np.arange(5), 30))
    vectors = 10 * np.eye(5, 8)[blobs] + source.normal(size=(150, 8))
    grid = to_grid(vectors.astype(np.float32))
    assert sorted(blobs[pick.place] for pick in islice(method(grid), 5)) == [0, 1, 2, 3, 4]


def test_greedy_is_near_the_best_set() -> None:
    grid = points(14, 3, seed=5)
    cosine = np.array(similarities(grid))
    best = max(
        (np.maximum.reduce(cosine[[i, j, k]]) + ONE).sum()
        for i in range(14)
        for j in range(i)
        for k in range(j)
    )
    reached = ONE * sum(pick.value for pick in islice(facility_location(grid), 3))
    assert (1 - 1 / np.e) * best <= reached <= best


# --- the grid ----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 64, 576, 8192])
@pytest.mark.parametrize("scale", [1e-30, 1, 1e30])
def test_cosines_are_whole_and_close(width: int, scale: float) -> None:
    source = np.random.default_rng(width)
    vectors = (scale * source.normal(size=(60, width))).astype(np.float32)
    grid = to_grid(vectors)
    assert (grid == np.rint(grid)).all()
    assert (np.square(grid.astype(np.float64)).sum(axis=1) <= ONE).all()
    exact = grid.astype(np.int64) @ grid.astype(np.int64).T
    assert (grid @ grid.T == exact).all()
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1)[:, None]
    error = exact / exact[0, 0] - unit @ unit.T
    assert np.std(error) < 2e-4
    assert (to_grid(vectors * np.float32(4)) == grid).all()


def test_no_direction_stays_none() -> None:
    assert not to_grid(np.zeros((2, 5), np.float32)).any()
