"""How much vLLM's scores differ from transformers' scores, in fp32 and in bf16.

    python -m bench.agreement --data FILE [--rows 300] [--model FOLDER] [--run-dir runs/agreement]

Each engine scores the first rows of a JSON Lines file through the command line, so that an
interrupted run is resumed. The first line shows the effect of precision alone: hf against itself.
"""

import argparse
import subprocess
import sys
from itertools import islice
from pathlib import Path

import polars as pl
from scipy.stats import spearmanr

from bench.demo import MODEL

COMPARED = [
    ("hf-bfloat16", "hf-float32"),
    ("vllm-float32", "hf-float32"),
    ("vllm-bfloat16", "hf-bfloat16"),
    ("vllm-bfloat16", "hf-float32"),
]


def score(name: str, data: Path, model: Path, run_dir: Path) -> pl.DataFrame:
    """The scores of one engine and type, such as "vllm-bfloat16"."""
    engine, dtype = name.split("-")
    command = [sys.executable, "-m", "cherry_vllm", "score", f"data.path={data}"]
    command += [f"model.path={model}", f"run_dir={run_dir / name}", f"engine.dtype={dtype}"]
    command += ["engine=vllm_fused_eager" if engine == "vllm" else "engine=hf", "shard_rows=100"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return pl.read_parquet(run_dir / name / "scores.parquet")


def compare(left: pl.DataFrame, right: pl.DataFrame) -> str:
    """One line of the table: Spearman of IFD, its differences, rows that only one side dropped."""
    both = pl.DataFrame({"left": left["ifd"], "right": right["ifd"]}).drop_nulls()
    differences = (both["left"] - both["right"]).abs()
    dropped = (left["drop_reason"].is_null() != right["drop_reason"].is_null()).sum()
    correlation = spearmanr(both["left"], both["right"]).statistic
    median, p99 = (differences.quantile(q) or 0.0 for q in (0.5, 0.99))
    return f"{correlation:>10.5f}{median:>12.2e}{p99:>12.2e}{dropped:>8}{both.height:>8}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--run-dir", type=Path, default=Path("runs/agreement"))
    arguments = parser.parse_args()
    arguments.run_dir.mkdir(parents=True, exist_ok=True)
    head = arguments.run_dir / "rows.jsonl"
    with arguments.data.open(encoding="utf-8") as lines:
        head.write_text("".join(islice(lines, arguments.rows)), encoding="utf-8")
    names = dict.fromkeys(name for pair in COMPARED for name in pair)
    scores = {name: score(name, head, arguments.model, arguments.run_dir) for name in names}
    print(f"{'':<30}{'Spearman':>10}{'median |d|':>12}{'p99 |d|':>12}{'drops':>8}{'rows':>8}")
    for left, right in COMPARED:
        print(f"{left + ' / ' + right:<30}{compare(scores[left], scores[right])}")


if __name__ == "__main__":
    main()
