"""Differences of losses between models, and intervals over held-out rows and seeds."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NUM_DRAWS = 10_000
BLOCK_DRAWS = 500  # in memory at once
PERCENTILES = (2.5, 97.5)

Floats = NDArray[np.float64]  # in nats, of shape [seeds, rows] unless stated
Counts = NDArray[np.int64]


class Difference(NamedTuple):
    """A mean over seeds, with its 95% interval, in nats per answer token."""

    value: float
    low: float
    high: float


def mean_loss(nll: Floats, num_tokens: Counts) -> Floats:
    """The loss of each seed: the mean over the answer tokens of all rows, of shape [seeds]."""
    return np.asarray(nll.sum(axis=1) / num_tokens.sum(), np.float64)


def compare(nll: Floats, baseline: Floats, num_tokens: Counts, seed: int = 0) -> Difference:
    """The loss of a model minus that of its baseline, seed by seed; below 0 it is better.

    ``nll`` and ``baseline`` are sums over the answer tokens of a row. Both models have the same
    rows and seeds, and each draw takes the same ones for both.
    """
    paired = nll - baseline
    num_seeds, num_rows = paired.shape
    source = np.random.default_rng(seed)
    found = []
    for _ in range(0, NUM_DRAWS, BLOCK_DRAWS):
        rows = _count_draws(source, num_rows)
        seeds = _count_draws(source, num_seeds)
        found.append(resample(paired, num_tokens, rows, seeds))
    low, high = np.percentile(np.concatenate(found), PERCENTILES)
    return Difference(float(mean_loss(paired, num_tokens).mean()), float(low), float(high))


def resample(paired: Floats, num_tokens: Counts, rows: Counts, seeds: Counts) -> Floats:
    """The mean difference of each draw, of shape [draws].

    ``rows`` and ``seeds`` say how often a draw holds each: of shapes [draws, rows], [draws, seeds].
    """
    of_seeds = rows @ paired.T / (rows @ num_tokens)[:, None]
    return np.asarray((seeds * of_seeds).sum(axis=1) / seeds.sum(axis=1), np.float64)


def _count_draws(source: np.random.Generator, number: int) -> Counts:
    """How often each of ``number`` things comes up in as many draws, for a block of them."""
    return source.multinomial(number, np.full(number, 1 / number), size=BLOCK_DRAWS)
