"""The rows at either end of the IFD scale are counted once, and exactly."""

import polars as pl
import pytest

from cherry_vllm.evaluation.aspects import highest_and_lowest
from cherry_vllm.selection.sides import label_sides
from tests.made_up import SEVEN, distinct, scores_of


@pytest.mark.parametrize(("fraction", "count"), [(0.07, 7), (0.29, 29), (0.05, 5), (0.5, 50)])
def test_report_and_judge_count_the_rows_of_a_side_alike(fraction: float, count: int) -> None:
    shown = label_sides(distinct(100), fraction=fraction).filter(pl.col("side") != "others")
    judged = highest_and_lowest(distinct(100), fraction=fraction, count=None)
    assert shown["row"].to_list() == judged["row"].to_list()
    assert shown.filter(side="top").height == shown.filter(side="least").height == count


def test_no_row_is_on_both_sides_and_dropped_rows_are_on_none() -> None:
    assert label_sides(SEVEN, fraction=0.5)["side"].to_list() == [
        *("top", "top", "others", "least", "least")
    ]
    for number in (1, 2, 3):
        sides = label_sides(scores_of([0.5] * number), count=9)["side"].to_list()
        assert sides.count("top") == sides.count("least") == number // 2
