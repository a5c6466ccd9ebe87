"""Which rows are chosen, how many, in which order; and the files they end in."""

import json
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from cherry_vllm.errors import UserError
from cherry_vllm.options import Order, Rule, Strategy
from cherry_vllm.schema import SCORES
from cherry_vllm.selection.export import check_output, write_records
from cherry_vllm.selection.ranking import select_rows
from cherry_vllm.selection.ratings import add_ratings, count_unrated

# By row: the cherry order is 4, 1, 2, 5, 0; rows 3 and 6 are dropped.
IFD = [0.1, 0.9, 0.5, 1.7, 0.95, 0.3, None]
CONDITIONED = [3.0, 0.5, 2.0, 9.0, 1.0, 4.0, None]
REASONS = [None, None, None, "ifd_above_one", None, None, "malformed"]


def scores_of(ifd, conditioned=None, reasons=None):
    columns = dict.fromkeys(SCORES, None) | {
        "row": range(len(ifd)),
        "ifd": ifd,
        "conditioned_score": conditioned or ifd,
        "drop_reason": reasons or [None] * len(ifd),
    }
    return pl.DataFrame(columns, schema=SCORES)


SEVEN = scores_of(IFD, CONDITIONED, REASONS)
RATED = SEVEN.with_columns(rating=pl.lit(5.0))


def choose(
    scores,
    strategy="cherry",
    *,
    fraction=None,
    count=None,
    num_tokens=None,
    threshold=None,
    order="input",
    rule="exact",
    seed=0,
):
    return select_rows(
        scores,
        strategy=Strategy(strategy),
        fraction=fraction,
        count=count,
        num_tokens=num_tokens,
        threshold=threshold,
        order=Order(order),
        rule=Rule(rule),
        seed=seed,
    )


def chosen_rows(*arguments, **options):
    return choose(*arguments, **options)["row"].to_list()


def distinct(number):
    return scores_of([(i * 7919 % number + 1) / (number + 1) for i in range(number)])


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
def test_a_strategy_decides_the_rows_and_the_order_their_order(strategy, order, expected):
    assert chosen_rows(SEVEN, strategy, count=3, order=order) == expected


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [("cherry", [4]), ("low_ifd", [0]), ("high_conditioned", [5])],
)
def test_the_first_row_of_each_strategy(strategy, expected):
    assert chosen_rows(SEVEN, strategy, count=1) == expected


@pytest.mark.parametrize("strategy", list(Strategy))
@pytest.mark.parametrize("asked", [{"count": 5}, {"fraction": 1.0}])
def test_all_usable_rows_can_be_chosen_and_no_other(strategy, asked):
    assert chosen_rows(RATED, strategy.value, **asked) == [0, 1, 2, 4, 5]


def test_chosen_lines_are_lines_of_the_scores():
    chosen = choose(SEVEN, count=2)
    assert chosen.schema == pl.Schema(SCORES)
    assert_frame_equal(chosen, SEVEN.filter(pl.col("row").is_in([1, 4])))


@pytest.mark.parametrize("strategy", ["cherry", "low_ifd", "high_conditioned"])
@pytest.mark.parametrize("order", ["input", "ifd"])
def test_of_equal_scores_the_earlier_row_comes_first(strategy, order):
    scores = scores_of([0.5] * 50)
    assert chosen_rows(scores, strategy, count=20, order=order) == list(range(20))


def test_ties_at_the_edge_go_by_row():
    scores = scores_of([0.2, 0.8, 0.5, 0.8, 0.5, 0.5, 0.9])
    assert chosen_rows(scores, count=4) == [1, 2, 3, 6]
    assert chosen_rows(scores, count=4, order="ifd") == [6, 1, 3, 2]
    assert chosen_rows(scores, "low_ifd", count=2) == [0, 2]


def test_the_order_of_the_lines_read_does_not_matter():
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
def test_a_fraction_is_taken_exactly_and_rounded_down(fraction, usable, expected):
    scores = distinct(usable)
    chosen = choose(scores, fraction=fraction)
    assert chosen.height == expected
    threshold = sorted(scores["ifd"], reverse=True)[expected - 1]
    assert chosen["ifd"].min() == threshold


def test_a_fraction_is_of_the_usable_rows():
    scores = scores_of([0.5] * 20, reasons=[None, "refusal"] * 10)
    assert chosen_rows(scores, fraction=0.3) == [0, 2, 4]


