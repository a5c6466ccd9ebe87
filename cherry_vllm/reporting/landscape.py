"""A map and clusters of the instructions: where both ends of the IFD scale lie."""

from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cherry_vllm.experience.clusters import cluster_embeddings
from cherry_vllm.reporting.extremes import find_texts, shorten
from cherry_vllm.selection.sides import Side

MIN_DISTINCT = 10  # different embeddings that a map needs
PERPLEXITY = 30
PCA_WIDTH = 50  # principal components that t-SNE gets
KMEANS_STARTS = 3
MAX_CLUSTERS_PER_SIDE = 3
MAX_EXAMPLES = 3
MAX_INSTRUCTION_CHARS = 100


class Cluster(NamedTuple):
    """A cluster of instructions in which one side outnumbers the other."""

    side: Side
    num_rows: int
    num_top: int
    num_least: int
    examples: list[str]  # of that side, the most extreme first


def survey(
    ranked: pl.DataFrame,
    embeddings: pl.LazyFrame,
    rows: pl.LazyFrame,
    *,
    max_rows: int,
    num_clusters: int,
    seed: int,
) -> pl.DataFrame | None:
    """A map of at most ``max_rows`` of the ``ranked`` rows, drawn with ``seed``.

    Adds ``x`` and ``y`` (t-SNE of the embeddings), ``cluster`` (K-Means on their full width) and
    ``instruction`` (shortened). None if there are fewer than ten different embeddings.
    """
    drawn = ranked.sample(min(max_rows, ranked.height), seed=seed)
    found = (
        embeddings.filter(pl.col("embedding").is_not_null())
        .select("row", "embedding")
        .join(drawn.lazy(), on="row")
        .collect(engine="streaming")
        .sort(["ifd", "row"], descending=[True, False])
    )
    vectors = found["embedding"].to_numpy() if found.height else np.empty((0, 1), np.float32)
    if len(np.unique(vectors, axis=0)) < MIN_DISTINCT:
        return None
    clustering = cluster_embeddings(
        vectors,
        num_clusters=num_clusters,
        n_init=KMEANS_STARTS,
        minibatch_rows=max_rows + 1,
        seed=seed,
    )
    x, y = _project(vectors, seed).T
    placed = found.drop("embedding").with_columns(
        x=pl.Series(x), y=pl.Series(y), cluster=pl.Series(clustering.labels)
    )
    texts = find_texts(rows, placed).drop("input", "answer", "request")
    return texts.with_columns(shorten(pl.col("instruction"), MAX_INSTRUCTION_CHARS))


def _project(vectors: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    reduced = PCA(min(PCA_WIDTH, *vectors.shape), random_state=seed).fit_transform(vectors)
    perplexity = min(PERPLEXITY, (len(vectors) - 1) / 3)
    projected: NDArray[np.float32] = TSNE(perplexity=perplexity, random_state=seed).fit_transform(
        reduced
    )
    return projected


def find_dominated(landscape: pl.DataFrame) -> list[Cluster]:
    """The clusters in which one side outnumbers the other most, at most three for each side."""
    counted = (
        landscape.group_by("cluster")
        .agg(
            num_rows=pl.len(),
            num_top=(pl.col("side") == Side.TOP.value).sum(),
            num_least=(pl.col("side") == Side.LEAST.value).sum(),
        )
        .with_columns(lead=pl.col("num_top").cast(pl.Int64) - pl.col("num_least").cast(pl.Int64))
        .sort(["lead", "cluster"], descending=[True, False])
    )
    top = counted.filter(pl.col("lead") > 0).head(MAX_CLUSTERS_PER_SIDE)
    least = counted.filter(pl.col("lead") < 0).reverse().head(MAX_CLUSTERS_PER_SIDE)
    return [
        Cluster(side, line["num_rows"], line["num_top"], line["num_least"], examples)
        for side, group in ((Side.TOP, top), (Side.LEAST, least))
        for line in group.iter_rows(named=True)
        for examples in [_examples(landscape, line["cluster"], side)]
    ]


def _examples(landscape: pl.DataFrame, cluster: int, side: Side) -> list[str]:
    """The most extreme instructions of a side in a cluster; ``landscape`` is sorted by IFD."""
    mine = landscape.filter(cluster=cluster, side=side.value)["instruction"].drop_nulls()
    ordered = mine if side is Side.TOP else mine.reverse()
    return ordered.unique(maintain_order=True).head(MAX_EXAMPLES).to_list()
