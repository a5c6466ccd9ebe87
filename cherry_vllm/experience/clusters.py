"""Clusters of instructions, and which rows of each the experience takes (paper, section 2.1)."""

import warnings
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cherry_vllm.experience.stored_embeddings import read_vectors
from cherry_vllm.store.shards import Shards

N_INIT, MINIBATCH_ROWS = 10, 100_000  # of clusters for a selection, as in conf/sample/kmeans.yaml
MINIBATCH_SIZE = 4096  # rows per step; each start is computed from three times as many


class Clustering(NamedTuple):
    """The cluster of each embedding."""

    labels: NDArray[np.int32]  # one per embedding
    num_clusters: int  # that hold an embedding; labels may have gaps
    method: str  # "kmeans" or "minibatch"


def cluster_embeddings(
    embeddings: NDArray[np.float32],
    *,
    num_clusters: int,
    n_init: int,
    minibatch_rows: int,
    seed: int,
) -> Clustering:
    """K-Means over ``embeddings`` (rows x width), the best of ``n_init`` starts (k-means++).

    With ``minibatch_rows`` rows or more it is mini-batch K-Means, which does not copy the
    embeddings and tries its starts on a sample. Fewer (distinct) rows than ``num_clusters`` give
    fewer clusters. The embeddings are not changed. Equal seeds give equal labels on one machine;
    another machine's arithmetic may move a row that lies between two clusters.

    Raises:
        ValueError: there is no row, or a value is not finite.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    rows = len(embeddings)
    shared = {"n_clusters": min(num_clusters, rows), "n_init": n_init, "random_state": seed}
    if rows < minibatch_rows:
        method, estimator = "kmeans", KMeans(**shared)
    else:
        method, estimator = "minibatch", MiniBatchKMeans(**shared, batch_size=MINIBATCH_SIZE)
    with warnings.catch_warnings():
        # The warning says that rows repeat; num_clusters shows that anyway.
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels = estimator.fit(embeddings).labels_
    return Clustering(labels, len(np.unique(labels)), method)


def find_clusters(embeddings: Shards, *, num_clusters: int, seed: int) -> pl.DataFrame:
    """Columns ``row`` and ``cluster`` (K-Means) of the rows that have an embedding."""
    rows, vectors = read_vectors(embeddings)
    clustering = cluster_embeddings(
        vectors,
        num_clusters=num_clusters,
        n_init=N_INIT,
        minibatch_rows=MINIBATCH_ROWS,
        seed=seed,
    )
    return rows.with_columns(cluster=pl.Series(clustering.labels))


def sample_clusters(
    labels: NDArray[np.int32],
    perplexities: NDArray[np.float64],
    *,
    rows_per_cluster: int,
    percentiles: tuple[float, float],
) -> NDArray[np.int64]:
    """Up to ``rows_per_cluster`` positions of each cluster, by cluster, then by position.

    A cluster with fewer rows is taken whole. In a larger one, rows are eligible if their perplexity
    lies within the cluster's ``percentiles`` (0 to 100, interpolated linearly, both ends included);
    they are taken at even steps, starting with the first.

    Raises:
        ValueError: a perplexity is not finite.
    """
    if not np.isfinite(perplexities).all():
        raise ValueError("perplexities must be finite")
    by_cluster = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[by_cluster])) + 1
    chosen = [
        _sample_cluster(positions, perplexities[positions], rows_per_cluster, percentiles)
        for positions in np.split(by_cluster, starts)
    ]
    return np.concatenate(chosen)


def _sample_cluster(
    positions: NDArray[np.int64],
    perplexities: NDArray[np.float64],
    number: int,
    percentiles: tuple[float, float],
) -> NDArray[np.int64]:
    if len(positions) < number:
        return positions
    low, high = np.percentile(perplexities, percentiles)
    eligible: NDArray[np.int64] = positions[(low <= perplexities) & (perplexities <= high)]
    step = max(len(eligible) // number, 1)
    return eligible[::step][:number]
