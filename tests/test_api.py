"""The Python functions, on a real engine and on the fake one."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

import cherry_vllm
from cherry_vllm.errors import UserError
from tests.fakes import install, write_checkpoint

RECORDS = [
    {"instruction": f"Name {number} fruits.", "output": "A cherry, " * (number + 1)}
    for number in range(8)
]


@pytest.fixture
def scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pl.DataFrame:
    install(monkeypatch)
    model = write_checkpoint(tmp_path / "model")
    return cherry_vllm.score(RECORDS, model, "max_length=128", "engine=hf")


def test_records_become_one_line_each(scores: pl.DataFrame) -> None:
    assert scores["row"].to_list() == list(range(8))
    assert scores["ifd"].null_count() == 0


def test_a_path_scores_as_its_records_do(
    scores: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch)
    path, model = tmp_path / "rows.parquet", write_checkpoint(tmp_path / "model")
    pl.DataFrame(RECORDS).write_parquet(path)
    again = cherry_vllm.score(path, model, "max_length=128", "engine=hf", run_dir=tmp_path / "run")
    assert again.equals(scores)
    assert (tmp_path / "run" / "scores.parquet").is_file()


def test_a_selection_holds_the_highest_ifd(scores: pl.DataFrame) -> None:
    usable = scores.filter(pl.col("drop_reason").is_null())
    chosen = cherry_vllm.select(scores, count=3)
    assert set(chosen["row"]) == set(usable.sort("ifd", descending=True)["row"][:3])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "best", "count": 1}, "choose from balanced, cherry"),
        ({}, "select.fraction: not given"),
    ],
)
def test_a_mistake_is_one_line(
    scores: pl.DataFrame, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        cherry_vllm.select(scores, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        (RECORDS, ["engine=foo"], "engine=foo: no such option; choose from"),
        (RECORDS, ["foo=1"], "foo: no such key"),
        (RECORDS, ["engine=vllm_eager"], "has a new name; write engine=vllm_fused_eager"),
        (RECORDS, ["max_length=0"], "max_length=0: give a whole number"),
        (RECORDS, ["engine=hf", "run_dir=mine"], "run_dir=mine: give it as the argument run_dir"),
        (RECORDS, ["scores_dir=mine"], "give it as the argument run_dir"),
        (RECORDS, ["share.count=2"], "score\\(\\) scores all rows"),
        ([], [], "data: no records"),
        (RECORDS[0], [], "data: dict; give a path, a list of records"),
        (None, [], "data: NoneType"),
        ([RECORDS[0], "text"], [], "record 1: str; give a mapping"),
        ([{"instruction": b"bytes"}], [], "record 0: Object of type bytes"),
    ],
)
def test_what_cannot_be_scored_is_one_line(
    data: Any, settings: list[str], message: str, tmp_path: Path
) -> None:
    model = write_checkpoint(tmp_path / "model")
    with pytest.raises(cherry_vllm.UserError, match=message) as raised:
        cherry_vllm.score(data, model, *settings)
    assert "\n" not in str(raised.value)


def test_a_selection_reads_no_run(scores: pl.DataFrame) -> None:
    with pytest.raises(UserError, match="run_dir=mine: select\\(\\) reads nothing but the frame"):
        cherry_vllm.select(scores, "run_dir=mine", count=1)


@pytest.mark.parametrize("scores", [[1, 2], "runs/alpaca", pl.DataFrame({"row": [0]})])
def test_only_scores_can_be_selected_from(scores: Any) -> None:
    with pytest.raises(UserError, match="give the frame that score"):
        cherry_vllm.select(scores, count=1)


@pytest.mark.slow
def test_a_frame_and_odd_text_are_scored_as_records(
    scores: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch)
    model = write_checkpoint(tmp_path / "model")
    again = cherry_vllm.score(pl.DataFrame(RECORDS), model, "max_length=128", "engine=hf")
    assert again.equals(scores)
    odd = [*RECORDS, {"instruction": "Say it.", "output": "half a \ud83d pair"}]
    found = cherry_vllm.score(odd, model, "max_length=128", "engine=hf")
    assert found["drop_reason"][8] == "malformed"


@pytest.mark.engine
def test_records_are_scored_by_a_real_engine(tiny: Path) -> None:
    scores = cherry_vllm.score(RECORDS, tiny, "max_length=128", "engine=hf")
    assert scores["conditioned_score"].is_between(0, 20).all()
    assert cherry_vllm.select(scores, fraction=1.0).height == scores["drop_reason"].null_count()
