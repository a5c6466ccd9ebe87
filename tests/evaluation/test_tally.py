"""Counts, winning score and its interval, checked against the paper and against the definition."""

import json
from collections import Counter
from itertools import product
from math import factorial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cherry_vllm.evaluation.tally import Tally, score_interval, tally_groups
from tests.conftest import SHARED
from tests.judging import verdicts_of

# Test set and judge: win, tie, loss of 5% cherry Alpaca against full Alpaca.
COUNTS = {
    "vicuna_wrap_reviews_gpt4": (44, 15, 21),
    "wizardlm_wrap_reviews_gpt4": (102, 54, 62),
    "sinstruct_wrap_reviews_gpt4": (111, 61, 80),
    "vicuna_wrap_reviews_gpt3.5": (16, 58, 6),
}


def counts(row: Tally) -> tuple[int, ...]:
    return (row.win, row.tie, row.loss, row.unparsed, row.failed)


def test_the_interval_is_about_that_of_a_bootstrap_where_there_are_many_questions() -> None:
    win, tie, loss = 440, 150, 210
    outcomes = np.repeat([1, 0, -1], [win, tie, loss])
    drawn = np.random.default_rng(0).choice(outcomes, size=(10_000, outcomes.size))
    plain = np.quantile(drawn.mean(axis=1) + 1, (0.025, 0.975))
    assert score_interval(win, tie, loss) == pytest.approx(tuple(plain), abs=0.01)


def test_the_interval_of_a_unanimous_group_has_a_width_that_shrinks_with_its_size() -> None:
    lows = [score_interval(count, 0, 0)[0] for count in (1, 5, 20, 100)]
    assert lows == sorted(lows)
    assert lows[1] < 1.5
    assert 1.9 < lows[-1] < 2
    for count in (1, 5, 20):
        assert score_interval(count, 0, 0)[1] == 2
        assert score_interval(0, 0, count)[0] == 0
        low, high = score_interval(0, count, 0)
        assert low < 1 < high
        assert high - 1 == pytest.approx(1 - low)


def test_the_interval_holds_the_score_and_turns_round_with_the_sides() -> None:
    for win, tie, loss in product(range(12), repeat=3):
        if win + tie + loss:
            low, high = score_interval(win, tie, loss)
            score = (win - loss) / (win + tie + loss) + 1
            assert 0 <= low <= score <= high <= 2
            assert high - low > 0.05
            assert score_interval(loss, tie, win) == pytest.approx((2 - high, 2 - low))


@pytest.mark.parametrize("shares", [(0.9, 0.05, 0.05), (0.5, 0.3, 0.2), (0.05, 0.9, 0.05)])
@pytest.mark.parametrize("questions", [10, 40])
def test_the_interval_covers_the_truth_as_often_as_it_says(
    shares: tuple[float, float, float], questions: int
) -> None:
    """Summed over every outcome that so many questions can have."""
    truth, covered = shares[0] - shares[2] + 1, 0.0
    for win in range(questions + 1):
        for loss in range(questions + 1 - win):
            tie = questions - win - loss
            low, high = score_interval(win, tie, loss)
            if low <= truth <= high:
                ways = factorial(questions) // (factorial(win) * factorial(tie) * factorial(loss))
                covered += ways * shares[0] ** win * shares[1] ** tie * shares[2] ** loss
    assert covered > 0.93


@pytest.mark.parametrize("name", COUNTS)
def test_the_recorded_reviews_give_the_papers_counts(recorded: dict[str, Path], name: str) -> None:
    total, *categories = tally_groups(verdicts_of(recorded[name]))
    assert counts(total) == (*COUNTS[name], 0, 0)
    assert categories == []


def test_categories_of_the_test_set_add_up(recorded: dict[str, Path], tmp_path: Path) -> None:
    questions = SHARED / "judge" / "vicuna_test_set.jsonl"
    category = {
        line["text"]: line["category"]
        for line in map(json.loads, questions.read_text(encoding="utf-8").splitlines())
    }
    content: Any = json.loads(recorded["vicuna_wrap_reviews_gpt4"].read_text(encoding="utf-8"))
    for record in content["data"]:
        record["category"] = category[record["text"]]
    file = tmp_path / "reviews.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    total, *parts = tally_groups(verdicts_of(file))
    assert len(parts) == 9
    assert {row.category: row.questions for row in parts} == Counter(category.values())
    assert tuple(map(sum, zip(*map(counts, parts), strict=True))) == counts(total)
