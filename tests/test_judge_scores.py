"""The parser: every form that judges use, and nothing that merely looks like one."""

import pytest

from cherry_vllm.evaluation.parsing import parse_rating, parse_scores

FORMS = [
    "8 9",
    "8,9",
    "8, 9",
    "8 9   ",
    "\n\n8 9\r\nBoth are good.",
    "8/10 9/10",
    "8 / 10, 9 / 10",
    "8 out of 10, 9 out of 10",
    "8.0 9.0",
    "8\t9",
    "8 | 9",
    "8 and 9",
    "[8, 9]",
    "8 9.",
    "**8 9**",
    "**8** **9**",
    "`8 9`",
    "### 8 9",
    "* 8 9",
    "Scores: 8 9",
    "**Overall scores:** 8, 9",
    "Here are my scores:\n\n8 9\nAssistant 1 named 2 fruits and 3 colours.",
    "I compared both.\nIn detail.\nAgain.\nOnce more.\nAnd more.\n\nFinal scores: 8 9",
    "Assistant 1: 8\nAssistant 2: 9",
    "Assistant 1: 8, Assistant 2: 9",
    "Assistant 1: 8 Assistant 2: 9",
    "Assistant 1 (8/10): good.\nAssistant 2 (9/10): better.",
    "**Assistant 1:** 8/10 - good.\nIt names 2 fruits.\n\n**Assistant 2:** 9/10. Better.",
    "Assistant 1's score: 8\nAssistant 2\u2019s overall score: 9",
    "| Assistant 1: 8 | Assistant 2: 9 |",
    "Scores: Assistant 1: 8; Assistant 2: 9",
    "- Assistant 1: 8\n- Assistant 2: 9\n\nSo Assistant 1: 8, and Assistant 2: 9.",
    "<think>\nA first guess: 3 4\n3 4\n</think>\n\n8 9",
]

NO_SCORES = [
    "",
    "I cannot judge this.",
    "8",
    "8\n9",
    "8/9",
    "8-9",
    "8:9",
    "8 * 9",
    "-8 9",
    "8 9 7",
    "8,5 9,0",  # decimals with a comma, or four numbers
    "80 90",
    "8 11",
    "4/5 3/5",  # another scale
    "8 9 points each",
    "1. 8 9",
    "Assistant 1 gave 2 examples and Assistant 2 gave 3.",
    "In 2 of 3 cases",
    "Both name 8, 9 or 10 fruits.",
    "Errors: Assistant 1: 2, Assistant 2: 3.",
    "I count these slips of Assistant 1: 2, of Assistant 2: 3.",
    "<think>\n8 9\nor rather",
    "Assistant 1: 8",
    "Assistant 1: 8 steps\nAssistant 2: 9 steps",
    "Assistant 1: 8-10 lines\nAssistant 2: 9",
    "Assistant 1: 2 - 3 lines\nAssistant 2: 9",
    "Assistant 1: 1,000 words\nAssistant 2: 9",
    "Accuracy\nAssistant 1: 8\nAssistant 2: 9\nDetail\nAssistant 1: 7\nAssistant 2: 9",
    "1\n2\n3\n4\n5\n8 9",  # far below the first line a bare pair may be a quotation
]


@pytest.mark.parametrize("reply", FORMS)
def test_every_form_of_two_scores_is_read(reply: str) -> None:
    assert parse_scores(reply) == (8, 9)


@pytest.mark.parametrize("reply", NO_SCORES)
def test_what_is_no_pair_of_scores_is_not_taken_for_one(reply: str) -> None:
    assert parse_scores(reply) is None


def test_decimals_zero_and_ten_are_scores() -> None:
    assert parse_scores("7.5 8.25") == (7.5, 8.25)
    assert parse_scores("0 10") == (0, 10)


def test_the_first_line_decides_over_what_follows() -> None:
    assert parse_scores("8 9\nAssistant 1: 3\nAssistant 2: 4\nScores: 5 6") == (8, 9)


def test_a_reply_cut_at_the_token_limit_may_have_lost_a_digit() -> None:
    assert parse_scores("8 1", is_whole=False) is None
    assert parse_scores("8 10\nBoth are", is_whole=False) == (8, 10)
    assert parse_scores("Assistant 1: 8\nAssistant 2: 1", is_whole=False) is None


@pytest.mark.parametrize(
    "reply",
    [
        "4.5",
        "4.5/5\nGood, with 2 slips.",
        "**Score: 4.5**",
        "4.5 out of 5.",
        "Here is my score:\n4.5",
        "It answers.\n\nIn 3 ways.\n\nRating: 4.5",
        "<think>2</think>\n4.5\nScore: 3",
    ],
)
def test_every_form_of_a_rating_is_read(reply: str) -> None:
    assert parse_rating(reply) == 4.5


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "6",
        "45",
        "4 5",
        "4/10",
        "4.5 stars of 7",
        "Because of 2 slips.",
        "It answers.\n4",
        "Score: 4\nScore: 5",
        "I think 4",
    ],
)
def test_what_is_no_rating_is_not_taken_for_one(reply: str) -> None:
    assert parse_rating(reply) is None
    assert parse_rating("4", is_whole=False) is None
