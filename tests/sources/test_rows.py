"""Batches of rows, and the filter of refusals."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from cherry_vllm.config import compose
from cherry_vllm.sources import read_rows
from tests.sources.samples import (
    ALPACA,
    REPOSITORY,
    file_of,
    rows_of,
    shards_of_twelve_rows,
    with_texts,
)


@pytest.mark.parametrize(
    ("max_rows", "heights"), [(1, [1]), (5, [5]), (7, [5, 2]), (99, [5, 5, 2])]
)
def test_only_the_first_rows_are_read_if_so_asked(
    tmp_path: Path, max_rows: int, heights: list[int]
) -> None:
    frames = list(
        read_rows(
            shards_of_twelve_rows(tmp_path),
            columns=ALPACA,
            refusals=[],
            max_rows=max_rows,
            batch_rows=5,
        )
    )
    assert [frame.height for frame in frames] == heights
    assert pl.concat(frames)["row"].to_list() == list(range(sum(heights)))


@pytest.mark.parametrize(
    ("batch_rows", "heights"),
    [
        (1, [1] * 12),
        (3, [3, 3, 3, 3]),
        (4, [4, 4, 4]),
        (5, [5, 5, 2]),
        (7, [7, 5]),
        (11, [11, 1]),
        (12, [12]),
        (13, [12]),
        (1000, [12]),
    ],
)
def test_every_batch_but_the_last_is_full_and_the_rows_do_not_depend_on_it(
    tmp_path: Path, batch_rows: int, heights: list[int]
) -> None:
    files = shards_of_twelve_rows(tmp_path)
    frames = list(read_rows(files, columns=ALPACA, refusals=[], batch_rows=batch_rows))
    assert [frame.height for frame in frames] == heights
    rows = with_texts(pl.concat(frames))
    assert rows["row"].to_list() == list(range(12))
    answers = [str(i) for i in range(12)]
    answers[7] = ""
    assert rows["answer"].to_list() == answers
    assert rows["drop_reason"].to_list() == [None] * 7 + ["empty_answer"] + [None] * 4
    assert_frame_equal(rows.drop("record"), rows_of(*files, batch_rows=100).drop("record"))


@pytest.mark.parametrize("name", ["d.parquet", "d.csv", "d.jsonl"])
def test_a_table_of_many_batches_keeps_its_order(tmp_path: Path, name: str) -> None:
    samples = [{"instruction": f"{i}?", "output": str(i)} for i in range(5_000)]
    rows = rows_of(file_of(tmp_path, name, samples), batch_rows=64)
    assert rows["answer"].to_list() == [str(i) for i in range(5_000)]
    assert rows["row"].to_list() == list(range(5_000))


@cache
def wizardlm_phrases() -> list[str]:
    return compose("refusals=wizardlm").refusals.phrases


def refused(
    folder: Path, answers: list[str], phrases: Sequence[str], name: str = "d.jsonl", **rest: Any
) -> list[bool]:
    samples = [{"instruction": "i", "output": answer, **rest} for answer in answers]
    rows = rows_of(file_of(folder, name, samples), refusals=phrases)
    assert rows["answer"].to_list() == answers
    assert set(rows["drop_reason"]) <= {None, "refusal"}
    return (rows["drop_reason"] == "refusal").fill_null(value=False).to_list()


@pytest.mark.parametrize("name", ["d.jsonl", "d.parquet", "d.csv"])
def test_a_phrase_is_a_substring_in_any_case(tmp_path: Path, name: str) -> None:
    answers = ["As An AI", "it has an aim", "Well, as an ai, no.", "as a n ai", "ÇA NON", "fine"]
    found = refused(tmp_path, answers, ["as an AI", "ça non"], name)
    assert found == [True, True, True, False, True, False]


def test_a_phrase_is_text_and_no_pattern(tmp_path: Path) -> None:
    answers = ["really? (yes)", "really (yes", "reall", "a.c", "abc"]
    found = refused(tmp_path, answers, ["really?", "(yes)", "a.c"])
    assert found == [True, False, False, True, False]


def test_only_the_answer_is_a_refusal(tmp_path: Path) -> None:
    assert refused(tmp_path, ["fine"], ["sorry"], input="sorry", note="sorry") == [False]


def test_without_phrases_nothing_is_a_refusal(tmp_path: Path) -> None:
    assert refused(tmp_path, ["I'm sorry, as an AI"], []) == [False]


@pytest.mark.parametrize(
    "answer",
    [
        "As an AI language model, I cannot",
        "Lo siento, pero no puedo",
        "LO SIENTO, PERO NO PUEDO",
        "Desculpe-me, mas a linguagem vulgar e ofensiva não é",
        "Sorry. I Cannot fulfill your request.",
        "First of all: it is not appropriate to do so.",
        "lamento no poder proporcionarte el CÓDIGO",
    ],
)
def test_the_phrases_of_the_paper_catch_refusals(tmp_path: Path, answer: str) -> None:
    assert refused(tmp_path, [answer], wizardlm_phrases()) == [True]


@pytest.mark.parametrize(
    "answer",
    [
        "The capital of France is Paris.",
        "1. Eat well\n2. Sleep\n3. Exercise",
        "def add(a, b):\n    return a + b",
        "Gracias, puedo hacerlo mañana.",
    ],
)
def test_the_phrases_of_the_paper_pass_ordinary_answers(tmp_path: Path, answer: str) -> None:
    assert refused(tmp_path, [answer], wizardlm_phrases()) == [False]


def test_real_refusals_are_found() -> None:
    path = REPOSITORY.parent / "shared" / "data" / "refusals_1200.jsonl"
    if not path.is_file():
        pytest.skip(f"{path.name} is not beside this checkout")
    rows = rows_of(path, refusals=wizardlm_phrases(), batch_rows=500)
    lines = path.read_text(encoding="utf-8").split("\n")
    answers = [json.loads(line)["output"] for line in lines if line]
    assert rows["answer"].to_list() == answers
    refusals = [
        row for row, text in enumerate(answers) if "as an ai language model" in text.lower()
    ]
    assert len(refusals) > 500
    assert set(rows["drop_reason"].gather(refusals)) == {"refusal"}
    assert rows["drop_reason"].null_count() > 0
