"""Two files of answers to pairs, or one line that says what does not match."""

from pathlib import Path

import pytest

from cherry_vllm.errors import UserError
from cherry_vllm.evaluation.answers import read_pairs
from tests.judging import FIRST, SECOND


def test_answers_pair_by_id_in_the_order_of_the_first_file() -> None:
    pairs = read_pairs(FIRST, SECOND)
    assert [pair.id for pair in pairs] == ["1", "2", "m-1", "m-2", "m-3"]
    assert [pair.category for pair in pairs] == ["short", "short", "long", "long", None]
    assert pairs[2].input.startswith("It is")
    assert (pairs[4].first, pairs[4].second) == ("", "Nothing.")


GOOD = '{"id": 1, "question": "q", "answer": "a"}\n'


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (GOOD, GOOD.replace("1", "2"), ["second.jsonl", "no answer for 1 of the 1 ids"]),
        (GOOD, GOOD + GOOD.replace("1", "2"), ["first.jsonl", "(2)"]),
        (GOOD, GOOD.replace('"q"', '"r"'), ["second.jsonl", "id 1"]),
        (GOOD + "\n" + GOOD, GOOD, ["first.jsonl", "line 3", "duplicate id 1: ids must be unique"]),
        (GOOD + "{", GOOD, ["line 2", "broken JSON"]),
        (GOOD + "[]", GOOD, ["line 2", "object"]),
        (GOOD.replace('"a"', "null"), GOOD, ["line 1", "no field 'answer'"]),
        (GOOD.replace('"a"', "3"), GOOD, ["'answer' is int"]),
        (GOOD.replace("1", "true"), GOOD, ["line 1", "'id'"]),
        (GOOD.replace('"a"', '"\\ud800"'), GOOD, ["lone surrogate"]),
        ("\n", GOOD, ["first.jsonl", "no answers"]),
    ],
)
def test_answers_that_do_not_match_are_refused(
    tmp_path: Path, first: str, second: str, words: list[str]
) -> None:
    files = (tmp_path / "first.jsonl", tmp_path / "second.jsonl")
    for file, text in zip(files, (first, second), strict=True):
        file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_pairs(*files)
    assert all(word in str(error.value) for word in words)


def test_a_null_answer_without_a_reason_is_a_broken_line(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text('{"id": 1, "question": "a", "answer": null}')
    with pytest.raises(UserError, match="no field 'answer'"):
        read_pairs(file, file)
