"""A linear rule: least squares on log loss, and the strategy that ranks by it."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from cherry_vllm.commands.fit import fit
from cherry_vllm.commands.inputs import Job
from cherry_vllm.config import compose
from cherry_vllm.errors import UserError
from cherry_vllm.selection.choice import Choice
from cherry_vllm.selection.linear_rule import fit as fit_rule
from cherry_vllm.selection.ranking import select_rows
from tests.made_up import made_up_frame


def subsets(number: int = 40, noise: float = 0.0) -> pl.DataFrame:
    """Losses of a known rule: log loss = 0.5 - 2 reward + 0.25 ifd."""
    generator = np.random.default_rng(0)
    reward, ifd = generator.random((2, number))
    loss = np.exp(0.5 - 2 * reward + 0.25 * ifd + noise * generator.normal(size=number))
    names = [f"subset {n}" for n in range(number)]
    return pl.DataFrame({"name": names, "reward": reward, "ifd": ifd, "loss": loss})


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_known_rule_comes_back(tmp_path: Path, suffix: str) -> None:
    table = tmp_path / f"subsets{suffix}"
    frame = subsets()
    frame.write_csv(table) if suffix == ".csv" else frame.write_parquet(table)
    rule = fit_rule(table, "loss")
    assert rule.weights == {"reward": pytest.approx(-2), "ifd": pytest.approx(0.25)}
    assert rule.intercept == pytest.approx(0.5)
    assert rule.r_squared == pytest.approx(1)
    assert rule.num_subsets == 40


def test_noise_lowers_r_squared(tmp_path: Path) -> None:
    subsets(noise=0.5).write_csv(tmp_path / "s.csv")
    assert 0.2 < fit_rule(tmp_path / "s.csv", "loss").r_squared < 0.95


def test_the_fitted_strategy_ranks_by_the_lowest_predicted_loss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subsets().write_csv(tmp_path / "s.csv")
    config = compose(f"run_dir={tmp_path}", f"fit.table={tmp_path / 's.csv'}")
    outcome = fit(config, Job(tmp_path, is_sweep=False))
    assert outcome.artifact == tmp_path / "strategies" / "select" / "fitted.yaml"
    assert f"--config-dir {tmp_path / 'strategies'} select=fitted" in capsys.readouterr().out
    text = outcome.artifact.read_text(encoding="utf-8")
    rank = text.partition("rank: ")[2].strip().strip("'")
    frame = made_up_frame().with_columns(reward=pl.col("row") * 7 % 100 / 100)
    chosen = select_rows(frame, Choice(rank=rank, count=20))
    predicted = frame.filter(pl.col("drop_reason").is_null()).with_columns(
        loss=-2 * pl.col("reward") + 0.25 * pl.col("ifd")
    )
    expected = predicted.sort("loss").head(20)["row"].sort()
    assert chosen["row"].to_list() == expected.to_list()
    fit(config, Job(tmp_path, is_sweep=False))  # replaces its own


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda frame: frame.drop("loss"), r"needs the column loss \(fit\.loss\)"),
        (lambda frame: frame.select("name", "loss"), "and columns of indicators"),
        (lambda frame: frame.head(2), "2 subsets do not determine 2 weights and an intercept"),
        (lambda frame: frame.with_columns(x=2 * pl.col("ifd")), "indicators that follow from oth"),
        (lambda frame: frame.with_columns(loss=-pl.col("loss")), "a loss is not above 0"),
        (lambda frame: frame.with_columns(loss=pl.lit(math.nan)), "not finite"),
        (lambda frame: frame.with_columns(ifd=pl.lit(None, pl.Float64)), "a value is missing"),
    ],
)
def test_a_table_that_determines_no_rule_costs_one_line(
    tmp_path: Path, change: Any, words: str
) -> None:
    table = tmp_path / "s.parquet"
    change(subsets()).write_parquet(table)
    with pytest.raises(UserError, match=words) as error:
        fit_rule(table, "loss")
    assert str(error.value).startswith(f"{table}: ")


def test_a_table_that_cannot_be_read_costs_one_line(tmp_path: Path) -> None:
    (tmp_path / "s.parquet").write_text("no")
    for name, words in {
        "s.parquet": "cannot be read",
        "none.csv": "no such file; check fit.table",
        "s.xlsx": "give a .csv or .parquet file",
    }.items():
        with pytest.raises(UserError, match=words):
            fit_rule(tmp_path / name, "loss")
    with pytest.raises(UserError, match=r"fit\.table: not given"):
        fit(compose(f"run_dir={tmp_path}"), Job(tmp_path, is_sweep=False))
