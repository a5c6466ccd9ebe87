"""Strata and their parts: largest remainders, and strata that are too small."""

from fractions import Fraction

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cherry_vllm.errors import UserError
from cherry_vllm.selection.expressions import parse
from cherry_vllm.selection.quotas import MAX_STRATA, allocate, apportion, divide, weigh

WEIGHTS = st.lists(st.fractions(0, 100), min_size=1, max_size=8).filter(any)


def fractions(*numbers: int) -> list[Fraction]:
    return [Fraction(number) for number in numbers]


@pytest.mark.parametrize(
    ("total", "weights", "parts"),
    [
        (10, (1, 1, 1), [4, 3, 3]),
        (10, (53, 24, 23), [5, 3, 2]),
        (3, (1, 1, 1, 1), [1, 1, 1, 0]),
        (100, (47, 16, 15, 12, 6, 4), [47, 16, 15, 12, 6, 4]),
        (0, (1, 2), [0, 0]),
    ],
)
def test_places_go_to_the_largest_remainders(
    total: int, weights: tuple[int, ...], parts: list[int]
) -> None:
    assert apportion(total, fractions(*weights)) == parts


@given(st.integers(0, 10_000), WEIGHTS)
def test_parts_add_up_and_are_rounded_shares(total: int, weights: list[Fraction]) -> None:
    parts = apportion(total, weights)
    assert sum(parts) == total
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part - total * weight / sum(weights)) < 1


def test_a_stratum_that_is_too_small_gives_its_places_to_the_others() -> None:
    assert allocate(10, fractions(1, 1, 1), [2, 50, 50]) == [2, 4, 4]
    assert allocate(10, fractions(1, 1, 2), [0, 3, 50]) == [0, 3, 7]
    assert allocate(10, fractions(1, 0), [4, 50]) == [4, 0]
    assert allocate(9, fractions(1, 1), [3, 3]) == [3, 3]


@given(st.data(), WEIGHTS)
def test_no_part_exceeds_its_capacity_and_all_that_fits_is_given(
    data: st.DataObject, weights: list[Fraction]
) -> None:
    size = len(weights)
    capacities = data.draw(st.lists(st.integers(0, 60), min_size=size, max_size=size))
    total = data.draw(st.integers(0, 200))
    parts = allocate(total, weights, capacities)
    assert all(part <= most for part, most in zip(parts, capacities, strict=True))
    room = sum(most for most, weight in zip(capacities, weights, strict=True) if weight)
    assert sum(parts) == min(total, room)
    assert not any(part for part, weight in zip(parts, weights, strict=True) if not weight)


FRAME = pl.DataFrame(
    {
        "row": range(8),
        "source": ["b", "a", None, "b", "a", "a", "b", "b"],
        "length": [1, 2, 3, 4, 5, 6, 7, 8],
        "cluster": [11, 11, 3, 3, 3, 7, 7, 7],
        "flag": [True, False, None, True, True, True, True, True],
        "list": [[1]] * 8,
    }
)


def divided(*texts: str, bins: int = 2) -> dict[int, str]:
    strata = divide(FRAME, [parse("select.strata", text, FRAME.columns) for text in texts], bins)
    return {row: strata.labels[code] for row, code in enumerate(strata.codes)}


def test_words_and_clusters_are_strata_as_they_are_and_null_is_one_too() -> None:
    assert list(divided("source").values()) == ["b", "a", "no value", "b", "a", "a", "b", "b"]
    for text in ("cluster", '"cluster"', " (cluster) "):
        assert list(divided(text).values()) == ["11", "11", "3", "3", "3", "7", "7", "7"]
    assert set(divided("flag").values()) == {"True", "False", "no value"} or set(
        divided("flag").values()
    ) == {"true", "false", "no value"}


def test_numbers_are_cut_into_bins_of_equally_many_rows() -> None:
    assert list(divided("length").values()) == ["1 to 4"] * 4 + ["5 to 8"] * 4
    assert len(set(divided("length", bins=8).values())) == 8
    assert len(set(divided("cluster + 0").values())) == 2
    assert set(divided("length % 2").values()) == {"0", "1"}


def test_several_expressions_give_each_combination_that_occurs() -> None:
    assert list(divided("source", "length").values()) == [
        "b / 1 to 4",
        "a / 1 to 4",
        "no value / 1 to 4",
        "b / 1 to 4",
        *["a / 5 to 8"] * 2,
        *["b / 5 to 8"] * 2,
    ]
    assert set(divided().values()) == {""}


@given(st.lists(st.one_of(st.none(), st.integers(0, 30)), min_size=1), st.integers(2, 6))
def test_equal_values_are_in_one_bin_and_bins_are_in_order(
    values: list[int | None], bins: int
) -> None:
    frame = pl.DataFrame({"x": pl.Series(values, dtype=pl.Int64)})
    strata = divide(frame, [parse("select.strata", "x")], bins)
    placed = frame.with_columns(code=strata.codes).drop_nulls().unique().sort("x")
    assert placed["x"].is_unique().all()
    assert placed["code"].is_sorted()
    assert placed["code"].n_unique() <= bins


def test_too_many_strata_and_lists_are_refused() -> None:
    many = pl.DataFrame({"x": [str(n) for n in range(MAX_STRATA + 1)]})
    with pytest.raises(UserError, match=r"select\.strata=x: more than 10,000 strata"):
        divide(many, [parse("select.strata", "x")], 2)
    with pytest.raises(UserError, match=r"select\.strata=list: lists or objects"):
        divided("list")


@pytest.mark.parametrize(
    ("columns", "label"),
    [
        ({"x": ["no value", None]}, "no value"),
        ({"x": ["a / b", "a"], "y": ["c", "b / c"]}, "a / b / c"),
    ],
)
def test_strata_of_one_name_are_refused(columns: dict[str, list[str | None]], label: str) -> None:
    frame = pl.DataFrame(columns)
    with pytest.raises(UserError, match=rf"select\.strata: 2 strata are called {label}; give"):
        divide(frame, [parse("select.strata", name) for name in frame.columns], 2)


def test_numbers_that_differ_have_names_that_differ() -> None:
    frame = pl.DataFrame({"x": [0.1234561, 0.1234562, 0.5, 2.0]})
    strata = divide(frame, [parse("select.strata", "x")], 4)
    assert strata.labels == ["0.1234561", "0.1234562", "0.5", "2.0"]
    assert divide(frame, [parse("select.strata", "x")], 2).labels == [
        "0.123456 to 0.123456",
        "0.5 to 2",
    ]


def test_quotas_are_weights_by_name() -> None:
    labels, sizes = ["a", "b", "c"], [10, 20, 30]
    assert weigh("proportional", labels, sizes) == [10, 20, 30]
    assert weigh("equal", labels, sizes) == [1, 1, 1]
    assert weigh({"c": 0.5, "a": 1}, labels, sizes) == [1, 0, Fraction(1, 2)]
    with pytest.raises(UserError, match=r"select\.quota: no stratum d; there are a, b, c"):
        weigh({"d": 1}, labels, sizes)
