"""The driver over a fake engine: every shard is made, whatever happens to the workers."""

from pathlib import Path

import polars as pl
import pytest

from cherry_vllm.commands.inputs import Job
from cherry_vllm.commands.score import score
from cherry_vllm.config import compose
from tests import fakes
from tests.runs import plain_answer, write_rows


def run(data: Path, model: Path, run_dir: Path, *more: str) -> pl.DataFrame:
    overrides = (f"data.path={data}", f"model.path={model}", f"run_dir={run_dir}", "shard_rows=4")
    score(compose("engine=hf", "max_length=96", *overrides, *more), Job(run_dir, is_sweep=False))
    return pl.read_parquet(run_dir / "scores.parquet")


@pytest.mark.parametrize("num_workers", [1, 3])
def test_any_number_of_workers_makes_the_same_shards(
    num_workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [plain_answer(n) for n in range(22)])
    model = fakes.write_checkpoint(tmp_path / "model")
    fakes.install(monkeypatch, fakes.InlineExecutor(num_workers))
    scores = run(data, model, tmp_path / "run")
    assert scores.height == 22
    assert scores["ifd"].is_not_null().all()
    fakes.install(monkeypatch)
    assert run(data, model, tmp_path / "again").equals(scores)


def test_other_weights_give_other_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [plain_answer(n) for n in range(5)])
    fakes.install(monkeypatch)
    runs = [
        run(data, fakes.write_checkpoint(tmp_path / name, name.encode()), tmp_path / f"run-{name}")
        for name in ("one", "two")
    ]
    assert not runs[0]["ifd"].equals(runs[1]["ifd"])
