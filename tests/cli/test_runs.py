"""Runs of the real command line: resuming after kill -9, sweeps, formats of the output."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cherry_vllm.cli import main
from tests.conftest import ROWS, Cli, start
from tests.runs import logprob_files

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def run_dir(tiny: Path, cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the hf engine over the shipped rows."""
    folder = tmp_path_factory.mktemp("run") / "run"
    done = cli(*score_command(tiny, folder))
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


def mistakes(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines that say what is wrong, between those of progress."""
    lines = capsys.readouterr().err.splitlines()
    return [line for line in lines if line.startswith("cherry-vllm: ")]


def test_every_input_row_ends_scored_or_dropped(run_dir: Path) -> None:
    scores = pl.read_parquet(run_dir / "scores.parquet")
    num_rows = len(ROWS.read_text(encoding="utf-8").splitlines())
    assert scores["row"].to_list() == list(range(num_rows))
    manifest = json.loads((run_dir / "score.json").read_text())
    assert sum(manifest["outcomes"].values()) == manifest["num_rows"] == num_rows
    assert manifest["outcomes"]["prompt_too_long"] > 0
    assert (run_dir / "ifd.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_run_does_nothing_and_a_changed_setting_mixes_with_nothing(
    tiny: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*.parquet")}
    assert main(score_command(tiny, run_dir)) == 0
    assert "scored before" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*.parquet")} == before
    assert main([*score_command(tiny, run_dir), "-m", "max_length=64"]) == 2
    (line,) = mistakes(capsys)
    assert "other settings" in line
    assert len(list((run_dir / "logprobs").iterdir())) == 1


def test_a_sweep_selects_from_one_scored_run(run_dir: Path) -> None:
    fractions = ("0.1", "0.2", "0.5")
    argv = ["select", f"run_dir={run_dir}", "-m", f"select.fraction={','.join(fractions)}"]
    assert main(argv) == 0
    usable = pl.read_parquet(run_dir / "scores.parquet")["drop_reason"].null_count()
    chosen: list[Any] = []
    for fraction in fractions:
        rows = json.loads((run_dir / f"select.fraction={fraction}" / "cherry.json").read_text())
        assert len(rows) == int(float(fraction) * usable)
        assert all(row in rows for row in chosen)
        chosen = rows
    lines = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    assert all(row in lines for row in chosen)


def test_select_writes_the_format_that_the_suffix_names(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("c.jsonl", "c.parquet"):
        argv = ["select", f"run_dir={run_dir}", "select.count=3", f"select.output={name}"]
        assert main(argv) == 0
        assert "highest IFD" in capsys.readouterr().out
    lines = (run_dir / "c.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == pl.read_parquet(run_dir / "c.parquet").to_dicts()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["select=rating"], ["ratings.parquet", "judge=rating", "select.ratings"]),
        (["select.count=99"], ["select.count=99", "usable"]),
        (["select.fraction=0.0001"], ["select.fraction"]),
        (["select.output=c.txt"], ["c.txt", ".jsonl"]),
    ],
)
def test_what_a_run_cannot_give_costs_one_line(
    run_dir: Path, capsys: pytest.CaptureFixture[str], argv: list[str], words: list[str]
) -> None:
    assert main(["select", f"run_dir={run_dir}", *argv]) == 2
    (line,) = mistakes(capsys)
    assert all(word in line for word in words)


def test_what_a_model_cannot_do_costs_one_line(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for argv, words in {
        (f"model.path={tiny}", "max_length=100000"): ("max_length", "512"),
        (f"model.path={tmp_path}",): (str(tmp_path), "config.json"),
        (f"model.path={tiny}", f"data.path={tiny}/config.json"): ("config.json",),
        (f"model.path={tiny}", f"run_dir={ROWS}"): (str(ROWS), "check that place"),
    }.items():
        run_dir = f"run_dir={tmp_path / 'run'}"
        assert main(["score", f"data.path={ROWS}", run_dir, "engine=hf", *argv]) == 2
        (line,) = mistakes(capsys)
        assert all(word in line for word in words)


def test_kill_9_and_the_same_command_end_in_the_same_bytes(
    tiny_for_vllm: Path, cli: Cli, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"

    def command(folder: Path) -> list[str]:
        return score_command(tiny_for_vllm, folder, "vllm_fused_eager")

    done = cli(*command(whole))
    assert done.returncode == 0, done.stderr
    process = start(*command(broken))
    while process.poll() is None and not list(broken.glob("logprobs/*/part-00002.done")):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    finished = {path.name: path.stat().st_mtime_ns for path in broken.glob("logprobs/*/*.done")}
    assert 3 <= len(finished) < 7
    assert not (broken / "scores.parquet").exists()
    again = cli(*command(broken))
    assert again.returncode == 0, again.stderr
    for name, stamp in finished.items():
        (path,) = broken.glob(f"logprobs/*/{name}")
        assert path.stat().st_mtime_ns == stamp
    assert logprob_files(broken) == logprob_files(whole)
    left, right = (pl.read_parquet(folder / "scores.parquet") for folder in (whole, broken))
    assert left.equals(right)


def test_two_runs_on_one_folder_are_refused(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    first = start(*score_command(tiny, folder))
    try:
        while first.poll() is None and not list(folder.glob("rows/*/complete.json")):
            time.sleep(0.05)
        assert main(score_command(tiny, folder)) == 2
        (line,) = mistakes(capsys)
        assert "in use by another run" in line
        assert str(first.pid) in line
    finally:
        first.kill()
        first.communicate()
