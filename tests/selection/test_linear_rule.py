"""A linear rule: least squares on log loss, and the strategy that ranks by it."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from cherry_vllm.commands.fit import fit
from cherry_vllm.commands.job import Job
from cherry_vllm.config import compose
from cherry_vllm.errors import UserError
from cherry_vllm.selection.choice import Choice
from cherry_vllm.selection.linear_rule import LinearRule, read_subsets
from cherry_vllm.selection.linear_rule import fit as fit_rule
from cherry_vllm.selection.ranking import select_rows
from cherry_vllm.selection.run import Extras, select_records
from tests.made_up import made_up_frame, score


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
    rule = fit_rule(table, read_subsets(table), "loss")
    assert rule.weights == {"reward": pytest.approx(-2), "ifd": pytest.approx(0.25)}
    assert rule.intercept == pytest.approx(0.5)
    assert rule.r_squared == pytest.approx(1)
    assert rule.num_subsets == 40


def test_noise_lowers_r_squared(tmp_path: Path) -> None:
    subsets(noise=0.5).write_csv(tmp_path / "s.csv")
    assert 0.2 < fit_rule(tmp_path, read_subsets(tmp_path / "s.csv"), "loss").r_squared < 0.95


def test_the_fitted_strategy_ranks_by_the_lowest_predicted_loss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subsets().write_csv(tmp_path / "s.csv")
    config = compose(f"run_dir={tmp_path}", f"fit.table={tmp_path / 's.csv'}")
    outcome = fit(config, Job(tmp_path, is_sweep=False))
    assert outcome.artifact == tmp_path / "strategies" / "select" / "fitted.yaml"
    assert f"--config-dir {tmp_path / 'strategies'} select=fitted" in capsys.readouterr().out
    rank = rank_of(outcome.artifact)
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
        (lambda frame: frame.with_columns(loss=pl.lit(2.0)), "all losses are equal, so no rule"),
        (lambda frame: frame.with_columns(loss=pl.lit(math.nan)), "not finite"),
        (lambda frame: frame.with_columns(ifd=pl.lit(None, pl.Float64)), "a value is missing"),
        (lambda frame: frame.with_columns(x=pl.Series(["NA", *"12" * 19, "3"])), "column x: NA;"),
        (lambda frame: frame.with_columns(pl.col("ifd").cast(pl.String)), "column ifd: numbers as"),
        (lambda frame: frame.with_row_index(""), "a column of numbers without a name; name it"),
    ],
)
def test_a_table_that_determines_no_rule_costs_one_line(
    tmp_path: Path, change: Any, words: str
) -> None:
    table = tmp_path / "s.parquet"
    change(subsets()).write_parquet(table)
    with pytest.raises(UserError, match=words) as error:
        fit_rule(table, read_subsets(table), "loss")
    assert str(error.value).startswith(f"{table}: ")


def test_a_table_that_cannot_be_read_costs_one_line(tmp_path: Path) -> None:
    (tmp_path / "s.parquet").write_text("no")
    for name, words in {
        "s.parquet": "cannot be read",
        "none.csv": "no such file; check fit.table",
        "s.xlsx": "give a .csv or .parquet file",
    }.items():
        with pytest.raises(UserError, match=words):
            read_subsets(tmp_path / name)
    with pytest.raises(UserError, match=r"fit\.table: not given"):
        fit(compose(f"run_dir={tmp_path}"), Job(tmp_path, is_sweep=False))


# --- subsets that `select` wrote -----------------------------------------------------------------


def run(run_dir: Path, *words: str) -> Any:
    return fit(compose(f"run_dir={run_dir}", *words), Job(run_dir, is_sweep=False))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A scored run with a selection of every six rows and the losses of models trained on them."""
    score(tmp_path)
    lines = []
    for first in range(8):
        where = f"(row * 5) % 8 = {first} or row = {first + 2}"
        file = tmp_path / f"subset-{first}.json"
        select_records(tmp_path, file, Choice(where=where))
        rows = [row for row in range(19) if (row * 5) % 8 == first or row == first + 2]
        ifd = sum(0.1 + row / 20 for row in rows) / len(rows)
        odd = sum(row % 2 for row in rows) / len(rows)
        lines.append({"selection": str(file), "loss": math.exp(1 - ifd + 0.5 * odd)})
    pl.DataFrame(lines).write_csv(tmp_path / "s.csv")
    return tmp_path


