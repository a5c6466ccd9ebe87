"""The page of a large run: how long it takes to build, and how large it is.

    python -m bench.report [--rows 100000] [--run-dir FOLDER]

The rows and their scores are synthetic (:mod:`bench.million`), as are their embeddings: 40 clouds
of normally distributed values, as wide as those of a small model.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from bench.million import SHARD_ROWS, open_shards, write_inputs
from cherry_vllm.commands.job import Job
from cherry_vllm.commands.report import report
from cherry_vllm.config import compose
from cherry_vllm.scoring.run import aggregate
from cherry_vllm.selection.choice import Choice
from cherry_vllm.selection.run import select_records
from cherry_vllm.store.shards import Shards

WIDTH = 576
NUM_CLOUDS = 40


def write_embeddings(run_dir: Path, rows: Shards) -> None:
    """Writes embedding shards for the row shards."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(NUM_CLOUDS, WIDTH))
    embeddings = Shards(run_dir / "embeddings", {"rows": rows.fingerprint})
    for index in range(rows.num_shards):
        shard = rows.read(index).select("row", "drop_reason")
        clouds = generator.integers(NUM_CLOUDS, size=shard.height)
        vectors = centres[clouds] + 0.3 * generator.normal(size=(shard.height, WIDTH))
        column = pl.Series("embedding", vectors.astype(np.float32))
        embeddings.write(index, shard.with_columns(column))
    embeddings.close(rows.num_shards)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--run-dir", type=Path, help="folder to keep; default: a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run_dir = arguments.run_dir or Path(folder)
        write_inputs(run_dir, arguments.rows, num_tokens=100)
        rows, logprobs = open_shards(run_dir)
        write_embeddings(run_dir, rows)
        aggregate(run_dir, rows, logprobs)
        select_records(run_dir, run_dir / "cherry.json", Choice(fraction=0.1))
        started = time.perf_counter()
        job = Job(run_dir, is_sweep=False)
        page = report(compose(f"run_dir={run_dir}"), job).artifact
        seconds = time.perf_counter() - started
        print(
            f"{arguments.rows:,} rows in shards of {SHARD_ROWS:,}: {seconds:.1f} s, "
            f"{page.stat().st_size / 1e6:.2f} MB"
        )


if __name__ == "__main__":
    main()
