"""Test sets to questions: five published sets, a user's own, and broken ones."""

import json
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cherry_vllm import config
from cherry_vllm.errors import UserError
from cherry_vllm.evaluation.testsets import QuestionColumns, read_questions
from tests.conftest import SHARED

# One record of each published set, as it is published.
PUBLISHED: dict[str, tuple[dict[str, Any], tuple[str, str | None, str, str]]] = {
    "vicuna": (
        {"question_id": 7, "text": "Why?", "category": "generic"},
        ("7", "generic", "Why?", ""),
    ),
    "koala": ({"id": "koala_3", "prompt": "How?"}, ("koala_3", None, "How?", "")),
    "wizardlm": (
        {"idx": 2, "Skill": "Math", "Difficulty": 1, "Instruction": "Add."},
        ("2", "Math", "Add.", ""),
    ),
    "sinstruct": (
        {
            "id": "user_oriented_task_0",
            "motivation_app": "Mail",
            "instruction": "Shorten.",
            "instances": [{"input": "Far too long.", "output": "Long."}],
        },
        ("user_oriented_task_0", "Mail", "Shorten.", "Far too long."),
    ),
    "lima": ({"conversations": ["Plan a trip."], "source": "x"}, ("0", None, "Plan a trip.", "")),
    "file": ({"id": "a", "question": "Who?", "input": None}, ("a", None, "Who?", "")),
}
REAL = {"vicuna": 80, "koala": 180, "wizardlm": 218, "sinstruct": 252, "lima": 300}


@cache
def shipped(testset: str) -> config.TestsetConfig:
    return config.compose(f"testset={testset}").testset


def read(file: Path, testset: str = "file") -> pl.DataFrame:
    settings = shipped(testset)
    columns = QuestionColumns(**asdict(settings.columns))
    return read_questions(file, name=settings.name, columns=columns)


@pytest.mark.parametrize("testset", list(PUBLISHED))
@pytest.mark.parametrize("shape", ["{}", "[{}]"])
def test_a_published_record_is_read_by_its_own_field_names(
    tmp_path: Path, testset: str, shape: str
) -> None:
    record, expected = PUBLISHED[testset]
    file = tmp_path / "questions.json"
    file.write_text(shape.replace("{}", json.dumps(record)))
    (line,) = read(file, testset).iter_rows()
    name = "questions" if testset == "file" else testset
    assert line == (0, name, *expected, None)


@pytest.mark.parametrize("testset", list(REAL))
def test_the_real_sets_are_read_whole(testset: str) -> None:
    file = SHARED / "judge" / f"{testset}_test_set.jsonl"
    if not file.is_file():
        pytest.skip("needs the five published test sets, which are not part of the project")
    questions = read(file, testset)
    assert questions.height == questions["id"].n_unique() == REAL[testset]
    assert (questions["input"] != "").sum() == (208 if testset == "sinstruct" else 0)
    has_category = testset in ("vicuna", "wizardlm", "sinstruct")
    assert questions["category"].null_count() == (0 if has_category else REAL[testset])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["no questions", "testset.path"]),
        ('{"id": 1, "question": "a"}\n{"id": 2', ["line 2", "broken JSON"]),
        ('[{"id": 1, "question": "a"}, 7]', ["record 1", "not a JSON object"]),
        ("[7", ["broken JSON"]),
        ('{"id": 1, "text": "a"}', ["line 1", "'question'", "testset.columns"]),
        ('{"id": 1, "question": " "}', ["line 1", "blank"]),
        ('{"id": 1, "question": ["a", "b"]}', ["line 1", "list"]),
        ('{"id": 1, "question": "\\ud800"}', ["line 1", "surrogate"]),
        ('{"id": true, "question": "a"}', ["line 1", "'id'"]),
        ('{"id": 1, "question": "a", "input": {}}', ["line 1", "'input'"]),
        (
            '{"id": 1, "question": "a"}\n\n{"id": "1", "question": "b"}',
            ["line 3", "duplicate id 1: ids must be unique"],
        ),
    ],
)
def test_a_broken_test_set_costs_one_line(tmp_path: Path, content: str, words: list[str]) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(content)
    with pytest.raises(UserError) as error:
        read(file)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in [str(file), *words])


def test_an_input_column_that_was_named_and_is_nowhere_is_a_mistake(tmp_path: Path) -> None:
    file = tmp_path / "set.jsonl"
    file.write_text('{"question": "Which city?", "context": "On the Aare."}\n', encoding="utf-8")
    named = QuestionColumns(id=None, question="question", input="contxt", category=None)
    with pytest.raises(UserError, match=r"testset\.columns\.input=contxt: no question has"):
        read_questions(file, name=None, columns=named)
    for name, text in (("context", "On the Aare."), ("input", "")):
        questions = read_questions(file, name=None, columns=named._replace(input=name))
        assert questions["input"].to_list() == [text]
