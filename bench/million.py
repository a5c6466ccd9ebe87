"""A million rows through the Polars aggregation and the selection strategies: time and memory.

    python -m bench.million [--rows 1000000] [--tokens 100]

The log-prob shards are synthetic (about ``--tokens`` answer tokens a row), written as the score
stage writes them; each step then runs in its own process.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from tqdm import tqdm

from cherry_vllm.cli.keys import list_groups
from cherry_vllm.config import arguments_of, choice_of, compose, prompt_of
from cherry_vllm.conversation import frame_messages, single_turn
from cherry_vllm.runtime.memory import peak_bytes
from cherry_vllm.schema import LOGPROBS, PASSES, ROWS
from cherry_vllm.scoring.run import aggregate
from cherry_vllm.selection.run import Extras, select_records
from cherry_vllm.store.shards import Shards

SHARD_ROWS = 2000
TABLE = "columns.parquet"  # stands for a judge, a reward model and clusters
INDICATORS = ("reward", "understandability", "naturalness", "coherence")
MORE = {  # further choices, by name
    "sql": ["select.where='ifd <= 1 and num_answer_tokens between 20 and 400'"],
    "field": ["select.strata=[record.source]", "select.with_scores=true"],
}


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
            f'{{"instruction": "{q}", "output": "{a}", "source": "{n % 7}"}}'
            for q, a, n in zip(texts, answers, number, strict=True)
        ]
        both = zip(texts, answers, strict=True)
        columns = {
            "row": number,
            "record": records,
            "messages": frame_messages([single_turn(q, "", a).messages for q, a in both]),
        }
        rows.write(
            index,
            pl.DataFrame(columns).with_columns(tools=None, drop_reason=None).cast(ROWS),  # type: ignore[arg-type]
        )
        lengths = generator.poisson(num_tokens, number.size) + 1
        values = [-generator.gamma(2.0, 1.0, (2, length)).astype(np.float32) for length in lengths]
        frame = pl.DataFrame(
            {
                "row": number,
                "conditioned_logprobs": [0.9 * pair[0] for pair in values],
                "direct_logprobs": [pair[1] for pair in values],
            }
        ).with_columns(pl.list(name).alias(name) for name in PASSES)  # of a single turn
        frame = frame.with_columns(truncated=False, drop_reason=None).cast(LOGPROBS)  # type: ignore[arg-type]
        logprobs.write(index, frame)
    rows.close(len(starts), num_rows=num_rows, files=[])
    logprobs.close(len(starts))
    names = ("rating", *INDICATORS)
    table = pl.DataFrame(
        {
            "row": np.arange(num_rows),
            "cluster": generator.integers(0, 100, num_rows),
            **dict(zip(names, generator.random((len(names), num_rows)), strict=True)),
        }
    )
    table.write_parquet(run_dir / TABLE)


def open_shards(run_dir: Path) -> tuple[Shards, Shards]:
    config = compose()
    settings = {
        "max_length": config.max_length,
        "prompt": prompt_of(config).as_json(),
        "engine": arguments_of(config.engine),
    }
    rows: dict[str, Any] = {"files": [], "layout": None, "columns": None, "turns": None}
    return Shards(run_dir / "rows", rows), Shards(run_dir / "logprobs", settings)


def run_step(step: str, run_dir: Path) -> None:
    """Runs one step in this process and prints its time and the process's peak memory."""
    started = time.perf_counter()
    if step == "aggregate":
        aggregate(run_dir, *open_shards(run_dir))
    else:
        words = MORE.get(step) or [f"select={step}", "select.threshold=null"]
        config = compose(*words, "select.fraction=0.1")
        extras = Extras(tables=[run_dir / TABLE], with_scores=config.select.with_scores)
        select_records(run_dir, run_dir / f"{step}.json", choice_of(config), extras=extras)
    seconds = time.perf_counter() - started
    peak = peak_bytes() / 2**30
    print(f"{step:<20}{seconds:>8.1f} s{peak:>8.2f} GiB")


def find_steps() -> list[str]:
    """All steps; strategies that need embeddings are measured by :mod:`bench.diversity`."""
    strategies = list_groups()["select"]
    cheap = [name for name in strategies if not compose(f"select={name}").select.diversify]
    return ["aggregate", *cheap, *MORE]


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
        for step in find_steps():
            command = [sys.executable, "-m", "bench.million", "--step", step, "--run-dir", folder]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
