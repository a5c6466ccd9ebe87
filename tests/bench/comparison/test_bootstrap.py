"""Differences and their intervals, against loops over drawn rows and seeds."""

import random

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.comparison.bootstrap import compare, mean_loss, resample

NUM_SEEDS, NUM_ROWS = 3, 12


@pytest.fixture
def losses() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """A model a little better than its baseline: sums of two models, and tokens, of each row."""
    source = np.random.default_rng(1)
    tokens = source.integers(1, 90, NUM_ROWS)
    baseline = tokens * source.normal(2, 0.5, NUM_ROWS) + np.zeros((NUM_SEEDS, 1))
    better = tokens * source.normal(0.05, 0.1, (NUM_SEEDS, NUM_ROWS))
    return baseline - better, baseline, tokens


def slow_difference(paired: list[list[float]], tokens: list[int]) -> float:
    """The mean over seeds of the difference of two losses, token by token."""
    of_seeds = [sum(rows) / sum(tokens) for rows in paired]
    return sum(of_seeds) / len(of_seeds)


def test_each_draw_is_what_its_rows_and_seeds_say(
    losses: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]],
) -> None:
    model, baseline, tokens = losses
    paired, source = model - baseline, random.Random(0)
    rows = [source.choices(range(NUM_ROWS), k=NUM_ROWS) for _ in range(20)]
    seeds = [source.choices(range(NUM_SEEDS), k=NUM_SEEDS) for _ in range(20)]
    counts = [np.bincount(drawn, minlength=NUM_ROWS) for drawn in rows]
    seed_counts = [np.bincount(drawn, minlength=NUM_SEEDS) for drawn in seeds]
    found = resample(paired, tokens, np.array(counts), np.array(seed_counts))
    expected = [
        slow_difference(
            [[paired[s][r] for r in of_rows] for s in of_seeds], [tokens[r] for r in of_rows]
        )
        for of_rows, of_seeds in zip(rows, seeds, strict=True)
    ]
    assert found.tolist() == pytest.approx(expected)


def test_the_interval_is_that_of_a_slow_bootstrap(
    losses: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]],
) -> None:
    model, baseline, tokens = losses
    paired, source = (model - baseline).tolist(), random.Random(7)
    draws = []
    for _ in range(4000):
        rows = source.choices(range(NUM_ROWS), k=NUM_ROWS)
        seeds = source.choices(range(NUM_SEEDS), k=NUM_SEEDS)
        kept = [[paired[s][r] for r in rows] for s in seeds]
        draws.append(slow_difference(kept, [int(tokens[r]) for r in rows]))
    draws.sort()
    found = compare(model, baseline, tokens)
    assert found.value == pytest.approx(
        mean_loss(model, tokens).mean() - mean_loss(baseline, tokens).mean()
    )
    width = draws[3900] - draws[100]
    assert found.low == pytest.approx(draws[100], abs=0.1 * width)
    assert found.high == pytest.approx(draws[3900], abs=0.1 * width)
    assert compare(model, baseline, tokens) == found


def test_equal_models_differ_by_nothing_and_one_seed_draws_rows_only() -> None:
    nll, tokens = np.array([[3.0, 1.0, 2.0]]), np.array([2, 1, 1])
    assert compare(nll, nll, tokens) == (0, 0, 0)
    found = compare(nll + tokens, nll, tokens)  # one nat per token, whatever is drawn
    assert found == pytest.approx((1, 1, 1))
