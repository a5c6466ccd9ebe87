"""The command line as a user meets it: exit codes, resuming, sweeps."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.conftest import ROWS, Cli, start
from tests.runs import logprob_files


@pytest.fixture(scope="module")
def run_dir(checkpoint: Path, cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the hf engine over the shipped rows."""
    folder = tmp_path_factory.mktemp("run") / "run"
    done = cli(*score_command(checkpoint, folder))
    assert done.returncode == 0, done.stderr
    assert "IFD quartiles" in done.stdout
    return folder


def score_command(checkpoint: Path, folder: Path, engine: str = "hf") -> list[str]:
    return [
        "score",
        f"data.path={ROWS}",
        f"model.path={checkpoint}",
        f"run_dir={folder}",
        f"engine={engine}",
        "max_length=128",
        "shard_rows=4",
    ]


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2, and one line on stderr that holds the words."""
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("cherry-vllm: ")]
    assert len(lines) == 1, done.stderr
    assert "Error executing job" not in done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in lines[0]


def test_every_input_row_ends_scored_or_dropped(run_dir: Path) -> None:
    scores = pl.read_parquet(run_dir / "scores.parquet")
    num_rows = len(ROWS.read_text(encoding="utf-8").splitlines())
    assert scores["row"].to_list() == list(range(num_rows))
    manifest = json.loads((run_dir / "score.json").read_text())
    assert sum(manifest["outcomes"].values()) == manifest["num_rows"] == num_rows
    assert manifest["outcomes"]["prompt_too_long"] > 0
    assert (run_dir / "ifd.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_run_does_nothing_and_a_changed_setting_mixes_with_nothing(
    checkpoint: Path, cli: Cli, run_dir: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*.parquet")}
    started = time.monotonic()
    done = cli(*score_command(checkpoint, run_dir))
    assert done.returncode == 0, done.stderr
    assert "scored before" in done.stderr
    assert time.monotonic() - started < 30
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*.parquet")} == before
    sweep = cli(*score_command(checkpoint, run_dir), "-m", "max_length=64")
    assert_refused(sweep, "other settings", "run_dir")
    folders = list((run_dir / "logprobs").iterdir())
    assert len(folders) == 1


def test_a_sweep_selects_from_one_scored_run(cli: Cli, run_dir: Path) -> None:
    fractions = ("0.1", "0.2", "0.5")
    done = cli("select", f"run_dir={run_dir}", "-m", f"select.fraction={','.join(fractions)}")
    assert done.returncode == 0, done.stderr
    usable = pl.read_parquet(run_dir / "scores.parquet")["drop_reason"].null_count()
    chosen: list[Any] = []
    for fraction in fractions:
        rows = json.loads((run_dir / f"select.fraction={fraction}" / "cherry.json").read_text())
        assert len(rows) == int(float(fraction) * usable)
        assert all(row in rows for row in chosen)
        chosen = rows
    lines = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    assert all(row in lines for row in chosen)


def test_select_writes_the_format_that_the_suffix_names(cli: Cli, run_dir: Path) -> None:
    for name in ("c.jsonl", "c.parquet"):
        done = cli("select", f"run_dir={run_dir}", "select.count=3", f"select.output={name}")
        assert done.returncode == 0, done.stderr
        assert "highest IFD" in done.stdout
    lines = (run_dir / "c.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == pl.read_parquet(run_dir / "c.parquet").to_dicts()
    meta = json.loads((run_dir / "c.meta.json").read_text())
    assert meta["num_selected"] == len(lines) == 3


@pytest.mark.parametrize("engine", ["hf", "vllm_eager"])
def test_kill_9_and_the_same_command_end_in_the_same_bytes(
    checkpoint: Path, cli: Cli, run_dir: Path, tmp_path: Path, engine: str
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    if engine == "hf":
        whole = run_dir
    else:
        done = cli(*score_command(checkpoint, whole, engine))
        assert done.returncode == 0, done.stderr
    process = start(*score_command(checkpoint, broken, engine))
    while process.poll() is None and not list(broken.glob("logprobs/*/part-00002.done")):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    finished = {path.name: path.stat().st_mtime_ns for path in broken.glob("logprobs/*/*.done")}
    assert 3 <= len(finished) < 7
    assert not (broken / "scores.parquet").exists()
    again = cli(*score_command(checkpoint, broken, engine))
    assert again.returncode == 0, again.stderr
    for name, stamp in finished.items():
        (path,) = broken.glob(f"logprobs/*/{name}")
        assert path.stat().st_mtime_ns == stamp
    assert logprob_files(broken) == logprob_files(whole)
    left, right = (pl.read_parquet(folder / "scores.parquet") for folder in (whole, broken))
    assert left.equals(right)


def test_two_runs_on_one_folder_are_refused(checkpoint: Path, cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = start(*score_command(checkpoint, folder))
    try:
        while first.poll() is None and not list(folder.glob("rows/*/complete.json")):
            time.sleep(0.05)
        second = cli(*score_command(checkpoint, folder))
        assert_refused(second, "in use by another run", str(first.pid))
    finally:
        first.kill()
        first.communicate()
