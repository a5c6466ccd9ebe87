"""Clusters of instructions, and the perplexity band of each."""

import random
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from cherry_vllm.experience.clusters import (
    Clustering,
    cluster_embeddings,
    sample_clusters,
)

Vectors = NDArray[np.float32]


def cluster(
    embeddings: Vectors,
    *,
    num_clusters: int = 4,
    n_init: int = 1,
    minibatch_rows: int = 10**9,
    seed: int = 0,
) -> Clustering:
    return cluster_embeddings(
        embeddings,
        num_clusters=num_clusters,
        n_init=n_init,
        minibatch_rows=minibatch_rows,
        seed=seed,
    )


def sample(
    labels: Sequence[int],
    perplexities: Sequence[float],
    rows_per_cluster: int = 10,
    percentiles: tuple[float, float] = (25, 75),
) -> Any:
    chosen = sample_clusters(
        np.asarray(labels, dtype=np.int32),
        np.asarray(perplexities, dtype=np.float64),
        rows_per_cluster=rows_per_cluster,
        percentiles=percentiles,
    )
    assert chosen.dtype == np.int64
    return chosen.tolist()


def blobs(
    num_blobs: int = 4, rows_each: int = 50, width: int = 8, seed: int = 0
) -> tuple[Vectors, NDArray[np.int64]]:
    """Points close around centres far apart, shuffled, with the centre of each."""
    source = np.random.default_rng(seed)
    truth = source.permutation(np.repeat(np.arange(num_blobs), rows_each))
    points = 100 * np.eye(num_blobs, width)[truth] + source.normal(size=(truth.size, width))
    return points.astype(np.float32), truth


def noise(rows: int, width: int = 8, seed: int = 0) -> Vectors:
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


# --- clusters ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("minibatch_rows", "method"), [(201, "kmeans"), (200, "minibatch"), (1, "minibatch")]
)
def test_blobs_are_found_and_the_method_switches_at_the_stated_size(
    minibatch_rows: int, method: str
) -> None:
    points, truth = blobs()
    found = cluster(points, n_init=3, minibatch_rows=minibatch_rows)
    assert found.method == method
    assert found.num_clusters == 4
    assert found.labels.dtype == np.int32
    assert adjusted_rand_score(truth, found.labels) == 1


METHODS = pytest.mark.parametrize("minibatch_rows", [10**9, 1], ids=["kmeans", "minibatch"])


@METHODS
def test_a_seed_decides_the_labels(minibatch_rows: int) -> None:
    points = noise(300)
    first = cluster(points, minibatch_rows=minibatch_rows, seed=1).labels
    assert first.tolist() == cluster(points, minibatch_rows=minibatch_rows, seed=1).labels.tolist()
    assert first.tolist() != cluster(points, minibatch_rows=minibatch_rows, seed=2).labels.tolist()


@pytest.mark.parametrize("rows", [1, 2, 5, 99, 100])
def test_no_more_rows_than_clusters_are_a_cluster_each(rows: int) -> None:
    found = cluster(noise(rows), num_clusters=100)
    assert sorted(found.labels.tolist()) == list(range(rows))
    assert found.num_clusters == rows


@pytest.mark.parametrize("rows", [1, 5, 99])
def test_fewer_rows_than_clusters_in_mini_batches_make_at_most_a_cluster_each(rows: int) -> None:
    found = cluster(noise(rows), num_clusters=100, minibatch_rows=1)
    assert 1 <= found.num_clusters == len(set(found.labels.tolist())) <= rows