def test_a_count_goes_before_a_fraction():
    assert choose(SEVEN, fraction=0.2, count=4).height == 4
    assert choose(SEVEN, fraction=0.0, count=4).height == 4


@pytest.mark.parametrize("strategy", list(Strategy))
@pytest.mark.parametrize(
    "asked", [{"fraction": 0.19}, {"fraction": 1e-9}, {"count": 0}, {"count": -1}]
)
def test_choosing_no_row_is_a_user_error(strategy, asked):
    with pytest.raises(UserError, match="chooses no row of 5 usable"):
        choose(RATED, strategy.value, **asked)


@pytest.mark.parametrize("rule", ["exact", "data_by_ifd", "select_from_ifd_json"])
def test_choosing_more_than_is_usable_is_a_user_error(rule):
    with pytest.raises(UserError, match=r"select\.count=6: only 5 rows are usable"):
        choose(SEVEN, count=6, rule=rule)


@pytest.mark.parametrize("fraction", [0, 0.0, -0.1, 1.5, 1.0000001, math.nan, math.inf, None])
@pytest.mark.parametrize("rule", list(Rule))
def test_a_fraction_beyond_its_range_is_a_user_error(fraction, rule):
    with pytest.raises(UserError, match=f"select.fraction={fraction}: give a number"):
        choose(SEVEN, fraction=fraction, rule=rule.value)


@pytest.mark.parametrize("asked", [{"fraction": 0.5}, {"count": 1}, {"count": 0}])
@pytest.mark.parametrize("rule", list(Rule))
def test_nothing_usable_is_a_user_error(asked, rule):
    scores = scores_of([1.5, None], reasons=["ifd_above_one", "malformed"])
    with pytest.raises(UserError, match="no row is usable"):
        choose(scores, rule=rule.value, **asked)


# --- random ------------------------------------------------------------------------------------


def test_random_is_reproducible_and_differs_by_seed():
    scores = distinct(200)
    first = chosen_rows(scores, "random", fraction=0.2, seed=1)
    assert first == chosen_rows(scores, "random", fraction=0.2, seed=1)
    assert first != chosen_rows(scores, "random", fraction=0.2, seed=2)
    assert len(set(first)) == 40
    assert first == sorted(first)


def test_random_does_not_look_at_the_scores():
    scores = distinct(200)
    others = scores.with_columns(ifd=1 - pl.col("ifd"))
    chosen = chosen_rows(scores, "random", count=50, seed=3)
    assert chosen == chosen_rows(others, "random", count=50, seed=3)


def test_random_reaches_every_usable_row_and_no_other():
    seen = [set(chosen_rows(SEVEN, "random", count=2, seed=seed)) for seed in range(100)]
    assert set.union(*seen) == {0, 1, 2, 4, 5}
    assert len({frozenset(pair) for pair in seen}) == 10


def test_random_rows_can_be_ordered_by_ifd():
    chosen = choose(distinct(100), "random", count=30, order="ifd", seed=5)
    assert chosen["ifd"].to_list() == sorted(chosen["ifd"], reverse=True)
    assert chosen["row"].to_list() != sorted(chosen["row"])


# --- rating ------------------------------------------------------------------------------------


def rated(ratings, reasons=None):
    """The seven rows with ratings by row; None: without one."""
    known = [(row, rating) for row, rating in enumerate(ratings) if rating != "absent"]
    schema = {"row": pl.Int64, "rating": pl.Float64}
    frame = pl.DataFrame(known, schema=schema, orient="row").with_columns(
        reason=pl.Series([(reasons or {}).get(row) for row, _ in known], dtype=pl.String)
    )
    return add_ratings(SEVEN, frame)


# The usable rows are 0, 1, 2, 4 and 5.
MIXED = rated([4.5, None, 5, 5, 4, "absent", 5], {1: "failed"})


def test_the_highest_rating_comes_first_and_equal_ones_by_row():
    scores = rated([4, 5, 4.5, 5, 4.5, 5, 5])
    assert chosen_rows(scores, "rating", count=2) == [1, 5]
    assert chosen_rows(scores, "rating", count=3) == [1, 2, 5]
    assert chosen_rows(scores, "rating", count=3, order="ifd") == [1, 2, 5]
    assert chosen_rows(scores, "rating", fraction=0.8, threshold=4.5) == [1, 2, 4, 5]


def test_without_a_number_all_that_reach_the_threshold_are_chosen():
    assert chosen_rows(MIXED, "rating", threshold=4.5) == [0, 2]
    assert chosen_rows(MIXED, "rating", threshold=None) == [0, 2, 4]


