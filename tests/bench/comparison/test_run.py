"""Whole comparisons with a tiny model: what they leave, how they resume, and what goes wrong."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import polars as pl
import pytest

from bench.comparison import stages
from bench.comparison.__main__ import main
from bench.comparison.entries import Budget, Entry, Settings
from bench.comparison.rows import RowSet
from bench.comparison.run import Comparison, Run
from cherry_vllm.store.hashes import file_sha256
from tests import fakes
from tests.conftest import ROWS

OPTIONS = ["--rows", "14", "--held-out", "4", "--fraction", "0.25"]
SETTINGS = [
    f"data.path={ROWS}",
    "engine=hf",
    "engine.dtype=float32",
    "max_length=128",
    "pre_experience.global_batch_size=2",
    "pre_experience.learning_rate=0.003",
    "pre_experience.compile_layers=false",
    "pre_experience.bf16=false",
    "pre_experience.num_probe_rows=2",
    "train.global_batch_size=2",
    "train.learning_rate=0.003",
    "train.num_epochs=1",
    "train.compile_layers=false",
    "train.bf16=false",
    "sample.num_clusters=3",
    "sample.count=6",
    "select.num_clusters=2",
]


class Killed(BaseException):
    """As a kill, nothing in the comparison catches it."""


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What was trained; all stages run in this process."""
    folders: list[str] = []
    train = stages.train

    def count(config: Any, chosen: Path, base: Any) -> Any:
        folders.append(f"{chosen.parent.parent.name}/{chosen.parent.name}")
        return train(config, chosen, base)

    monkeypatch.setattr(stages, "train", count)
    with fakes.stages_in_this_process("bench.comparison.stages"):
        yield folders