@METHODS
@pytest.mark.parametrize("distinct", [1, 3])
def test_repeated_embeddings_make_fewer_clusters_and_no_warning(
    minibatch_rows: int, distinct: int
) -> None:
    points = np.tile(noise(distinct), (20, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = cluster(points, num_clusters=7, minibatch_rows=minibatch_rows)
    assert found.num_clusters == len(set(found.labels.tolist())) == distinct
    assert adjusted_rand_score(np.tile(np.arange(distinct), 20), found.labels) == 1


@METHODS
def test_the_embeddings_are_read_and_not_changed(minibatch_rows: int) -> None:
    points = noise(300) + np.float32(1e3)
    before = points.copy()
    points.flags.writeable = False
    cluster(points, minibatch_rows=minibatch_rows)
    assert np.array_equal(points, before)


@METHODS
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_refused(minibatch_rows: int, value: float) -> None:
    points = noise(20)
    points[7, 3] = value
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        cluster(points, minibatch_rows=minibatch_rows)


@METHODS
def test_no_row_is_refused(minibatch_rows: int) -> None:
    with pytest.raises(ValueError, match="0"):
        cluster(noise(0), minibatch_rows=minibatch_rows)


# --- rows of each cluster ----------------------------------------------------------------------


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear between the two nearest ranks, ranks counted from 0 to len - 1."""
    ordered = sorted(values)
    rank = (len(ordered) - 1) * percent / 100
    below = int(rank)
    if below + 1 == len(ordered):
        return ordered[below]
    return ordered[below] + (rank - below) * (ordered[below + 1] - ordered[below])


def by_the_reference(labels: Sequence[int], perplexities: Sequence[float]) -> list[int]:
    """Ten rows a cluster from the middle half, from the document's words alone."""
    chosen = []
    for label in sorted(set(labels)):
        rows = [row for row, other in enumerate(labels) if other == label]
        if len(rows) < 10:
            chosen += rows
            continue
        values = [perplexities[row] for row in rows]
        low, high = percentile(values, 25), percentile(values, 75)
        middle = [row for row in rows if low <= perplexities[row] <= high]
        if len(middle) < 10:
            chosen += middle
            continue
        every = len(middle) // 10
        chosen += [middle[i * every] for i in range(10)]
    return chosen


def random_case(seed: int) -> tuple[list[int], list[float]]:
    """Labels (with gaps) and perplexities (with ties) of 1 to 400 rows in 1 to 12 clusters."""
    source = random.Random(seed)
    rows = source.choice([1, 2, 9, 10, 11, 19, 25, 60, 150, 400])
    names = source.sample(range(30), source.randint(1, 12))
    digits = source.choice([0, 1, 12])
    labels = [source.choice(names) for _ in range(rows)]
    return labels, [round(source.lognormvariate(1, 1), digits) for _ in range(rows)]


def test_the_references_rule_is_kept() -> None:
    for seed in range(400):
        labels, perplexities = random_case(seed)
        expected = by_the_reference(labels, perplexities)
        assert expected, seed
        assert sample(labels, perplexities) == expected, seed


def test_the_references_rule_is_kept_in_one_cluster_of_any_size() -> None:
    for rows in range(1, 100):
        perplexities = random.Random(rows).sample(range(1000), rows)
        expected = by_the_reference([3] * rows, perplexities)
        assert sample([3] * rows, perplexities) == expected, rows


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param(9, range(9), id="fewer-than-ten-are-taken-whole"),
        pytest.param(10, [3, 4, 5, 6], id="the-band-of-ten"),
        pytest.param(21, range(5, 16)[:10], id="eleven-in-the-band-at-steps-of-one"),
        pytest.param(41, range(10, 30, 2), id="twenty-one-at-steps-of-two"),
    ],
)
def test_a_cluster_is_thinned_to_its_middle(rows: int, expected: Sequence[int]) -> None:
    assert sample([0] * rows, range(rows)) == list(expected)


def test_equal_perplexities_all_lie_in_the_band() -> None:
    assert sample([0] * 45, [2.5] * 45) == list(range(0, 40, 4))


def test_both_ends_of_the_band_belong_to_it() -> None:
    assert sample([0] * 5, [9, 1, 3, 7, 5], rows_per_cluster=3) == [2, 3, 4]
    assert sample([0] * 5, [9, 1, 3, 7, 5], 5, percentiles=(0, 100)) == [0, 1, 2, 3, 4]
    assert sample([0] * 5, [9, 1, 3, 7, 5], 1, percentiles=(100, 100)) == [0]


def test_clusters_come_in_order_and_positions_within_them() -> None:
    assert sample([7, 0, 2, 7, 0, 2, 7], [1] * 7) == [1, 4, 2, 5, 0, 3, 6]


def test_the_perplexity_band_is_each_clusters_own() -> None:
    perplexities = [1, 100, 2, 200, 3, 300, 4, 400, 5, 500]
    assert sample([0, 1] * 5, perplexities, rows_per_cluster=3) == [2, 4, 6, 3, 5, 7]


def test_no_row_gives_no_position() -> None:
    assert sample([], []) == []


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_perplexity_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="perplexities must be finite"):
        sample([0] * 20, [1.0] * 19 + [value])
