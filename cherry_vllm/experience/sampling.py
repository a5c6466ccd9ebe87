"""Row shards and their embeddings or scores to the rows of the brief experience.

run_dir/experience/STRATEGY-FINGERPRINT/
  experience.json             the chosen rows, with all their fields
  experience.json.meta.json   their row numbers, and how they were chosen
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cherry_vllm.errors import UserError
from cherry_vllm.experience.clusters import cluster_embeddings, sample_clusters
from cherry_vllm.experience.stored_embeddings import read_vectors
from cherry_vllm.options import Sampling
from cherry_vllm.runtime.versions import installed_versions
from cherry_vllm.schema import SCHEMA_VERSION
from cherry_vllm.selection.export import find_records, write_records
from cherry_vllm.store.hashes import fingerprint
from cherry_vllm.store.marks import MADE_BY, marked_file, read_mark
from cherry_vllm.store.run_folder import File, Folder, Inner
from cherry_vllm.store.scores import open_scores
from cherry_vllm.store.shards import Shards

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DiverseSampling:
    """At most ``count`` rows, up to the same number from each of ``num_clusters`` clusters.

    See :func:`clusters.cluster_embeddings` and :func:`clusters.sample_clusters` for the other
    fields.
    """

    count: int
    num_clusters: int
    percentiles: tuple[float, float]
    n_init: int
    minibatch_rows: int

    def __post_init__(self) -> None:
        """Raises a UserError if ``count`` is not a multiple of ``num_clusters``."""
        if self.count % self.num_clusters:
            raise UserError(
                f"sample.count={self.count}: give a multiple of "
                f"sample.num_clusters={self.num_clusters}, since each gives the same number of rows"
            )

    @property
    def rows_per_cluster(self) -> int:
        return self.count // self.num_clusters


@dataclass(frozen=True)
class Experience:
    """The rows that the pre-experienced model learns from."""

    artifact: Path  # the file with their records
    rows: Sequence[int]  # their row numbers, in the file's order
    facts: dict[str, Any]


def sample_diverse(
    run_dir: Path,
    rows: Shards,
    embeddings: Shards,
    sampling: DiverseSampling,
    *,
    seed: int,
) -> Experience:
    """Samples a few rows of every cluster of instructions (paper, section 2.1).

    Raises:
        UserError: no row can be chosen, or the file of an earlier run was changed.
    """
    settings = {
        "embeddings": [embeddings.fingerprint, embeddings.summary["contents"]],
        "rows_per_cluster": sampling.rows_per_cluster,
        "percentiles": list(sampling.percentiles),
        "num_clusters": sampling.num_clusters,
        "n_init": sampling.n_init,
        "minibatch_rows": sampling.minibatch_rows,
        "seed": seed,
    }
    choose = partial(_choose_diverse, embeddings, sampling, seed)
    return _sample(run_dir, rows, Sampling.kmeans, settings, choose)


def _choose_diverse(
    embeddings: Shards, sampling: DiverseSampling, seed: int
) -> tuple[list[int], dict[str, Any]]:
    """Row numbers, and facts about the clusters that they are from."""
    usable, vectors = read_vectors(embeddings, "perplexity")
    if usable.is_empty():
        return [], {}
    clustering = cluster_embeddings(
        vectors,
        num_clusters=sampling.num_clusters,
        n_init=sampling.n_init,
        minibatch_rows=sampling.minibatch_rows,
        seed=seed,
    )
    chosen = sample_clusters(
        clustering.labels,
        usable["perplexity"].to_numpy(),
        rows_per_cluster=sampling.rows_per_cluster,
        percentiles=sampling.percentiles,
    )
    sizes = np.unique(clustering.labels, return_counts=True)[1]
    facts = {
        "num_candidates": usable.height,
        "num_clusters": clustering.num_clusters,
        "num_small_clusters": int((sizes < sampling.rows_per_cluster).sum()),
        "method": clustering.method,
    }
    return usable["row"].gather(chosen).to_list(), facts


def sample_difficult(
    run_dir: Path, rows: Shards, scores_dir: Path, *, count: int, wanted: str | None = None
) -> Experience:
    """Samples the ``count`` usable rows with the highest IFD under the base model.

    Raises:
        UserError: ``scores_dir`` holds no scores, or those of other rows; or no row is usable.
    """
    if not (scores_dir / File.SCORES).is_file():
        raise UserError(
            f"{scores_dir / File.SCORES}: no such file; sample=difficulty takes the base model's "
            "scores, so run `cherry-vllm score` first, or let `cherry-vllm pipeline` do it"
        )
    scores = open_scores(scores_dir, wanted)
    if scores.rows_fingerprint != rows.fingerprint:
        raise UserError(f"{scores_dir}: the scores are not of data.path's rows; score those first")

    def choose() -> tuple[list[int], dict[str, Any]]:
        usable = scores.frame.filter(pl.col("drop_reason").is_null())
        chosen = find_highest(usable["ifd"].to_numpy(), count)
        return usable["row"].gather(chosen).to_list(), {"num_candidates": usable.height}

    settings = {"scores": [scores.fingerprint, scores.contents], "count": count}
    return _sample(run_dir, rows, Sampling.difficulty, settings, choose)


def sample_random(run_dir: Path, rows: Shards, *, count: int, seed: int) -> Experience:
    """Samples ``count`` usable rows at random."""

    def choose() -> tuple[list[int], dict[str, Any]]:
        usable = rows.scan().filter(pl.col("drop_reason").is_null()).select("row").collect()["row"]
        chosen = draw_positions(len(usable), count, seed)
        return usable.gather(chosen).to_list(), {"num_candidates": len(usable)}

    settings = {"rows": rows.fingerprint, "count": count, "seed": seed}
    return _sample(run_dir, rows, Sampling.random, settings, choose)


def draw_positions(num_rows: int, count: int, seed: int) -> NDArray[np.int64]:
    """``count`` of ``num_rows`` positions, drawn uniformly, in ascending order; all if fewer.

    With one seed, a larger count includes the rows of a smaller one.
    """
    return np.sort(np.random.default_rng(seed).permutation(num_rows)[:count])


def find_highest(ifd: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Positions of the ``count`` highest IFDs, in ascending order; of equal ones, the earlier.

    ``ifd`` is the IFD of the usable rows under the base model, finite and at most 1.
    """
    return np.sort(np.argsort(-ifd, kind="stable")[:count])


def _sample(
    run_dir: Path,
    rows: Shards,
    strategy: Sampling,
    settings: dict[str, Any],
    choose: Callable[[], tuple[list[int], dict[str, Any]]],
) -> Experience:
    name = f"{strategy.value}-{fingerprint({'schema_version': SCHEMA_VERSION, **settings})}"
    target = run_dir / Folder.EXPERIENCE / name / Inner.EXPERIENCE
    mark = read_mark(target)
    if mark is not None:
        log.info("%s: sampled before, nothing to do", target)
        return Experience(target, mark["rows"], mark["counts"])
    chosen, facts = choose()
    if not chosen:
        raise UserError("no row can be sampled; the summary of `score` counts the reasons")
    records = find_records(rows.scan(), pl.Series("row", chosen))
    counts = {"num_sampled": len(chosen), **facts}
    origin = {"rows": chosen, "settings": settings, "versions": installed_versions()}
    with marked_file(target, {MADE_BY: "sample", "counts": counts, **origin}) as path:
        write_records(records, path, target)
    return Experience(target, chosen, counts)
