"""The parser: JSON, the form that the prompt asks for, and nothing that merely looks like one."""

import ast
import json
from itertools import product
from pathlib import Path

import pytest

from cherry_vllm.evaluation.parsing import parse_aspects, parse_rating, parse_scores
from tests.conftest import SHARED

RECORDED = [
    f"{name}.json"
    for name in (
        "vicuna_wrap_reviews_gpt4",
        "wizardlm_wrap_reviews_gpt4",
        "sinstruct_wrap_reviews_gpt4",
        "vicuna_wrap_reviews_gpt3.5",
    )
]

READ = [
    "8 9",
    "8,9",
    "8.0, 9.0",
    "8 9   ",
    "\n\n8 9\r\nBoth are good.",
    "**8 9**",
    "### 8 9",
    "Scores: 8 9",
    "**Overall scores:** 8, 9",
    "I compared both.\nIn detail.\n\nFinal scores: 8 9",
    "My first guess:\n3 4\n\nFinal scores: 8 9",
    "8 9\nAssistant 1: 3\nAssistant 2: 4\nScores: 8 9",
    "8 9\nScore: 8\nScore: 9",  # one number each: of one assistant
    "<think>\nA first guess: 3 4\n3 4\n</think>\n\n8 9",
    '{"assistant_1": 8, "assistant_2": 9, "explanation": "Scores: 3 4"}',
    '{"assistant_2": 9.0,\n"assistant_1": 8}',
    '```json\n{"assistant_1": 8, "assistant_2": 9}\n```',
    '<think>{"assistant_1": 1}</think>{"assistant_1": 8, "assistant_2": 9}',
]

NOT_READ = [
    "",
    "I cannot judge this.",
    "8",
    "8\n9",
    "8/9",
    "8-9",
    "-8 9",
    "8 9 7",
    "8,5 9,0",  # decimals with a comma, or four numbers
    "80 90",
    "8 11",
    "4/5 3/5",  # another scale
    "8 9 points each",
    "1. 8 9",
    "Here is a guess:\n8 9",
    "In 2 of 3 cases",
    "Both name 8, 9 or 10 fruits.",
    "<think>\n8 9\nor rather",
    "Assistant 1: 8\nAssistant 2: 9",
    "11 8\n3 4",  # an impossible pair is not passed over for a later one
    "11 8\nScores: 3 4",
    "Scores: 11 8\nFinal scores: 3 4",
    "3 4\nFinal scores: 8 9",  # two verdicts are none
    '{"assistant_1": 8}',
    '{"assistant_1": 11, "assistant_2": 9}',
    '{"assistant_1": "8", "assistant_2": 9}',
    '{"assistant_1": true, "assistant_2": 9}',
    '{"assistant_1": NaN, "assistant_2": 9}',
    '{"assistant_1": 3, "assistant_1": 8, "assistant_2": 9}',
    '[{"assistant_1": 8, "assistant_2": 9}]',
    '{"assistant_1": 8, "assistant_2": 9',
    "{" * 5_000,
]


@pytest.mark.parametrize("reply", READ)
def test_two_scores_that_are_clearly_stated_are_read(reply: str) -> None:
    assert parse_scores(reply) == (8, 9)


@pytest.mark.parametrize("reply", NOT_READ)
def test_what_does_not_clearly_state_two_scores_has_none(reply: str) -> None:
    assert parse_scores(reply) is None


def test_every_combination_of_scores_is_read_in_both_forms() -> None:
    halves = [number / 2 for number in range(21)]
    for scores in product(halves, halves):
        first, second = scores
        as_json = json.dumps({"assistant_1": first, "assistant_2": second, "explanation": "x"})
        assert parse_scores(f"{first:g} {second:g}\nx") == parse_scores(as_json) == scores


def test_a_reply_cut_at_the_token_limit_may_have_lost_a_digit() -> None:
    assert parse_scores("8 1", is_whole=False) is None
    assert parse_scores("8 10\nBoth are", is_whole=False) == (8, 10)
    assert parse_scores("In short.\nScores: 8 1", is_whole=False) is None
    whole = '{"assistant_1": 8, "assistant_2": 10, "explanation": "Both are'
    after_the_scores = whole.index("expl")
    for end in range(len(whole) + 1):
        found = parse_scores(whole[:end], is_whole=False)
        assert found == ((8, 10) if end > after_the_scores + len('explanation": ') else None)


