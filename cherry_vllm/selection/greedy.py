"""Diverse points, picked one after another: greedy facility location, and k-center.

Similarities are cosines in whole numbers. Unit vectors are rounded to a grid on which each product
of two, and each partial sum of it, is a whole number that float32 holds exactly. So neither blocks
nor threads nor the linear algebra library can change a pick, and equal gains are equal. The
rounding changes a cosine by 1e-4 (standard deviation).

Both methods are generators, so the caller decides when to stop. Of equally good points they take
the first.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]
Vector = NDArray[np.float64]
Places = NDArray[np.int32]

ONE = 2**24  # a cosine of 1; float32 holds every whole number up to here
TILE = 1024  # points at each side of a block of similarities
AHEAD = 256  # points that facility location compares with all others together
BEHIND = 64  # picks that k-center compares with all points together
ROW_BYTES, LIST_BYTES = 2**28, 2**30  # for similarities that may be needed again
LONGEST = 0.1  # of all points, in a list
NEAR = 4096  # points that k-center compares with each pick


class Pick(NamedTuple):
    """A point, and why it was picked."""

    place: int
    value: float  # facility location: its gain; k-center: its cosine to the nearest earlier pick


def to_grid(vectors: Matrix) -> Matrix:
    """The directions of ``vectors`` (points x width) in whole numbers; zeros stay zeros.

    No length exceeds the root of :data:`ONE`, so no sum of products exceeds :data:`ONE`.
    """
    exact: Vector = vectors.astype(np.float64)
    lengths = np.sqrt(np.square(exact).sum(axis=1, keepdims=True))
    longest = np.sqrt(ONE) - np.sqrt(vectors.shape[1]) / 2  # rounding adds no more than the rest
    exact *= longest / np.where(lengths > 0, lengths, 1)
    grid: Matrix = np.rint(exact).astype(np.float32)
    return grid


def facility_location(grid: Matrix) -> Iterator[Pick]:
    """Picks what adds most to f(S) = sum over all points i of the max over j in S of cos(i, j).

    ``grid`` is of :func:`to_grid`. This is exact greedy maximization, which reaches 1 - 1/e of the
    best f + number of points (Nemhauser, Wolsey and Fisher 1978). The cosine to no point is -1.

    It is lazy (Minoux 1978): as a gain never increases, an earlier one is a bound, and only the
    points with the highest bounds are computed again, :data:`AHEAD` at a time. In memory are
    :data:`ROW_BYTES`, :data:`LIST_BYTES`, and half of :data:`ROW_BYTES` for products.
    """
    near, num_points = _Similarities(grid), len(grid)
    covered = np.full(num_points, -ONE, np.float32)  # the similarity to the nearest pick
    bounds = _first_gains(grid)
    num_picked = np.zeros(num_points, np.int64)  # when a bound was computed
    for step in range(num_points):
        total = float(covered.sum(dtype=np.float64))
        while num_picked[best := int(bounds.argmax())] < step:
            for place in near.load(best, bounds, covered):
                bounds[place] = near.gain(place, covered, total)
                num_picked[place] = step
        yield Pick(best, float(bounds[best]) / ONE)
        near.load(best, bounds, covered)
        near.cover(best, covered)
        bounds[best] = -np.inf
        if step == 0:  # the first gains say little of the next ones
            bounds = np.where(bounds == -np.inf, bounds, _gains(grid, covered))
            num_picked[:] = 1


def k_center(grid: Matrix) -> Iterator[Pick]:
    """Picks point 0, then always the point whose nearest pick is farthest.

    ``grid`` is of :func:`to_grid`. The largest distance from a point to its nearest pick is at most
    twice the least possible (Gonzalez 1985).

    The :data:`NEAR` points that are farthest from all picks are compared with each pick, all others
    with :data:`BEHIND` picks together: until then they are known to be no farther.
    """
    nearest = np.full(len(grid), -ONE, np.float32)  # similarity to the nearest pick
    left = len(grid)
    while left:
        order = np.argsort(nearest, kind="stable")
        front = np.sort(order[:NEAR])
        rest = [(float(nearest[place]), int(place)) for place in order[NEAR : NEAR + 1]]
        vectors, similarity, picks = grid[front], nearest[front], list[int]()
        while left and len(picks) < BEHIND:
            place = int(similarity.argmin())
            found = (float(similarity[place]), int(front[place]))
            if rest and found > rest[0]:
                break
            yield Pick(found[1], found[0] / ONE)
            picks.append(found[1])
            left -= 1
            np.maximum(similarity, vectors @ vectors[place], out=similarity)
            similarity[place] = np.inf
        for block in _blocks(grid):
            found_nearest = (grid[block] @ grid[picks].T).max(axis=1)
            np.maximum(nearest[block], found_nearest, out=nearest[block])
        nearest[picks] = np.inf


class _Similarities:
    """The similarities of points to others, as far as they were computed and may matter again.

    A point's similarities that do not exceed those to the picks never will. So if the others are
    few, they are all that is kept of it, and nothing is computed twice. Of other points the latest
    are kept.
    """

    def __init__(self, grid: Matrix) -> None:
        self._grid = grid
        self._lists: dict[int, tuple[Places, Matrix]] = {}  # some other points, similarities
        self._room = LIST_BYTES // 8  # for similarities in lists
        number = min(len(grid), max(2, ROW_BYTES // (4 * len(grid))))
        self._ahead = min(AHEAD, (number + 1) // 2)
        self._rows = np.empty((number, len(grid)), np.float32)  # to all points
        self._places = np.full(number, -1)  # the point of each row
        self._slots = np.full(len(grid), -1)  # the row of each point
        self._is_known = np.zeros(len(grid), bool)
        self._next = 0

    def gain(self, place: int, covered: Matrix, total: float) -> float:
        """What the point, which is known, would add to the sum ``total`` of ``covered``."""
        if place in self._lists:
            others, found = self._lists[place]
            below = covered[others]
            is_nearer = found > below
            self._lists[place] = others[is_nearer], found[is_nearer]
            self._room += len(others) - len(self._lists[place][0])
            gains = found[is_nearer].astype(np.float64) - below[is_nearer]
            return float(gains.sum())
        nearer = np.maximum(self._rows[self._slots[place]], covered)
        return float(nearer.sum(dtype=np.float64)) - total

    def cover(self, place: int, covered: Matrix) -> None:
        """Raises ``covered`` to the similarities of a known point, for the last time."""
        if place in self._lists:
            others, found = self._lists.pop(place)
            self._room += len(others)
            covered[others] = np.maximum(found, covered[others])
        else:
            np.maximum(covered, self._rows[self._slots[place]], out=covered)

    def load(self, wanted: int, bounds: Vector, covered: Matrix) -> list[int]:
        """Makes the point ``wanted`` known, and others with high bounds if it was not.

        Returns these points.
        """
        if self._is_known[wanted]:
            return [wanted]
        ranks = np.where(self._is_known, -np.inf, bounds)
        ranks[wanted] = np.inf
        places = np.argpartition(-ranks, self._ahead - 1)[: self._ahead]
        places = places[ranks[places] > -np.inf]
        found = self._grid[places] @ self._grid.T
        kept = [self._list(place, row, covered) for place, row in zip(places, found, strict=True)]
        self._keep(places[~np.array(kept)], found[~np.array(kept)])
        self._is_known[places] = True
        loaded: list[int] = places.tolist()
        return loaded

    def _list(self, place: int, row: Matrix, covered: Matrix) -> bool:
        """Keeps a point's similarities to others as a list, if there is room."""
        others = np.flatnonzero(row > covered)
        if len(others) > min(self._room, LONGEST * len(row)):
            return False
        self._lists[int(place)] = others.astype(np.int32), row[others]
        self._room -= len(others)
        return True

    def _keep(self, places: NDArray[np.int64], rows: Matrix) -> None:
        slots = (self._next + np.arange(len(places))) % len(self._places)
        self._next += len(places)
        lost = self._places[slots]
        self._is_known[lost[lost >= 0]] = False
        self._rows[slots] = rows
        self._places[slots], self._slots[places] = places, slots