def test_a_row_without_a_rating_is_never_chosen_and_always_counted():
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
        ({"count": 4}, "4 rows are asked for, and 3 usable ones have a rating of any kind"),
        ({"fraction": 0.6, "threshold": 4.5}, "3 rows are asked for, and 2 usable .* at least 4.5"),
        ({"threshold": 5.1}, "no usable row has a rating of at least 5.1"),
        ({"count": 6}, "only 5 rows are usable"),
        ({"fraction": 2.0}, "select.fraction=2.0"),
        ({"rule": "data_by_ifd", "fraction": 0.5}, "select.rule=data_by_ifd"),
    ],
)
def test_more_rows_than_ratings_reach_is_a_user_error(asked, words):
    with pytest.raises(UserError, match=words):
        choose(MIXED, "rating", **asked)


# --- the reference's rules ---------------------------------------------------------------------


def by_data_by_ifd(lines, rate):
    """lines: (row, ifd, usable). Ascending, so that the last of equals is the later row."""
    kept = sorted((ifd, row) for row, ifd, usable in lines if usable)
    number = int(rate * len(kept))
    return sorted(row for _, row in kept[len(kept) - number :])


def by_select_from_ifd_json(lines, rate):
    """A stable sort: of equals, the first seen."""
    number = int(rate * len(lines))
    kept = [(row, ifd) for row, ifd, usable in lines if usable]
    return [row for row, _ in sorted(kept, key=lambda line: -line[1])[:number]]


def lines_with_ties(seed, number=100):
    source = np.random.default_rng(seed)
    lines = []
    for row in range(number):
        ifd = round(float(source.uniform(0.2, 1.2)), 1)
        lines.append((row, ifd, ifd <= 1 and source.random() < 0.9))
    return lines


def scores_of_lines(lines):
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
def test_the_references_rules_are_kept(seed, rate, order, rule, restated):
    lines = lines_with_ties(seed)
    expected = restated(lines, rate)
    assert expected
    scores = scores_of_lines(lines)
    assert chosen_rows(scores, fraction=rate, rule=rule, order=order) == expected


def test_the_references_rules_differ_from_each_other_and_from_ours():
    scores = scores_of([0.5] * 6 + [0.9] + [1.5] * 3, reasons=[None] * 7 + ["ifd_above_one"] * 3)
    assert chosen_rows(scores, fraction=0.5) == [0, 1, 6]
    assert chosen_rows(scores, fraction=0.5, rule="data_by_ifd") == [4, 5, 6]
    assert chosen_rows(scores, fraction=0.5, rule="select_from_ifd_json") == [6, 0, 1, 2, 3]


def test_the_references_rules_round_in_floating_point():
    scores = distinct(100)
    assert int(0.29 * 100) == 28
    assert choose(scores, fraction=0.29, rule="exact").height == 29
    assert choose(scores, fraction=0.29, rule="data_by_ifd").height == 28
    assert choose(scores, fraction=0.29, rule="select_from_ifd_json").height == 28


def test_the_rule_that_counts_all_rows_takes_what_is_usable():
    assert chosen_rows(SEVEN, fraction=0.9, rule="select_from_ifd_json") == [4, 1, 2, 5, 0]


def test_a_count_goes_before_the_number_of_a_reference_rule():
    scores = scores_of([0.5] * 10)
    assert chosen_rows(scores, fraction=0.9, count=2, rule="data_by_ifd") == [8, 9]
    assert chosen_rows(scores, fraction=0.9, count=2, rule="select_from_ifd_json") == [0, 1]


@pytest.mark.parametrize("rule", ["data_by_ifd", "select_from_ifd_json"])
@pytest.mark.parametrize("strategy", ["low_ifd", "high_conditioned", "random"])
def test_a_reference_rule_with_another_strategy_is_a_user_error(rule, strategy):
    with pytest.raises(UserError, match=f"select.rule={rule}.*select.rule=exact with {strategy}"):
        choose(SEVEN, strategy, count=1, rule=rule)


# --- files of chosen rows ----------------------------------------------------------------------

RECORDS = [
    {
        "id": 7,
        "instruction": "Grüße 🌅",
        "input": "",
        "output": 'two\nlines, "quoted" \\ and a tab\t',
        "tags": ["a", "é"],
        "meta": {"source": {"url": "x", "score": 0.25}, "ok": True, "none": None},
    },
    {
        "id": 3,
        "instruction": "NUL \x00, separator \u2028",
        "input": "in",
        "output": "42",
        "tags": [],
        "meta": {"source": {"url": "", "score": -1.5}, "ok": False, "none": None},
    },
]