@pytest.mark.parametrize("name", RECORDED)
def test_every_recorded_reply_is_read_as_the_reference_read_it(name: str) -> None:
    """The reference's narrow parser takes a miss for a draw, but it missed nothing here."""
    file = Path(SHARED) / "judge" / name
    if not file.is_file():
        pytest.skip("needs the paper's recorded reviews, which are not part of the project")
    for record in json.loads(file.read_text(encoding="utf-8"))["data"]:
        for kind in ("", "_reverse"):
            reply = record["review" + kind]
            scores = tuple(ast.literal_eval(record["scores" + kind]))
            assert parse_scores(reply) == scores
            # The explanation and the answers are full of numbers, none of which is a score.
            assert parse_scores(reply.partition("\n")[2]) is None
            assert parse_scores(record["Answer1"]) is parse_scores(record["Answer2"]) is None


@pytest.mark.parametrize(
    "reply",
    [
        "4.5",
        "4.5\nGood, with 2 slips.",
        "**Score: 4.5**",
        "It answers.\n\nIn 3 ways.\n\nRating: 4.5",
        "<think>2</think>\n4.5\nScore: 4.5",
        '{"score": 4.5, "explanation": "Good."}',
    ],
)
def test_a_rating_that_is_clearly_stated_is_read(reply: str) -> None:
    assert parse_rating(reply) == 4.5


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "6",
        "45",
        "4 5",
        "4/10",
        "Because of 2 slips.",
        "It answers.\n4",
        "Score: 4\nScore: 5",
        "6\nScore: 4",
        "I think 4",
        '{"score": 6}',
        '{"rating": 4}',
    ],
)
def test_what_does_not_clearly_state_a_rating_has_none(reply: str) -> None:
    assert parse_rating(reply) is None
    assert parse_rating("4", is_whole=False) is None


@pytest.mark.parametrize(
    "reply",
    [
        "Scope: 3\nDepth: 8.5",
        "**Scope**: 3\n**Depth:** 8.5",
        "Here are my ratings:\n\nscope: 3\ndepth: 8.5",
        "<think>\nScope: 9\n</think>\nScope: 3\nDepth: 8.5",
        "Depth: 8.5\nScope: 3\nScope: 3",
        '{"Scope": 3, "Depth": 8.5}',
    ],
)
def test_the_rating_of_an_aspect_stands_behind_its_name(reply: str) -> None:
    assert parse_aspects(reply, ["Scope", "Depth"]) == [3, 8.5]


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "Scope: 3",
        "Scope: 3\nDepth:",
        "Scope: 3\nDepth: high",
        "Scope: 3\nDepth: 11",
        "Scope: 3\nScope: 4\nDepth: 8",
        "Scope: 3\nDepth: 8 steps",
        "Scope: 3\nThe Depth: 8",
        "3\n8",
        '{"Scope": 3, "Depth": 11}',
        '{"Scope": 3}',
    ],
)
def test_an_aspect_that_is_missing_or_unclear_leaves_no_rating(reply: str) -> None:
    assert parse_aspects(reply, ["Scope", "Depth"]) is None


def test_a_reply_cut_after_its_explanation_has_its_scores() -> None:
    whole = '{"assistant_1": 7, "assistant_2": 10, "explanation": "good"}'
    assert parse_scores(whole[:-1], is_whole=False) == (7, 10)
    assert parse_scores(whole[:-1]) is None  # not said to be cut
    assert parse_scores(whole[: whole.index("0, ")], is_whole=False) is None  # perhaps 10


def test_the_last_line_of_a_cut_reply_may_be_half_a_number() -> None:
    assert parse_aspects("Scope: 3\nDepth: 1", ["Scope", "Depth"], is_whole=False) is None
    cut = '{"Scope": 3, "Depth": 1'
    assert parse_aspects(cut, ["Scope", "Depth"], is_whole=False) is None
