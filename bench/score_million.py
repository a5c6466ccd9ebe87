"""`cherry-vllm score` from end to end on generated rows: time, memory, disk.

    python -m bench.score_million [--rows 50000 1000000] [--turns 1] [--engine vllm_fused_eager]
                                  [overrides ...]

The checkpoint is random, with one narrow layer and 512 tokens, so that the work around the model is
measured. There is one run for each number of rows; memory is each process's peak. With several
``--turns`` a row is a conversation.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

SUBJECTS = ("river", "engine", "letter", "garden", "number", "teacher", "window", "market")
END = "<|end|>"
VERBS = ("follows", "describes", "repairs", "crosses", "remembers", "answers", "measures")


class Measured(NamedTuple):
    """What a run took."""

    num_rows: int
    seconds: float
    rows_per_s: float  # without the start of the engine
    outside: float  # share of that time outside the engine
    driver_mib: float
    worker_mib: float
    bytes_per_row: dict[str, float]  # by folder

    def __str__(self) -> str:
        disk = "  ".join(f"{name} {size:.0f}" for name, size in self.bytes_per_row.items())
        return (
            f"{self.num_rows:>9,} rows  {self.seconds:>7.0f} s  {self.rows_per_s:>7.1f} rows/s  "
            f"{self.outside:>6.1%} outside the engine  driver {self.driver_mib:,.0f} MiB  "
            f"worker {self.worker_mib:,.0f} MiB  bytes per row: {disk}"
        )


def generate(num_rows: int) -> Iterator[dict[str, str]]:
    """Different rows of a few words each."""
    for number in range(num_rows):
        subject, other = SUBJECTS[number % 8], SUBJECTS[number // 8 % 8]
        verb = VERBS[number % 7]
        yield {
            "instruction": f"What {verb} {subject} {number}?",
            "input": "",
            "output": f"The {other} {verb} it" + f", and the {subject} too" * (number % 5) + ".",
        }


def converse(num_rows: int, num_turns: int) -> Iterator[dict[str, list[dict[str, str]]]]:
    """Different conversations of ``num_turns`` such rows each."""
    turns = generate(num_rows * num_turns)
    for _ in range(num_rows):
        messages = []
        for turn in islice(turns, num_turns):
            messages += [
                {"role": "user", "content": turn["instruction"]},
                {"role": "assistant", "content": turn["output"]},
            ]
        yield {"messages": messages}


def write_rows(path: Path, num_rows: int, num_turns: int = 1) -> Path:
    """Writes generated rows as JSON Lines; returns the path."""
    rows = generate(num_rows) if num_turns == 1 else converse(num_rows, num_turns)
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
    return path


def write_checkpoint(folder: Path) -> Path:
    """Writes a random checkpoint with one narrow layer, and a tokenizer with 512 tokens."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    texts = (" ".join(row.values()) for row in generate(5000))
    bpe.train_from_iterator(texts, vocab_size=512, special_tokens=[END], show_progress=False)
    ends = {"bos_token": END, "eos_token": END}
    tokenizer: Any = PreTrainedTokenizerFast
    tokenizer(tokenizer_object=bpe._tokenizer, **ends).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    model: Any = LlamaForCausalLM
    model(config).save_pretrained(folder)
    return folder


def measure(
    folder: Path, model: Path, num_rows: int, overrides: Sequence[str], num_turns: int = 1
) -> Measured:
    """Scores ``num_rows`` rows in ``folder``; returns the time, memory and disk that it took.

    Raises:
        RuntimeError: the run failed.
    """
    data = write_rows(folder / "rows.jsonl", num_rows, num_turns)
    run_dir, log = folder / "run", folder / "log"
    places = [f"data.path={data}", f"model.path={model}", f"run_dir={run_dir}"]
    prompt = "prompt=wizardlm" if num_turns == 1 else "prompt=vicuna"
    command = [sys.executable, "-m", "cherry_vllm", "score", *places, prompt, *overrides]
    peaks: dict[int, float] = {}
    started = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
        while process.poll() is None:
            for pid in (process.pid, *_children(process.pid)):
                peaks[pid] = max(peaks.get(pid, 0), _peak_mib(pid))
            time.sleep(0.2)
    seconds = time.monotonic() - started
    text = log.read_text()
    found = re.search(r"without it ([\d.]+) rows/s, \d+ tokens/s, ([\d.]+)% of that", text)
    if process.returncode or not found:
        raise RuntimeError(text)
    driver = peaks.pop(process.pid)
    sizes = {name: _size(run_dir / name) for name in ("rows", "logprobs", "scores.parquet")}
    return Measured(
        num_rows,
        seconds,
        float(found[1]),
        float(found[2]) / 100,
        driver,
        max(peaks.values()),
        {name: size / num_rows for name, size in sizes.items()},
    )


def _children(pid: int) -> list[int]:
    found = []
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in thread.read_text().split()]
        except OSError:
            continue
    return found


def _peak_mib(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) / 1024 if found else 0


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, nargs="+", default=[50_000, 1_000_000])
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--engine", default="vllm_fused_eager")
    parser.add_argument("overrides", nargs="*", help="settings for `cherry-vllm score`")
    arguments = parser.parse_args()
    print(f"engine={arguments.engine}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as place:
        model = write_checkpoint(Path(place) / "model")
        results = []
        for num_rows in arguments.rows:
            folder = Path(place) / str(num_rows)
            folder.mkdir()
            overrides = [f"engine={arguments.engine}", *arguments.overrides]
            results.append(measure(folder, model, num_rows, overrides, arguments.turns))
            print(results[-1], flush=True)
    first, last = results[0], results[-1]
    for name in ("driver_mib", "worker_mib"):
        print(f"{name}: {getattr(last, name) / getattr(first, name):.2f} times that of the first")


if __name__ == "__main__":
    main()
