"""`cherry-vllm score` on many generated rows, killed at random moments: are its files the same?

    python -m bench.kills [--rows 1000000] [--kills 20] [--seed 0] [--engine vllm_fused_eager]
                          [overrides ...]

One run is left alone. Another is killed (SIGKILL) whenever it has got as far as a random share of
its shards, up to three seconds later, and begun again by the same command. Ends with code 1 if
log-probs were computed twice, a file differs, or the run ended before all its kills.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.score_million import write_checkpoint, write_rows

SHARD_ROWS = 2000
UP_TO_S = 3.0  # after the shard that a kill waits for


def score_command(folder: Path, model: Path, data: Path, overrides: Sequence[str]) -> list[str]:
    """The command that scores ``data`` in a folder."""
    places = [f"run_dir={folder}", f"model.path={model}", f"data.path={data}"]
    fixed = ["prompt=wizardlm", f"shard_rows={SHARD_ROWS}"]
    return [sys.executable, "-m", "cherry_vllm", "score", *places, *fixed, *overrides]


def run_until(command: Sequence[str], folder: Path, num_shards: int, wait_s: float) -> bool:
    """Kills a run once it has made ``num_shards`` shards; returns whether it had ended before."""
    with (folder.parent / "log").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        while process.poll() is None and len(find_shards(folder)) < num_shards:
            time.sleep(0.2)
        time.sleep(wait_s)
        if process.poll() is not None:
            return True
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    return False


def find_shards(folder: Path) -> dict[str, int]:
    """When each finished shard was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("logprobs/*/part-*.done")}


def run_with_kills(
    command: Sequence[str], folder: Path, num_shards: int, num_kills: int, seed: int
) -> tuple[int, int]:
    """Kills and resumes a run, then lets it end.

    Returns how often it was killed, and how many finished shards were made twice.

    Raises:
        subprocess.CalledProcessError: the run failed.
    """
    draw = np.random.default_rng(seed)
    killed, num_again, finished = 0, 0, dict[str, int]()
    for share in sorted(draw.random(num_kills)):
        if run_until(command, folder, int(share * num_shards), draw.uniform(0, UP_TO_S)):
            print("the run ended before it could be killed again")
            break
        killed, now = killed + 1, find_shards(folder)
        num_again += sum(now.get(name) != stamp for name, stamp in finished.items())
        finished = now
        print(f"kill {killed} of {num_kills}: {len(now)} of {num_shards} shards", flush=True)
    with (folder.parent / "log").open("a") as log:
        subprocess.run(command, stdout=log, stderr=log, check=True)
    now = find_shards(folder)
    return killed, num_again + sum(now.get(name) != stamp for name, stamp in finished.items())


def differing(left: Path, right: Path) -> list[str]:
    """The results that are not byte for byte the same in two run folders."""
    patterns = ("rows/*/*.parquet", "logprobs/*/*.parquet", "scores.parquet")
    files: list[dict[str, Path]] = [
        {str(path.relative_to(run)): path for pattern in patterns for path in run.glob(pattern)}
        for run in (left, right)
    ]
    names = files[0].keys() | files[1].keys()
    return sorted(
        name
        for name in names
        if not all(name in found for found in files)
        or files[0][name].read_bytes() != files[1][name].read_bytes()
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", default="vllm_fused_eager")
    parser.add_argument("overrides", nargs="*", help="settings for `cherry-vllm score`")
    asked = parser.parse_args()
    overrides = [f"engine={asked.engine}", *asked.overrides]
    print(f"engine={asked.engine}, {asked.rows:,} rows, {os.cpu_count()} cores", flush=True)
    with tempfile.TemporaryDirectory() as place:
        alone, killed = (Path(place) / name / "run" for name in ("alone", "killed"))
        for run in (alone, killed):
            run.parent.mkdir()
        model = write_checkpoint(Path(place) / "model")
        data = write_rows(Path(place) / "rows.jsonl", asked.rows)
        seconds = []
        started = time.monotonic()
        with (alone.parent / "log").open("w") as log:
            command = score_command(alone, model, data, overrides)
            subprocess.run(command, stdout=log, stderr=log, check=True)
        seconds.append(time.monotonic() - started)
        print(f"left alone: {seconds[0]:,.0f} s", flush=True)
        num_shards = len(find_shards(alone))
        started = time.monotonic()
        num_kills, num_again = run_with_kills(
            score_command(killed, model, data, overrides),
            killed,
            num_shards,
            asked.kills,
            asked.seed,
        )
        seconds.append(time.monotonic() - started)
        wrong = differing(alone, killed)
    print(f"killed {num_kills} times: {seconds[1]:,.0f} s; {num_again} shards made twice")
    print(f"files that differ: {len(wrong)}", *wrong[:5], sep="\n  ")
    return 1 if wrong or num_again or num_kills < asked.kills else 0


if __name__ == "__main__":
    sys.exit(main())
