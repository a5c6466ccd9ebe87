"""The settings of a selection: each within its range, before anything is read."""

import math
from typing import Any

import pytest

from cherry_vllm.errors import UserError
from cherry_vllm.options import Dedup, DedupOn, Diversify, Order, Pool, Rule
from cherry_vllm.selection.choice import Choice


@pytest.mark.parametrize("fraction", [0, 0.0, -0.1, 1.5, 1.0000001, math.nan, math.inf])
def test_a_fraction_is_above_0_and_up_to_1(fraction: float) -> None:
    with pytest.raises(UserError, match=f"select.fraction={fraction}: give a number above 0 and"):
        Choice(fraction=fraction)


@pytest.mark.parametrize("key", ["count", "num_tokens"])
@pytest.mark.parametrize("number", [0, -1])
def test_a_number_is_at_least_1(key: str, number: int) -> None:
    with pytest.raises(UserError, match=f"select.{key}={number}: give a whole number of at least"):
        Choice(**{key: number})  # type: ignore[arg-type]


def test_a_quota_is_a_word_or_weights() -> None:
    for quota in ("some", {"a": -1}, {"a": 0}, {}):
        with pytest.raises(
            UserError, match=r"select\.quota=.*: give proportional, equal, or a map"
        ):
            Choice(count=1, quota=quota)
    assert Choice(count=1, quota={"a": 1}, strata=("x",)).quota == {"a": 1}


def test_a_threshold_is_a_finite_number() -> None:
    with pytest.raises(UserError, match=r"select\.threshold=nan: give a number"):
        Choice(rank="rating", threshold=math.nan)


@pytest.mark.parametrize("rank", ["ifd", "random", "-conditioned_score"])
def test_a_size_is_needed_unless_something_else_limits_the_choice(rank: str) -> None:
    with pytest.raises(UserError, match=r"select\.fraction: not given"):
        Choice(rank=rank)
    for limit in ({"where": "ifd < 0.5"}, {"max_per_group": 1}, {"rank": "rating"}):
        assert Choice(**({"rank": rank} | limit)).count is None


def test_random_rows_reach_no_threshold() -> None:
    with pytest.raises(UserError, match=r"select\.threshold=1: rows in random order have no rank"):
        Choice(rank="random", threshold=1, count=1)


@pytest.mark.parametrize(
    "choice",
    [
        {"fraction": 0.1},
        {"count": 5, "order": Order.ifd, "rule": Rule.data_by_ifd, "seed": 3},
        {"rank": "rating", "threshold": 4.5, "num_tokens": 100, "pool": Pool.scored},
        {"dedup": Dedup.minhash, "dedup_on": DedupOn.answer, "dedup_threshold": 0.8},
        {"count": 5, "diversify": Diversify.k_center, "candidates": 2.5},
        {"fraction": 1, "strata": ("cluster", "ifd"), "quota": {"1": 2.5}, "max_per_group": 2},
    ],
)
def test_what_a_mark_says_of_a_choice_is_the_choice(choice: dict[str, Any]) -> None:
    made = Choice(**choice)
    assert Choice.from_json({"num_selected": 7, **made.to_json()}) == made


def test_diverse_rows_are_so_many() -> None:
    with pytest.raises(UserError, match=r"select\.diversify=k_center: all rows would be chosen"):
        Choice(diversify=Diversify.k_center, dedup=Dedup.exact)
    with pytest.raises(UserError, match=r"select\.candidates=0.5: give a number of at least 1"):
        Choice(diversify=Diversify.k_center, count=1, candidates=0.5)


@pytest.mark.parametrize("threshold", [0.2, 0.96, math.nan])
def test_similarity_is_one_that_sketches_can_tell(threshold: float) -> None:
    with pytest.raises(
        UserError, match=r"select\.dedup_threshold=.*of at least 0.3 and up to 0.95"
    ):
        Choice(dedup=Dedup.minhash, dedup_threshold=threshold)


@pytest.mark.parametrize("step", [{"dedup": Dedup.exact}, {"diversify": Diversify.k_center}])
def test_the_references_rules_know_no_further_steps(step: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"select\.rule=data_by_ifd: a rule of the reference, only"):
        Choice(count=1, rule=Rule.data_by_ifd, **step)
