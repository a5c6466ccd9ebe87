"""The numbers in stored embeddings."""

from pathlib import Path

import polars as pl

from cherry_vllm.experience.stored_embeddings import read_vectors
from cherry_vllm.store.shards import Shards

WIDTH_2 = pl.Array(pl.Float32, 2)


def test_vectors_are_those_of_the_rows_that_have_all_that_is_asked_for(tmp_path: Path) -> None:
    shards = Shards(tmp_path, {})
    shards.folder.mkdir()
    parts: list[list[tuple[int, list[float] | None, float | None]]] = [
        [(0, None, None)],
        [(1, [1, 1], None), (2, [2, 3], 5.0), (3, None, None)],
        [(4, None, 1.0)],
        [(5, [4, 5], 6.0)],
    ]
    for index, part in enumerate(parts):
        rows, vectors, perplexities = zip(*part, strict=True)
        columns = {"row": rows, "perplexity": pl.Series(perplexities, dtype=pl.Float64)}
        frame = pl.DataFrame(columns).with_columns(pl.Series("embedding", vectors, WIDTH_2))
        shards.write(index, frame)
    shards.close(len(parts))
    found, numbers = read_vectors(shards)
    assert found.to_dict(as_series=False) == {"row": [1, 2, 5]}
    assert numbers.tolist() == [[1, 1], [2, 3], [4, 5]]
    found, numbers = read_vectors(shards, "perplexity")
    assert found.to_dict(as_series=False) == {"row": [2, 5], "perplexity": [5, 6]}
    assert numbers.tolist() == [[2, 3], [4, 5]]
