"""Which rows are chosen, how many, and in which order."""

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from cherry_vllm.errors import UserError
from cherry_vllm.options import Order, Rule
from cherry_vllm.schema import SCORES
from cherry_vllm.selection.ranking import select_rows
from cherry_vllm.selection.ratings import add_ratings, count_unrated
from tests.made_up import SEVEN, distinct, named, scores_of

Lines = list[tuple[int, float, bool]]
STRATEGIES = ("cherry", "low_ifd", "high_conditioned", "longest", "rating", "random")
RATED = SEVEN.with_columns(rating=pl.lit(5.0), num_answer_tokens=pl.lit(3, pl.UInt32))


def choose(
    scores: pl.DataFrame,
    strategy: Any = "cherry",
    *,
    order: str = "input",
    rule: Any = "exact",
    **choice: Any,
) -> pl.DataFrame:
    choice = {"threshold": None, **choice, "order": Order(order), "rule": Rule(rule)}
    return select_rows(scores, named(strategy, **choice))


def chosen_rows(*arguments: Any, **options: Any) -> list[int]:
    return choose(*arguments, **options)["row"].to_list()


# --- strategies and order ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "order", "expected"),
    [
        ("cherry", "input", [1, 2, 4]),
        ("cherry", "ifd", [4, 1, 2]),
        ("low_ifd", "input", [0, 2, 5]),
        ("low_ifd", "ifd", [2, 5, 0]),
        ("high_conditioned", "input", [0, 2, 5]),
        ("high_conditioned", "ifd", [2, 5, 0]),
    ],
)
def test_a_strategy_decides_the_rows_and_the_order_their_order(
    strategy: Any, order: str, expected: Any
) -> None:
    assert chosen_rows(SEVEN, strategy, count=3, order=order) == expected


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [("cherry", [4]), ("low_ifd", [0]), ("high_conditioned", [5])],
)
def test_the_first_row_of_each_strategy(strategy: Any, expected: Any) -> None:
    assert chosen_rows(SEVEN, strategy, count=1) == expected


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("asked", [{"count": 5}, {"fraction": 1.0}])
def test_all_usable_rows_can_be_chosen_and_no_other(strategy: Any, asked: Any) -> None:
    assert chosen_rows(RATED, strategy, **asked) == [0, 1, 2, 4, 5]


def test_chosen_lines_are_lines_of_the_scores() -> None:
    chosen = choose(SEVEN, count=2)
    assert chosen.schema == pl.Schema(SCORES)
    assert_frame_equal(chosen, SEVEN.filter(pl.col("row").is_in([1, 4])))


@pytest.mark.parametrize("strategy", ["cherry", "low_ifd", "high_conditioned"])
@pytest.mark.parametrize("order", ["input", "ifd"])
def test_of_equal_scores_the_earlier_row_comes_first(strategy: Any, order: str) -> None:
    scores = scores_of([0.5] * 50)
    assert chosen_rows(scores, strategy, count=20, order=order) == list(range(20))


def test_ties_at_the_edge_go_by_row() -> None:
    scores = scores_of([0.2, 0.8, 0.5, 0.8, 0.5, 0.5, 0.9])
    assert chosen_rows(scores, count=4) == [1, 2, 3, 6]
    assert chosen_rows(scores, count=4, order="ifd") == [6, 1, 3, 2]
    assert chosen_rows(scores, "low_ifd", count=2) == [0, 2]


def test_the_order_of_the_lines_read_does_not_matter() -> None:
    shuffled = SEVEN.sample(fraction=1, shuffle=True, seed=1)
    assert shuffled["row"].to_list() != list(range(7))
    assert chosen_rows(shuffled, count=3) == [1, 2, 4]


# --- how many ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fraction", "usable", "expected"),
    [
        (0.07, 100, 7),
        (0.29, 100, 29),
        (0.57, 100, 57),
        (0.1, 59, 5),
        (0.05, 20, 1),
        (0.15, 59, 8),
        (0.1, 10, 1),
        (0.999, 1000, 999),
        (1e-3, 1000, 1),
        (1.0, 7, 7),
        (1, 7, 7),
    ],
)
def test_a_fraction_is_taken_exactly_and_rounded_down(
    fraction: float, usable: int, expected: Any
) -> None:
    scores = distinct(usable)
    chosen = choose(scores, fraction=fraction)
    assert chosen.height == expected
    threshold = sorted(scores["ifd"], reverse=True)[expected - 1]
    assert chosen["ifd"].min() == threshold


def test_a_fraction_is_of_the_usable_rows() -> None:
    scores = scores_of([0.5] * 20, reasons=[None, "refusal"] * 10)
    assert chosen_rows(scores, fraction=0.3) == [0, 2, 4]


def test_a_count_goes_before_a_fraction() -> None:
    assert choose(SEVEN, fraction=0.2, count=4).height == 4


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("fraction", [0.19, 1e-9])
def test_choosing_no_row_is_a_user_error(strategy: Any, fraction: float) -> None:
    words = f"select.fraction={fraction}: chooses none of 5 usable rows"
    with pytest.raises(UserError, match=words):
        choose(RATED, strategy, fraction=fraction)


