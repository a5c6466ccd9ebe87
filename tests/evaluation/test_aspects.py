"""The rows of both sides, and the means of their ratings."""

from collections.abc import Sequence

import polars as pl
import pytest

from cherry_vllm.commands.judgement_tables import show_aspects
from cherry_vllm.config import compose
from cherry_vllm.errors import UserError
from cherry_vllm.evaluation.aspects import SIDES, highest_and_lowest, summarize
from cherry_vllm.schema import SCORES
from cherry_vllm.selection.sides import label_sides

SIX = ["Scope", "Complexity", "Clarity", "Depth", "Simplicity", "Knowledge Required"]


def scores_of(ifd: Sequence[float | None], dropped: Sequence[int] = ()) -> pl.DataFrame:
    reasons = ["empty_answer" if row in dropped else None for row in range(len(ifd))]
    known = {"row": range(len(ifd)), "ifd": ifd, "drop_reason": reasons}
    return pl.DataFrame({name: known.get(name) for name in SCORES}, schema=SCORES)


SEVEN = scores_of([0.2, 0.8, 0.5, None, 0.9, 0.4, None], dropped=(3, 6))
HUNDRED = scores_of([(i * 7919 % 100 + 1) / 101 for i in range(100)])


def test_the_aspects_are_those_of_the_paper() -> None:
    assert list(compose("judge=aspects").judge.aspects) == SIX


@pytest.mark.parametrize(
    ("fraction", "count", "top", "least"),
    [(0.4, None, [4, 1], [5, 0]), (0.05, 1, [4], [0]), (0.5, None, [4, 1], [5, 0])],
)
def test_the_sides_are_the_usable_rows_with_the_highest_and_the_lowest_ifd(
    fraction: float, count: int | None, top: list[int], least: list[int]
) -> None:
    sides = highest_and_lowest(SEVEN, fraction=fraction, count=count)
    assert sides.filter(side="top")["row"].to_list() == top
    assert sides.filter(side="least")["row"].to_list() == least


def test_no_row_is_on_both_sides_and_a_fraction_is_exact() -> None:
    sides = highest_and_lowest(scores_of([0.5] * 100), fraction=0.5, count=None)
    assert sorted(sides["row"]) == list(range(100))
    assert highest_and_lowest(HUNDRED, fraction=0.07, count=None).height == 14


@pytest.mark.parametrize("fraction", [0.07, 0.29, 0.5])
def test_judge_and_report_count_the_rows_of_a_side_alike(fraction: float) -> None:
    judged = highest_and_lowest(HUNDRED, fraction=fraction, count=None)
    shown = label_sides(HUNDRED, fraction=fraction).filter(pl.col("side") != "others")
    assert judged["row"].to_list() == shown["row"].to_list()
    assert judged.height == 2 * round(100 * fraction)


@pytest.mark.parametrize(
    ("fraction", "count", "words"),
    [
        (0.1, None, "judge.fraction=0.1: 0 rows"),
        (None, None, "judge.fraction: not given"),
        (0.1, 3, "judge.count=3: 3 rows on each side, of 5"),
    ],
)
def test_empty_and_overlapping_sides_are_refused(
    fraction: float | None, count: int | None, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        highest_and_lowest(SEVEN, fraction=fraction, count=count)


def test_a_side_without_a_rating_has_no_mean() -> None:
    columns = {"row": [0, 1], "side": list(SIDES), "reason": [None, "failed"], "Scope": [4.0, None]}
    summary = summarize(pl.DataFrame(columns), ["Scope"])
    assert summary["least"]["means"] == {"Scope": None}
    assert show_aspects(summary).splitlines()[-1].split() == ["Scope", "4.00", "-", "-"]
