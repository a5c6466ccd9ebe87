"""A million rows through the Polars aggregation and every selection by scores: time and memory.

    python -m bench.million [--rows 1000000] [--tokens 100]

The log-prob shards are synthetic (about ``--tokens`` answer tokens a row), written as the score
stage writes them; each step then runs in its own process.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from tqdm import tqdm

from cherry_vllm.config import arguments_of, compose, prompt_of
from cherry_vllm.options import Strategy
from cherry_vllm.schema import LOGPROBS, ROWS
from cherry_vllm.scoring.run import aggregate
from cherry_vllm.selection.choice import Choice
from cherry_vllm.selection.run import select_records
from cherry_vllm.store.shards import Shards

SHARD_ROWS = 2000
SELECTIONS = [name for name in Strategy.__members__ if name != "rating"]  # which needs a judge


def write_inputs(run_dir: Path, num_rows: int, num_tokens: int) -> None:
    """Writes row and log-prob shards of synthetic rows."""
    rows, logprobs = open_shards(run_dir)
    generator = np.random.default_rng(0)
    starts = range(0, num_rows, SHARD_ROWS)
    for index, start in enumerate(tqdm(starts, desc="writing shards")):
        number = np.arange(start, min(start + SHARD_ROWS, num_rows))
        texts = [f"instruction {n} " + "words " * 20 for n in number]
        answers = [f"answer {n} " + "more words " * 40 for n in number]
        records = [
            f'{{"instruction": "{q}", "output": "{a}"}}'
            for q, a in zip(texts, answers, strict=True)
        ]
        columns = {
            "row": number,
            "record": records,
            "instruction": texts,
            "input": "",
            "answer": answers,
        }
        rows.write(index, pl.DataFrame(columns).with_columns(drop_reason=None).cast(ROWS))  # type: ignore[arg-type]
        lengths = generator.poisson(num_tokens, number.size) + 1
        values = [-generator.gamma(2.0, 1.0, (2, length)).astype(np.float32) for length in lengths]
        frame = pl.DataFrame(
            {
                "row": number,
                "conditioned_logprobs": [0.9 * pair[0] for pair in values],
                "direct_logprobs": [pair[1] for pair in values],
            }
        )
        frame = frame.with_columns(truncated=False, drop_reason=None).cast(LOGPROBS)  # type: ignore[arg-type]
        logprobs.write(index, frame)
    rows.close(len(starts), num_rows=num_rows, files=[])
    logprobs.close(len(starts))


def open_shards(run_dir: Path) -> tuple[Shards, Shards]:
    config = compose()
    settings = {
        "max_length": config.max_length,
        "prompt": prompt_of(config).as_json(),
        "engine": arguments_of(config.engine),
    }
    return Shards(run_dir / "rows", {}), Shards(run_dir / "logprobs", settings)


def run_step(step: str, run_dir: Path) -> None:
    """Runs one step in this process and prints its time and the process's peak memory."""
    started = time.perf_counter()
    if step == "aggregate":
        aggregate(run_dir, *open_shards(run_dir))
    else:
        choice = Choice(strategy=Strategy[step], fraction=0.1)
        select_records(run_dir, run_dir / f"{step}.json", choice)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{step:<20}{seconds:>8.1f} s{peak:>8.2f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--step", help="one step on --run-dir, for this command's own use")
    parser.add_argument("--run-dir", type=Path)
    arguments = parser.parse_args()
    if arguments.step:
        run_step(arguments.step, arguments.run_dir)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder), arguments.rows, arguments.tokens)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*.parquet")) / 2**30
        print(f"{arguments.rows:,} rows, {size:.2f} GiB of shards, {os.cpu_count()} cores")
        for step in ("aggregate", *SELECTIONS):
            command = [sys.executable, "-m", "bench.million", "--step", step, "--run-dir", folder]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
