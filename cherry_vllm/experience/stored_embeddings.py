"""The embeddings of a run: which there are, and the numbers in them."""

import logging
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cherry_vllm.errors import UserError
from cherry_vllm.store.run_folder import Folder, Inner
from cherry_vllm.store.scores import Scores
from cherry_vllm.store.shards import Shards

log = logging.getLogger(__name__)


def find_embeddings(
    run_dir: Path, scores: Scores, user: str, *, folder: Path | None = None
) -> Shards:
    """The embeddings of the rows of ``scores``: in ``folder``, or else the only ones of the run.

    Errors name the ``user``, which needs them.

    Raises:
        UserError: neither the run nor a folder above it has any, several models embedded the rows,
            or those in ``folder`` are of other rows.
    """
    if folder is not None:
        named = Shards.open(folder.absolute())
        is_embedded = "embedding" in named.scan().collect_schema()
        if not is_embedded or named.settings.get("rows") != scores.rows_fingerprint:
            raise UserError(
                f"select.embeddings={folder}: not the embeddings of these rows; give the folder "
                "that `cherry-vllm embed` printed"
            )
        return named
    found = list_embeddings(run_dir, scores)
    if len(found) > 1:
        raise UserError(
            f"{found[0].folder.parent}: embeddings of these rows by several models "
            f"({', '.join(shards.fingerprint for shards in found)}); give one of the folders "
            "as select.embeddings"
        )
    if not found:
        raise UserError(
            f"{run_dir}: no embeddings of these rows, which {user} needs; run `cherry-vllm embed` "
            "with this run_dir first"
        )
    return found[0]


def list_embeddings(run_dir: Path, scores: Scores) -> list[Shards]:
    """The embeddings of the rows of ``scores`` by each model, from the nearest folder with any.

    That is the run folder or one of the two above it, where the scores of a pipeline or of a job
    may lie. Damaged ones are left out, with a warning.
    """
    for place in (run_dir, *run_dir.resolve().parents[:2]):
        found = []
        for summary in sorted((place / Folder.EMBEDDINGS).glob(f"*/{Inner.COMPLETE}")):
            try:
                embeddings = Shards.open(summary.parent)
            except UserError as error:
                log.warning("%s: left out (%s)", summary, error)
                continue
            if embeddings.settings.get("rows") == scores.rows_fingerprint:
                found.append(embeddings)
        if found:
            # An earlier release made the same ones without perplexities.
            return [it for it in found if it.settings.get("perplexities")] or found
    return []


def read_vectors(embeddings: Shards, *more: str) -> tuple[pl.DataFrame, NDArray[np.float32]]:
    """Returns the rows that have an embedding and all of the columns ``more``, and the embeddings.

    The rows are a frame with the columns ``row`` and ``more``, the embeddings an array (rows x
    width). The memory is that of the embeddings and of one shard.
    """
    indices = range(embeddings.num_shards)
    shards = (embeddings.read(index).drop_nulls(["embedding", *more]) for index in indices)
    num_rows = sum(map(embeddings.num_rows, indices))
    kept, vectors, end = list[pl.DataFrame](), np.empty((0, 0), np.float32), 0
    for shard in shards:
        kept.append(shard.select("row", *more))
        found, start, end = shard["embedding"].to_numpy(), end, end + shard.height
        if not len(vectors):
            vectors = np.empty((num_rows, found.shape[1]), np.float32)
        vectors[start:end] = found
    return pl.concat(kept), vectors[:end]
