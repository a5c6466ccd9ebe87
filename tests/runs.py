"""Small runs of the real command line, and what is left of them."""

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import polars as pl

NUM_ROWS, SHARD_ROWS = 240, 4
NUM_SHARDS = NUM_ROWS // SHARD_ROWS
HIDDEN = re.compile(r"\.turn|\..*lock.*|\..+\.meta\.json")
DEADLY_ROW = 41
DEADLY = "Zebra"  # how its answer begins, of which the engine dies where a test wants it to


def write_rows(path: Path, answers: list[str], *, with_talks: bool = False) -> Path:
    """Writes a row for each answer; ``with_talks`` gives every third row a turn before it."""
    rows = [
        talk(n, answer) if with_talks and n % 3 == 1 else single_turn(n, answer)
        for n, answer in enumerate(answers)
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def single_turn(number: int, answer: str) -> dict[str, Any]:
    request = f"Say something of the number {number}."
    return {"instruction": request, "input": "", "output": answer}


def talk(number: int, answer: str) -> dict[str, Any]:
    said = ("Hi.", f"Hello, {number}.", f"Say something of {number}.", answer)
    roles = ("user", "assistant") * 2
    return {"messages": [{"role": r, "content": text} for r, text in zip(roles, said, strict=True)]}


def plain_answer(number: int) -> str:
    return f"It is {number}, which comes before {number + 1}." * (1 + number % 3)


def command(data: Path, model: Path, run_dir: Path, *more: str) -> list[str]:
    return [
        "score",
        f"data.path={data}",
        f"model.path={model}",
        f"run_dir={run_dir}",
        "engine=hf",
        "prompt=vicuna",
        "max_length=96",
        f"shard_rows={SHARD_ROWS}",
        *more,
    ]


def assert_same(run_dir: Path, undisturbed: Path) -> None:
    assert logprob_files(run_dir) == logprob_files(undisturbed)
    left, right = (pl.read_parquet(run / "scores.parquet") for run in (run_dir, undisturbed))
    assert left.equals(right)
    assert leftovers(run_dir) == []


def leftovers(run_dir: Path) -> list[Path]:
    """Hidden files other than locks and marks: what a killed process left."""
    return [path for path in run_dir.rglob(".*") if not HIDDEN.fullmatch(path.name)]


def stamps(run_dir: Path) -> dict[str, int]:
    """When each finished shard was written."""
    return {path.name: path.stat().st_mtime_ns for path in run_dir.glob("logprobs/*/part-*.done")}


def wait_for_shards(process: subprocess.Popen[str], run_dir: Path, count: int) -> None:
    while process.poll() is None and len(stamps(run_dir)) < count:
        time.sleep(0.01)


def assert_gone(pids: list[int]) -> None:
    """A killed process takes a moment to go."""
    deadline = time.monotonic() + 10
    while left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, f"{left} outlived the run"
        time.sleep(0.01)


def logprob_files(run_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(run_dir.glob("logprobs/*/*.parquet"))}


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2, and one line on stderr that holds the words."""
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("cherry-vllm: ")]
    assert len(lines) == 1, done.stderr
    assert "Error executing job" not in done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in lines[0]
