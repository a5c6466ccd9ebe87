"""The time and memory of `select.diversify` on made-up embeddings: topics of unequal sizes.

python -m bench.diversity k_center --candidates 100000 --count 10000
"""

import argparse
import hashlib
import time
from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cherry_vllm.options import Diversify
from cherry_vllm.runtime.memory import peak_bytes
from cherry_vllm.selection.diversity import pick_diverse

BLOCK_ROWS = 8192
NUM_TOPICS = 200
NUM_DIRECTIONS = 40  # in which all topics are spread


def make_embeddings(rows: int, width: int, seed: int = 0) -> tuple[pl.LazyFrame, NDArray[np.int64]]:
    """Embeddings with a shared direction, as hidden states have, and the topic of each."""
    source = np.random.default_rng(seed)
    centres = source.normal(size=(NUM_TOPICS, width)) + 2
    spread = 0.15 * source.normal(size=(NUM_DIRECTIONS, width))
    topics = (NUM_TOPICS * source.random(rows) ** 2).astype(np.int64)
    vectors = np.empty((rows, width), np.float32)
    for start in range(0, rows, BLOCK_ROWS):
        block = topics[start : start + BLOCK_ROWS]
        vectors[start : start + BLOCK_ROWS] = (
            centres[block]
            + source.normal(size=(len(block), NUM_DIRECTIONS)) @ spread
            + 0.3 * source.normal(size=(len(block), width))
        )
    column = pl.Series("embedding", vectors, pl.Array(pl.Float32, width))
    return pl.DataFrame({"row": range(rows)}).with_columns(column).lazy(), topics


def measure(arguments: Sequence[str] | None = None) -> None:
    """Prints what a choice took, and a hash of the rows that were picked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method", choices=[method.name for method in Diversify])
    parser.add_argument("--candidates", type=int, default=100_000)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--strata", type=int, default=1, help="of whole topics")
    settings = parser.parse_args(arguments)
    embeddings, topics = make_embeddings(settings.candidates, settings.width)
    ranked = pl.DataFrame(
        {"row": range(settings.candidates), "stratum": topics % settings.strata}
    ).with_columns(cost=pl.lit(1, pl.Int64))
    sizes = np.bincount(ranked["stratum"], minlength=settings.strata)
    parts = [settings.count * int(size) // settings.candidates for size in sizes]
    before, cpu_before, started = peak_bytes(), time.process_time(), time.monotonic()
    picked = pick_diverse(ranked, parts, embeddings, method=Diversify[settings.method], times=None)
    rows = ranked["row"].filter(picked).to_numpy()
    print(f"picked {len(rows):,} of {settings.candidates:,} x {settings.width}")
    print(f"{time.monotonic() - started:.0f} s, CPU {time.process_time() - cpu_before:.0f} s")
    print(f"peak {peak_bytes() / 2**20:.0f} MiB, before it {before / 2**20:.0f} MiB")
    print(f"rows {hashlib.sha256(rows.astype('<i8').tobytes()).hexdigest()[:16]}")


if __name__ == "__main__":
    measure()
