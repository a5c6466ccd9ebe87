"""What a selection says of itself, and the scores that it writes into rows."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cherry_vllm.commands.summary import show_choice
from cherry_vllm.errors import UserError
from cherry_vllm.selection.choice import Choice
from cherry_vllm.selection.chosen_rows import decode_rows, encode_rows
from cherry_vllm.selection.explanation import explain
from cherry_vllm.selection.export import add_scores
from cherry_vllm.selection.ranking import choose
from cherry_vllm.selection.run import Extras, select_records
from cherry_vllm.store.scores import open_scores
from tests.made_up import made_up_frame, score


@given(st.sets(st.integers(0, 60), min_size=1))
def test_row_numbers_come_back(rows: set[int]) -> None:
    assert decode_rows(encode_rows(rows)) == sorted(rows)


def test_runs_of_rows_are_short() -> None:
    assert encode_rows([7, 2, 0, 1, 3, 9]) == "0-3 7 9"


def test_pool_and_choice_are_counted_and_measured() -> None:
    choice = Choice(where="ifd > 0.3", strata=("rating",), bins=3, count=50)
    found = choose(made_up_frame(), choice)
    facts = explain(found)
    pool = made_up_frame().filter(pl.col("drop_reason").is_null(), pl.col("ifd") > 0.3)
    tokens = pool["num_answer_tokens"]
    assert facts["lengths"]["pool"] == {
        "rows": pool.height,
        "answer_tokens": tokens.sum(),
        "quartiles": [tokens.quantile(q, "linear") for q in (0.25, 0.5, 0.75)],
    }
    assert facts["lengths"]["selected"]["rows"] == facts["steps"]["selected"] == 50
    assert facts["steps"]["where"] == pool.height
    assert sum(share["selected"] for share in facts["shares"].values()) == 50
    assert sum(share["pool"] for share in facts["shares"].values()) == pool.height
    assert json.loads(json.dumps(facts)) == facts


def test_the_terminal_shows_steps_lengths_and_shares() -> None:
    choice = Choice(strata=("cast(row % 25 as varchar)",), quota="equal", count=280)
    shown = show_choice(explain(choose(made_up_frame(), choice)))
    lines = {" ".join(line.split()) for line in shown.splitlines()}
    assert "rows left after each step" not in lines  # read, usable, selected: the summary has them
    assert any(line.startswith("selected 280 ") for line in lines)
    assert "and 6 more, in the .meta.json" in lines or "and 5 more, in the .meta.json" in lines
    assert any("strata are too small, and gave their places to the others" in x for x in lines)
    everything = Choice(strata=("row % 2",), num_tokens=10**9)
    shown = show_choice(explain(choose(made_up_frame(), everything)))
    assert "2 of 2 strata are too small, and are taken whole: 0, 1" in shown
    plain = show_choice(explain(choose(made_up_frame(), Choice(count=3))))
    assert "stratum" not in plain
    narrowed = show_choice(explain(choose(made_up_frame(), Choice(count=3, where="ifd > 0.5"))))
    assert [" ".join(line.split()) for line in narrowed.splitlines()[:2]] == [
        "rows left after each step",
        "usable 296",
    ]


# --- scores in the rows ------------------------------------------------------------------------


@pytest.mark.parametrize("record", ['{"a": 88.40,  "b": {}}', "{}", '{"a": "}"} '])
def test_a_record_keeps_its_text_and_gains_its_scores(record: str) -> None:
    rows = made_up_frame(3).tail(1)
    (found,) = add_scores(pl.Series([record]), rows)
    assert found.startswith(record.rstrip()[:-1])
    held = json.loads(found)
    assert held.pop("scores") == rows.drop("drop_reason").row(0, named=True)
    assert held == json.loads(record)


def test_a_record_with_scores_of_its_own_is_refused() -> None:
    with pytest.raises(UserError, match=r"select\.with_scores: row 2 has a field 'scores'"):
        add_scores(pl.Series(['{"scores": 1}']), made_up_frame(3).tail(1))


@pytest.mark.parametrize("output", ["c.jsonl", "c.json", "c.parquet", "c"])
def test_rows_in_every_format_hold_their_scores(tmp_path: Path, output: str) -> None:
    score(tmp_path)
    extras = Extras(with_scores=True)
    choice = Choice(rank="-ifd + 0 * length(record.output)", count=4)
    path = select_records(tmp_path, tmp_path / output, choice, extras=extras).path
    readers: dict[str, Any] = {".jsonl": pl.read_ndjson, ".json": pl.read_json}
    held = readers.get(path.suffix, pl.read_parquet)(path)["scores"].struct.unnest()
    lines = open_scores(tmp_path).frame.filter(pl.col("row").is_in(held["row"].to_list()))
    assert held["ifd"].to_list() == lines["ifd"].to_list()
    assert held["rank_value"].to_list() == [-ifd for ifd in held["ifd"]]
    assert "record.output" not in held.columns