def _first_gains(grid: Matrix) -> Vector:
    """The gains while there is no pick: sums of cosine + 1."""
    total = grid.sum(axis=0, dtype=np.float64)
    sums = [grid[block].astype(np.float64) @ total for block in _blocks(grid)]
    gains: Vector = np.concatenate(sums) + float(ONE) * len(grid)
    return gains


def _gains(grid: Matrix, covered: Matrix) -> Vector:
    """The gains of all points; each block of similarities serves both of its sides."""
    sums, buffer = np.zeros(len(grid)), np.empty(TILE * TILE, np.float32)
    blocks = list(_blocks(grid))
    for number, one in enumerate(blocks):
        for other in blocks[number:]:
            tile = grid[one] @ grid[other].T
            out = buffer[: tile.size].reshape(tile.shape)
            np.maximum(tile, covered[one, None], out=out)
            sums[other] += out.sum(axis=0, dtype=np.float64)
            if one != other:
                np.maximum(tile, covered[other], out=out)
                sums[one] += out.sum(axis=1, dtype=np.float64)
    gains: Vector = sums - covered.sum(dtype=np.float64)
    return gains


def _blocks(grid: Matrix) -> Iterator[slice]:
    for start in range(0, len(grid), TILE):
        yield slice(start, min(start + TILE, len(grid)))