@pytest.mark.parametrize("rule", ["exact", "data_by_ifd", "select_from_ifd_json"])
def test_choosing_more_than_is_usable_is_a_user_error(rule: Any) -> None:
    with pytest.raises(UserError, match=r"select\.count=6: there are only 5 usable rows"):
        choose(SEVEN, count=6, rule=rule)


@pytest.mark.parametrize("asked", [{"fraction": 0.5}, {"count": 1}])
@pytest.mark.parametrize("rule", list(Rule))
def test_nothing_usable_is_a_user_error(asked: Any, rule: Any) -> None:
    scores = scores_of([1.5, None], reasons=["ifd_above_one", "malformed"])
    with pytest.raises(UserError, match="no row is usable"):
        choose(scores, rule=rule.value, **asked)


# --- random ------------------------------------------------------------------------------------


def test_random_is_reproducible_and_differs_by_seed() -> None:
    scores = distinct(200)
    first = chosen_rows(scores, "random", fraction=0.2, seed=1)
    assert first == chosen_rows(scores, "random", fraction=0.2, seed=1)
    assert first != chosen_rows(scores, "random", fraction=0.2, seed=2)
    assert len(set(first)) == 40
    assert first == sorted(first)


def test_random_does_not_look_at_the_scores() -> None:
    scores = distinct(200)
    others = scores.with_columns(ifd=1 - pl.col("ifd"))
    chosen = chosen_rows(scores, "random", count=50, seed=3)
    assert chosen == chosen_rows(others, "random", count=50, seed=3)


def test_random_reaches_every_usable_row_and_no_other() -> None:
    seen = [set(chosen_rows(SEVEN, "random", count=2, seed=seed)) for seed in range(100)]
    assert set.union(*seen) == {0, 1, 2, 4, 5}
    assert len({frozenset(pair) for pair in seen}) == 10


def test_random_rows_can_be_ordered_by_ifd() -> None:
    chosen = choose(distinct(100), "random", count=30, order="ifd", seed=5)
    assert chosen["ifd"].to_list() == sorted(chosen["ifd"], reverse=True)
    assert chosen["row"].to_list() != sorted(chosen["row"])


# --- rating ------------------------------------------------------------------------------------


def rated(ratings: list[Any], reasons: Any = None) -> pl.DataFrame:
    """The seven rows with ratings by row; None: without one."""
    known = [(row, rating) for row, rating in enumerate(ratings) if rating != "absent"]
    schema = {"row": pl.Int64, "rating": pl.Float64}
    frame = pl.DataFrame(known, schema=schema, orient="row").with_columns(
        reason=pl.Series([(reasons or {}).get(row) for row, _ in known], dtype=pl.String)
    )
    return add_ratings(SEVEN, frame)


# The usable rows are 0, 1, 2, 4 and 5.
MIXED = rated([4.5, None, 5, 5, 4, "absent", 5], {1: "failed"})


def test_the_highest_rating_comes_first_and_equal_ones_by_row() -> None:
    scores = rated([4, 5, 4.5, 5, 4.5, 5, 5])
    assert chosen_rows(scores, "rating", count=2) == [1, 5]
    assert chosen_rows(scores, "rating", count=3) == [1, 2, 5]
    assert chosen_rows(scores, "rating", count=3, order="ifd") == [1, 2, 5]
    assert chosen_rows(scores, "rating", fraction=0.8, threshold=4.5) == [1, 2, 4, 5]


def test_without_a_number_all_that_reach_the_threshold_are_chosen() -> None:
    assert chosen_rows(MIXED, "rating", threshold=4.5) == [0, 2]
    assert chosen_rows(MIXED, "rating", threshold=None) == [0, 2, 4]