def read_back(path):
    if path.suffix == ".parquet":
        return pl.read_parquet(path).to_dicts()
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return json.loads(text)
    lines = text.split("\n")
    assert lines.pop() == ""
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_records_round_trip_with_all_their_fields(tmp_path, suffix, ascii_only):
    texts = [json.dumps(record, ensure_ascii=ascii_only) for record in RECORDS]
    output = tmp_path / "deep" / f"cherry{suffix}"
    write_records(pl.Series(texts), output)
    assert read_back(output) == RECORDS
    assert [path.name for path in output.parent.iterdir()] == [output.name]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_an_old_file_is_replaced(tmp_path, suffix):
    output = tmp_path / f"cherry{suffix}"
    write_records(pl.Series([json.dumps(record) for record in RECORDS]), output)
    write_records(pl.Series(['{"a": 1}']), output)
    assert read_back(output) == [{"a": 1}]


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_json_keeps_a_record_to_the_letter(tmp_path, suffix):
    texts = ['{"n":1e2, "big": 12345678901234567890123, "s": "\\ud800\\u00e9"}', '{ "b" : 0.10 }']
    output = tmp_path / f"cherry{suffix}"
    write_records(pl.Series(texts), output)
    lines = [line.rstrip(",") for line in output.read_text(encoding="utf-8").splitlines()]
    assert lines == (["[", *texts, "]"] if suffix == ".json" else texts)


def test_fields_of_some_records_are_null_in_the_others_of_a_parquet_file(tmp_path):
    texts = ['{"a": "x"}'] * 300 + ['{"a": "y", "late": [{"b": 1}]}']
    write_records(pl.Series(texts), tmp_path / "cherry.parquet")
    written = read_back(tmp_path / "cherry.parquet")
    assert written[0] == {"a": "x", "late": None}
    assert written[-1] == {"a": "y", "late": [{"b": 1}]}


@pytest.mark.parametrize(
    "texts",
    [
        pytest.param(['{"a": NaN}'], id="nan"),
        pytest.param(['{"a": -Infinity}'], id="infinity"),
        pytest.param(['{"a": 1e400}'], id="beyond-float64"),
        pytest.param(['{"a": {}}'], id="empty-object"),
        pytest.param(['{"a": true}', '{"a": 1}'], id="bool-and-int"),
        pytest.param(['{"a": {"b": 1}}', '{"a": [1]}'], id="object-and-list"),
    ],
)
def test_what_parquet_cannot_hold_is_a_user_error_if_it_is_not_written(tmp_path, texts):
    output = tmp_path / "cherry.parquet"
    try:
        write_records(pl.Series(texts), output)
    except UserError:
        assert list(tmp_path.iterdir()) == []
    else:
        assert pl.read_parquet(output).height == len(texts)


@pytest.mark.parametrize("name", ["cherry.json", "cherry.jsonl", "sub/cherry.v1.parquet", "cherry"])
def test_known_suffixes_pass(name):
    check_output(Path(name))


@pytest.mark.parametrize("name", ["cherry.csv", "cherry.json.gz", "cherry.v2", "cherry.txt"])
def test_an_unknown_suffix_of_the_output_is_a_user_error(name):
    with pytest.raises(UserError, match=r"select\.output=.*\.json, \.jsonl, \.parquet"):
        check_output(Path(name))


# --- by answer tokens

TOKENS = SEVEN.with_columns(num_answer_tokens=pl.Series([5, 9, 2, 1, 7, 30, None], dtype=pl.UInt32))


def test_longest_takes_the_longest_answers() -> None:
    assert chosen_rows(TOKENS, "longest", count=2) == [1, 5]


def test_a_token_budget_takes_rows_in_order_until_it_is_spent() -> None:
    # The cherry order is 4, 1, 2, 5, 0, of 7, 9, 2, 30 and 5 answer tokens.
    for budget, rows in [(7, [4]), (15, [4]), (16, [1, 4]), (18, [1, 2, 4]), (47, [1, 2, 4])]:
        assert choose(TOKENS, count=5, num_tokens=budget)["row"].to_list() == rows
    with pytest.raises(UserError, match=r"select\.num_tokens=6 chooses no row"):
        choose(TOKENS, num_tokens=6)
