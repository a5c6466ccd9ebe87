"""Rows and tokens per second of each engine, on the same rows and cores, in one run.

    python -m bench.throughput [--rows 100] [--repeats 3] [--model FOLDER] [--data FILE]

Each engine runs in a process of its own, so its peak memory is its own. Loading and a first pass
over the rows are not timed; the median of ``--repeats`` further passes is. The ceiling is what a
large bf16 matrix product reaches on this machine, at 2 FLOPs per parameter and token.
"""

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
from tqdm import tqdm

from cherry_vllm.checkpoint import load_tokenizer, read_limits
from cherry_vllm.config import compose, plain
from cherry_vllm.engines import Span, build_engine
from cherry_vllm.prompts import build_template
from cherry_vllm.sources import Columns, DataFormat, find_files, read_rows
from cherry_vllm.spans import Pair, SpanBuilder

DEMO = Path(compose().demo.cache_dir)
SETUPS = {
    "hf, one row at a time": ("engine=hf", "engine.batch_tokens=1"),
    "hf, batched by length": ("engine=hf",),
    "vllm, eager": ("engine=vllm_eager",),
    "vllm, compiled": ("engine=vllm",),
}


def build_spans(data: str, model: Path, num_rows: int, max_length: int) -> list[Span]:
    """Both spans of the first ``num_rows`` rows that can be scored, as the score stage does."""
    columns = Columns("instruction", "input", "output")
    frames = read_rows(
        find_files([data]),
        data_format=DataFormat.auto,
        columns=columns,
        censure=[],
        batch_rows=num_rows,
    )
    rows = next(frames).filter(pl.col("drop_reason").is_null())
    tokenizer = load_tokenizer(model, trust_remote_code=False)
    builder = SpanBuilder(
        tokenizer,
        build_template(tokenizer, **plain(compose().prompt)),
        max_length=max_length,
        vocab_size=read_limits(model, trust_remote_code=False).vocab_size,
    )
    built = builder.build(*(rows[name].to_list() for name in ("instruction", "input", "answer")))
    pairs = [pair for pair in built if isinstance(pair, Pair)]
    return [span for pair in pairs for span in (pair.conditioned, pair.direct)]


def measure(setup: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Times one engine in this process."""
    spans = build_spans(arguments.data, arguments.model, arguments.rows, arguments.max_length)
    settings = plain(compose(*SETUPS[setup], "engine.dtype=bfloat16").engine)
    started = time.perf_counter()
    engine = build_engine(
        model_path=arguments.model,
        max_length=arguments.max_length,
        trust_remote_code=False,
        **settings,
    )
    loading = time.perf_counter() - started
    seconds = []
    for _ in range(1 + arguments.repeats):
        started = time.perf_counter()
        engine.logprobs(spans, lambda _count: None)
        seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds[1:])
    return {
        "setup": setup,
        "rows_per_s": len(spans) / 2 / median,
        "tokens_per_s": sum(len(span.token_ids) for span in spans) / median,
        "load_s": loading,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def measure_ceiling() -> float:
    """TFLOP/s of a bf16 matrix product of 4096 x 4096, the median of five."""
    import torch

    left, right = (torch.randn(4096, 4096).bfloat16() for _ in range(2))
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - started)
    return float(2 * 4096**3 / statistics.median(seconds[1:]) / 1e12)


def count_parameters(model: Path) -> int:
    """Elements of all tensors in a checkpoint, from the headers of its files."""
    from safetensors import safe_open

    total = 0
    for file in model.glob("*.safetensors"):
        with safe_open(file, "numpy") as tensors:
            shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
        total += sum(math.prod(shape) for shape in shapes)
    return total


def in_child(setup: str) -> dict[str, Any]:
    """Runs :func:`measure` in a fresh process with this one's arguments."""
    command = [sys.executable, "-m", "bench.throughput", *sys.argv[1:], "--only", setup]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--model", type=Path, default=DEMO / "SmolLM2-135M-Instruct")
    parser.add_argument("--data", default=str(DEMO / "alpaca_en_demo.json"))
    parser.add_argument("--only", choices=SETUPS, help="measure one engine and print JSON")
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(arguments.only, arguments)))
        return
    tflops = measure_ceiling()
    ceiling = tflops * 1e12 / (2 * count_parameters(arguments.model))
    results = [in_child(setup) for setup in tqdm(SETUPS, desc="engines")]
    base = results[0]["tokens_per_s"]
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {arguments.rows} rows")
    print(f"{'':<24}{'rows/s':>8}{'tokens/s':>10}{'ratio':>8}{'load s':>8}{'peak GiB':>10}")
    for found in results:
        print(
            f"{found['setup']:<24}{found['rows_per_s']:>8.2f}{found['tokens_per_s']:>10.0f}"
            f"{found['tokens_per_s'] / base:>8.2f}{found['load_s']:>8.0f}{found['peak_gib']:>10.1f}"
        )
    print(f"{'ceiling':<24}{'':>8}{ceiling:>10.0f}{ceiling / base:>8.2f}  ({tflops:.2f} TFLOP/s)")


if __name__ == "__main__":
    main()