@pytest.mark.engine
@pytest.mark.slow
def test_an_interrupted_comparison_goes_on_and_a_failure_costs_one_strategy_only(
    tiny: Path,
    tmp_path: Path,
    trained: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    strategies = ["cherry", "balanced", "rating", "cherry:tokens", "--without-experience"]
    shared = [*OPTIONS, "--run-dir", str(tmp_path / "run"), "--other", str(ROWS)]
    shared += [*SETTINGS, f"model.path={tiny}"]
    words = [*shared, "--strategies", *strategies]
    measure, calls = stages.measure, 0

    def die(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:  # the base model, the pre-experienced one, random rows, then these
            raise Killed
        return measure(*arguments, **keywords)

    monkeypatch.setattr(stages, "measure", die)
    with pytest.raises(Killed):
        main([*words, "--seeds", "0"])
    capsys.readouterr()
    assert main([*words, "--seeds", "0"]) == 2  # no ratings
    names = ["random", "random-by-tokens", "cherry", "balanced", "cherry-without-experience"]
    trained_once = list(dict.fromkeys(trained))
    assert set(trained_once) <= {f"seed-0/{name}" for name in names}
    assert len(trained) == len(trained_once) + 1  # the one that was killed
    shown = capsys.readouterr().out
    assert shown.count("seed 0, rating: failed: ") == 1
    assert not list((tmp_path / "run" / "run" / "models").glob("cherry-*"))
    numbers = json.loads((tmp_path / "run" / "comparison.json").read_text())
    held = {model["name"]: model for model in numbers["models"]}
    assert list(held) == [
        "base",
        "pre-experienced",
        "random",
        "random by tokens",
        "cherry",
        "balanced",
        "cherry by tokens",
        "cherry without experience",
    ]
    assert held["cherry"]["num_rows"] == held["random"]["num_rows"] == 3
    assert held["cherry by tokens"]["losses"] != {}
    assert "the same (Jaccard" in (tmp_path / "run" / "comparison.md").read_text()
    rows = pl.read_parquet(tmp_path / "run" / "rows.parquet")
    loss = rows.group_by("model", "set").agg(
        pl.col("nll").sum() / pl.col("num_answer_tokens").sum()
    )
    for model, name, value in loss.iter_rows():
        assert value == pytest.approx(held[model]["losses"][name]["mean"])
    before = len(trained)
    assert main([*shared, "--strategies", "cherry", "--seeds", "0", "1"]) == 0
    assert trained[before:] == ["seed-1/random", "seed-1/cherry"]
    assert (tmp_path / "run" / "comparison.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--strategies", "nosuch"], "select=nosuch: no such option; choose from balanced"),
        (["--strategies", "cherry:epochs"], "--strategies cherry:epochs: give cherry:rows or"),
        (["--budgets", "epochs"], "argument --budgets: invalid choice: 'epochs'"),
        (["--fraction", "2"], "--fraction=2.0: give a number above 0 and up to 1"),
        (["--fraction", "0.01"], "--fraction 0.01: chooses none of --rows 14"),
        (["--rows", "99"], "--rows 99: "),
        (["--rows", "0"], "--rows=0: give a whole number of at least 1"),
        (["--tokens-of", "nosuch", "--budgets", "tokens"], "select=nosuch: no such option"),
        (["--tokens-of", "0"], "--tokens-of=0: give a whole number of at least 1"),
        (["--nosuch"], "unrecognized arguments: --nosuch"),
        (["select.count=3"], "select.count=3: give --fraction instead"),
        (["select=longest"], "select=longest: give --strategies instead"),
        (["sample=none", "--without-experience"], "--without-experience: sample=none has none"),
        (["engine=vllm_server"], "only `score` and `generate` can ask servers"),
        (["data.path=nosuch.json"], "nosuch.json"),
        (["nosuch=1"], "nosuch: no such key"),
    ],
)
def test_mistakes_are_one_line_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    base = fakes.write_checkpoint(tmp_path / "base")
    given = [f"data.path={ROWS}", f"model.path={base}", "max_length=128", *words]
    assert main([*OPTIONS, "--run-dir", str(tmp_path / "run"), *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("comparison: ")
    assert message in line


def test_files_that_no_comparison_left_are_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "pool.jsonl"  # a name that a comparison gives to a file of its own
    data.write_bytes(ROWS.read_bytes())
    base = fakes.write_checkpoint(tmp_path.parent / f"{tmp_path.name}-base")
    words = ["--run-dir", str(tmp_path), f"data.path={data}", f"model.path={base}"]
    assert main([*OPTIONS, *words]) == 2
    assert f"--run-dir {tmp_path}: holds pool.jsonl, not from" in capsys.readouterr().err
    assert data.read_bytes() == ROWS.read_bytes()


def test_a_choice_by_a_table_that_changed_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, chosen = tmp_path / "t.parquet", list[str]()
    entry = Entry("cherry", Budget.ROWS)

    def choose(*_arguments: Any) -> dict[str, Any]:
        chosen.append(table.read_text())
        counts = {"num_selected": 1, "num_answer_tokens": 1}
        return {"rows": "0", "tables": {str(table): file_sha256(table)}, **counts}

    monkeypatch.setattr(stages, "choose", choose)
    monkeypatch.setattr(stages, "score", lambda *_arguments: (None, None))
    comparison = Comparison(
        settings=Settings(["sample=none"], tmp_path / "run"),
        entries=[entry],
        seeds=[0],
        pool=RowSet("pool", ["{}"]),
        sets=[],
        base=cast(Any, SimpleNamespace(fingerprint="base")),
        count=1,
        tokens_of=1,
        keep_models=False,
    )
    for content in ("one", "one", "two"):
        table.write_text(content)
        Run(comparison, tmp_path, lambda _line: None)._choose(entry, 0)
    assert chosen == ["one", "two"]


@pytest.mark.slow
def test_a_folder_holds_one_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_arguments: Any, **_keywords: Any) -> Any:
        raise Killed

    monkeypatch.setattr(stages, "measure", die)
    base = fakes.write_checkpoint(tmp_path / "base")
    words = ["--run-dir", str(tmp_path / "run"), f"data.path={ROWS}", f"model.path={base}"]
    with pytest.raises(Killed):
        main([*OPTIONS, *words])
    assert main([*OPTIONS, *words, "--rows", "13"]) == 2
    assert "compares other rows, or another model; choose" in capsys.readouterr().err