def test_indicators_are_measured_over_the_rows_of_each_selection(run_dir: Path) -> None:
    outcome = run(run_dir, f"fit.table={run_dir}/s.csv", "fit.indicators=[ifd,row % 2]")
    assert outcome.facts["weights"] == {
        "ifd": pytest.approx(-1, abs=1e-4),
        "row % 2": pytest.approx(0.5, abs=1e-4),
    }
    assert choose_first(run_dir, rank_of(outcome.artifact)) == 18


def test_an_expression_with_quotes_is_a_strategy(run_dir: Path) -> None:
    odd = "case when instruction like '%' and row % 3 = 0 then 1 else 0 end"
    outcome = run(run_dir, f"fit.table={run_dir}/s.csv", f'fit.indicators=["{odd}"]')
    assert f"* ({odd})" in rank_of(outcome.artifact)
    choose_first(run_dir, rank_of(outcome.artifact))


@pytest.mark.parametrize("name", ["reward model", "reward-model", "it's: #1", 'a "b"', "x\ny"])
def test_any_name_of_a_column_is_a_strategy(tmp_path: Path, name: str) -> None:
    score(tmp_path)
    table = tmp_path / "s\nrank: ifd.parquet"
    subsets().select("loss", pl.col("reward").alias(name)).write_parquet(table)
    (tmp_path / "s.parquet").write_bytes(table.read_bytes())
    rank = rank_of(run(tmp_path, f"fit.table={tmp_path}/s.parquet").artifact)
    own = LinearRule({name: -1.0}, 0, 1, 3)
    own.write(tmp_path / "own.yaml", table, "a: b")
    assert yaml.safe_load((tmp_path / "own.yaml").read_text(encoding="utf-8"))["name"] == "a: b"
    frame = pl.DataFrame({"row": range(26), name: [float(row % 7) for row in range(26)]})
    frame.write_parquet(tmp_path / "j.parquet")
    extras = Extras(tables=[tmp_path / "j.parquet"])
    choice = Choice(rank=rank, count=1)
    selected = select_records(tmp_path, tmp_path / "first.json", choice, extras=extras)
    assert selected.facts["rows"] == "6"


def rank_of(strategy: Path) -> str:
    return str(yaml.safe_load(strategy.read_text(encoding="utf-8"))["rank"])


def choose_first(run_dir: Path, rank: str) -> int:
    selected = select_records(run_dir, run_dir / "first.json", Choice(rank=rank, count=1))
    return int(selected.facts["rows"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit.indicators=[nosuch]"], "fit.indicators=nosuch: no column nosuch; there are row"),
        (["fit.indicators=ifd +"], "fit.indicators=ifd \\+: "),
        (["fit.indicators=instruction"], "fit.indicators=instruction: String, not a number"),
        (['fit.indicators=["ifd > 0.5"]'], "fit.indicators=ifd > 0.5: Boolean, not a number"),
        (["fit.indicators=[ifd,ifd]"], "fit.indicators=ifd: given twice, or the name of fit.loss"),
        (['fit.indicators=["1 / (row - 3)"]'], "number in 1 of the subsets' rows, such as row 3;"),
        (["fit.indicators=s_ifd"], "no finite number in 4 of the subsets' rows, such as row 15; "),
        (["fit.table=none.csv", "fit.indicators=ifd"], "none.csv: no such file"),
        (["fit.loss=nll", "fit.indicators=ifd"], r"s.csv: needs the column nll"),
    ],
)
def test_indicators_that_cannot_be_measured_cost_one_line(
    run_dir: Path, words: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(run_dir, f"fit.table={run_dir}/s.csv", *words)


def test_a_selection_that_was_edited_is_refused(run_dir: Path) -> None:
    (run_dir / "subset-3.json").write_text("[]", encoding="utf-8")
    with pytest.raises(
        UserError, match=r"subset-3\.json: not what `cherry-vllm select` wrote, or edited"
    ):
        run(run_dir, f"fit.table={run_dir}/s.csv", "fit.indicators=ifd")
    subsets().write_csv(run_dir / "t.csv")
    with pytest.raises(UserError, match=r"fit\.indicators needs a column selection"):
        run(run_dir, f"fit.table={run_dir}/t.csv", "fit.indicators=ifd")