def test_a_row_without_a_rating_is_never_chosen_and_always_counted() -> None:
    assert count_unrated(MIXED) == {"failed": 1, "not rated": 1}
    assert chosen_rows(MIXED, "rating", count=3) == [0, 2, 4]
    low = rated([0, None, 0, 0, 0, 0, 0], {1: "unparsed"})  # a rating of 0 is one
    assert chosen_rows(low, "rating", threshold=0) == [0, 2, 4, 5]
    assert count_unrated(low) == {"unparsed": 1}
    rows = MIXED.filter(pl.col("drop_reason").is_null())
    assert rows["rating"].count() + sum(count_unrated(MIXED).values()) == rows.height == 5


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"count": 4}, r"select\.count=4: asks for 4 rows, but only 3 usable rows have a rating;"),
        (
            {"fraction": 0.6, "threshold": 4.5},
            "asks for 3 rows, but only 2 usable rows have a rating of at least 4.5",
        ),
        ({"threshold": 5.1}, "none of 5 usable rows have a rating of at least 5.1"),
        ({"count": 6}, "there are only 5 usable rows"),
        ({"fraction": 2.0}, "select.fraction=2.0"),
        ({"rule": "data_by_ifd", "fraction": 0.5}, "select.rule=data_by_ifd"),
    ],
)
def test_more_rows_than_ratings_reach_is_a_user_error(asked: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        choose(MIXED, "rating", **asked)


# --- the reference's rules ---------------------------------------------------------------------


def by_data_by_ifd(lines: Lines, rate: float) -> list[int]:
    """lines: (row, ifd, usable). Ascending, so that the last of equals is the later row."""
    kept = sorted((ifd, row) for row, ifd, usable in lines if usable)
    number = int(rate * len(kept))
    return sorted(row for _, row in kept[len(kept) - number :])


def by_select_from_ifd_json(lines: Lines, rate: float) -> list[int]:
    """A stable sort: of equals, the first seen."""
    number = int(rate * len(lines))
    kept = [(row, ifd) for row, ifd, usable in lines if usable]
    return [row for row, _ in sorted(kept, key=lambda line: -line[1])[:number]]


def lines_with_ties(seed: int, number: int = 100) -> Lines:
    source = np.random.default_rng(seed)
    lines = []
    for row in range(number):
        ifd = round(float(source.uniform(0.2, 1.2)), 1)
        lines.append((row, ifd, ifd <= 1 and source.random() < 0.9))
    return lines


def scores_of_lines(lines: Lines) -> pl.DataFrame:
    return scores_of(
        [ifd for _, ifd, _ in lines],
        reasons=[
            None if usable else "ifd_above_one" if ifd > 1 else "refusal"
            for _, ifd, usable in lines
        ],
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rate", [0.05, 0.1, 0.29, 0.57, 0.7])
@pytest.mark.parametrize("order", ["input", "ifd"])
@pytest.mark.parametrize(
    ("rule", "restated"),
    [("data_by_ifd", by_data_by_ifd), ("select_from_ifd_json", by_select_from_ifd_json)],
)
def test_the_references_rules_are_kept(
    seed: int, rate: float, order: str, rule: Any, restated: Callable[..., list[int]]
) -> None:
    lines = lines_with_ties(seed)
    expected = restated(lines, rate)
    assert expected
    scores = scores_of_lines(lines)
    assert chosen_rows(scores, fraction=rate, rule=rule, order=order) == expected


def test_the_references_rules_differ_from_each_other_and_from_ours() -> None:
    scores = scores_of([0.5] * 6 + [0.9] + [1.5] * 3, reasons=[None] * 7 + ["ifd_above_one"] * 3)
    assert chosen_rows(scores, fraction=0.5) == [0, 1, 6]
    assert chosen_rows(scores, fraction=0.5, rule="data_by_ifd") == [4, 5, 6]
    assert chosen_rows(scores, fraction=0.5, rule="select_from_ifd_json") == [6, 0, 1, 2, 3]


def test_the_references_rules_round_in_floating_point() -> None:
    scores = distinct(100)
    assert int(0.29 * 100) == 28
    assert choose(scores, fraction=0.29, rule="exact").height == 29
    assert choose(scores, fraction=0.29, rule="data_by_ifd").height == 28
    assert choose(scores, fraction=0.29, rule="select_from_ifd_json").height == 28


def test_the_rule_that_counts_all_rows_takes_what_is_usable() -> None:
    assert chosen_rows(SEVEN, fraction=0.9, rule="select_from_ifd_json") == [4, 1, 2, 5, 0]


def test_a_count_goes_before_the_number_of_a_reference_rule() -> None:
    scores = scores_of([0.5] * 10)
    assert chosen_rows(scores, fraction=0.9, count=2, rule="data_by_ifd") == [8, 9]
    assert chosen_rows(scores, fraction=0.9, count=2, rule="select_from_ifd_json") == [0, 1]


@pytest.mark.parametrize("rule", ["data_by_ifd", "select_from_ifd_json"])
@pytest.mark.parametrize("strategy", ["low_ifd", "high_conditioned", "random"])
def test_a_reference_rule_with_another_strategy_is_a_user_error(rule: Any, strategy: Any) -> None:
    with pytest.raises(UserError, match=f"select.rule={rule}.*select.rule=exact with {strategy}"):
        choose(SEVEN, strategy, count=1, rule=rule)


# --- by answer tokens

TOKENS = SEVEN.with_columns(num_answer_tokens=pl.Series([5, 9, 2, 1, 7, 30, None], dtype=pl.UInt32))


def test_longest_takes_the_longest_answers() -> None:
    assert chosen_rows(TOKENS, "longest", count=2) == [1, 5]


def test_a_token_budget_takes_rows_in_order_until_it_is_spent() -> None:
    # The cherry order is 4, 1, 2, 5, 0, of 7, 9, 2, 30 and 5 answer tokens.
    for budget, rows in [(7, [4]), (15, [4]), (16, [1, 4]), (18, [1, 2, 4]), (47, [1, 2, 4])]:
        assert choose(TOKENS, count=5, num_tokens=budget)["row"].to_list() == rows
    with pytest.raises(UserError, match=r"select\.num_tokens=6: chooses none of 5"):
        choose(TOKENS, num_tokens=6)
