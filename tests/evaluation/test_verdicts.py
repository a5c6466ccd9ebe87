"""Two replies to a verdict: the rule, and gaps that are not draws."""

from pathlib import Path

import polars as pl
import pytest

from cherry_vllm.errors import UserError
from cherry_vllm.evaluation.answers import AnswerPair
from cherry_vllm.evaluation.replies import Reply
from cherry_vllm.evaluation.tally import tally_groups
from cherry_vllm.evaluation.verdicts import Judgement, decide, read_verdicts
from tests.judging import REVIEWS, verdicts_of

PAIR = AnswerPair("t", "1", None, "q", "", "a", "b")


def test_verdicts_follow_the_rule_and_a_gap_is_not_a_draw() -> None:
    verdicts = verdicts_of(REVIEWS)
    assert verdicts["verdict"].to_list() == ["win"] * 2 + ["tie"] * 3 + ["loss", "unparsed"]
    assert verdicts["flips"].to_list() == [False, False, False, True, True, False, None]
    total, *categories = tally_groups(verdicts)
    assert (total.testset, total.questions) == ("orchard", 7)
    assert (total.win, total.tie, total.loss, total.unparsed, total.failed) == (2, 3, 1, 1, 0)
    assert (total.flips, total.flips_to_assistant_1) == (2, 1)
    assert total.position_bias == pytest.approx(2 / 6)
    assert total.winning_score == pytest.approx((2 - 1) / 6 + 1)
    assert [row.category for row in categories] == ["clear", "level", "unclear"]
    assert sum(row.questions for row in categories) == 7
    assert (categories[-1].winning_score, categories[-1].interval) == (None, None)


def test_every_question_ends_in_exactly_one_verdict() -> None:
    win, cut = Reply("9 1"), Reply("8 1", finish_reason="length")
    unanswered = PAIR._replace(second=None)
    judgements = [
        Judgement(PAIR, win, Reply("1 9")),
        Judgement(PAIR, win, win),
        Judgement(PAIR, Reply("1 9"), Reply("5 5")),
        Judgement(PAIR, win, cut),
        Judgement(PAIR, win, None),
        Judgement(PAIR, None, cut),
        Judgement(unanswered, None, None),
    ]
    verdicts = decide(judgements)
    assert verdicts["verdict"].to_list() == [
        "win",
        "tie",
        "loss",
        "unparsed",
        "failed",
        "failed",
        "unanswered",
    ]
    (row,) = tally_groups(verdicts)
    assert (row.win, row.tie, row.loss) == (row.failed - 1,) * 3 == (1, 1, 1)
    assert (row.unparsed, row.unanswered, row.questions) == (1, 1, 7)
    assert row.winning_score == 1


@pytest.mark.parametrize("column", ["pair", "verdict"])
def test_numbers_for_verdicts_cost_one_line(tmp_path: Path, column: str) -> None:
    file = tmp_path / "v.parquet"
    pl.DataFrame({"pair": ["a"], "verdict": ["win"], column: [1]}).write_parquet(file)
    with pytest.raises(UserError, match=r"v\.parquet: contains no verdicts"):
        read_verdicts(file)
