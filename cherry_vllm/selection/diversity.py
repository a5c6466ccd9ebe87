"""Diverse rows among the highest, by the embeddings of their prompts.

Each stratum is filled by itself. Its candidates are its highest rows, ``times`` its part; of these
:mod:`selection.greedy` picks until the part is full. Facility location is near to the candidates,
not to the rows below them.
"""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import polars as pl

from cherry_vllm.options import Diversify
from cherry_vllm.runtime.progress import Progress
from cherry_vllm.selection.greedy import Matrix, facility_location, k_center, to_grid

BATCH_ROWS = 8192  # whose embeddings are in memory in double precision
METHODS = {Diversify.facility_location: facility_location, Diversify.k_center: k_center}


def keep_embedded(ranked: pl.DataFrame, embeddings: pl.LazyFrame) -> pl.DataFrame:
    """The rows of ``ranked`` that have an embedding; see :func:`pick_diverse`."""
    held = embeddings.filter(pl.col("embedding").is_not_null()).select("row").collect()
    return ranked.join(held, on="row", how="semi", maintain_order="left")


def pick_diverse(
    ranked: pl.DataFrame,
    parts: Sequence[int],
    embeddings: pl.LazyFrame,
    *,
    method: Diversify,
    times: float | None,
) -> pl.Series:
    """Whether each row of ``ranked`` is picked.

    ``ranked`` has the columns row, stratum and cost, highest first. ``parts`` are the costs that
    each stratum may spend; its candidates are its first rows that cost up to ``times`` as much, or
    all without ``times``. ``embeddings`` has a line for each row, with an array ``embedding``. In
    memory are 4 bytes for each number of the candidates' embeddings, and what the method needs.
    """
    limits = [part if times is None else int(Fraction(str(times)) * part) for part in parts]
    by_stratum = pl.col("stratum")
    spent = pl.col("cost").cum_sum().over("stratum")
    is_candidate = spent <= by_stratum.replace_strict(range(len(parts)), limits) if times else True
    candidates = (
        ranked.with_row_index("place")
        .filter(is_candidate, by_stratum.is_in([code for code, part in enumerate(parts) if part]))
        .sort("stratum", maintain_order=True)
    )
    grid = _read(candidates["row"], embeddings)
    picked = np.zeros(ranked.height, bool)
    start = 0
    with Progress("choosing") as bar:
        for group in candidates.partition_by("stratum", maintain_order=True):
            end = start + group.height
            places = _fill(
                grid[start:end], group["cost"].to_list(), parts[group["stratum"][0]], method
            )
            picked[group["place"].gather(places).to_numpy()] = True
            bar.update(len(places))
            start = end
    return pl.Series(picked)


def _read(rows: pl.Series, embeddings: pl.LazyFrame) -> Matrix:
    """The directions of the embeddings of ``rows``, in their order."""
    places = rows.to_frame().with_row_index("at")
    kind = embeddings.collect_schema()["embedding"]
    grid = np.zeros((len(rows), getattr(kind, "size", 0)), np.float32)
    for batch in embeddings.join(places.lazy(), on="row").collect_batches(chunk_size=BATCH_ROWS):
        for piece in batch.iter_slices(BATCH_ROWS):
            grid[piece["at"].to_numpy()] = to_grid(piece["embedding"].to_numpy())
    return grid


def _fill(grid: Matrix, costs: Sequence[int], part: int, method: Diversify) -> list[int]:
    """The places that are picked until they cost as much as ``part``, or the next costs more."""
    if sum(costs) <= part:
        return list(range(len(costs)))
    places: list[int] = []
    for pick in METHODS[method](grid):
        part -= costs[pick.place]
        if part < 0:
            break
        places.append(pick.place)
        if part == 0:
            break
    return places
