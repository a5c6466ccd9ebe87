"""Token log-probs to scores, by hand; and how the outcomes are counted."""

import math
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from cherry_vllm.commands.summary import misfit_warning, summarize
from cherry_vllm.schema import LOGPROBS, SCORES, SUMS, DropReason
from cherry_vllm.scoring.ifd import aggregate_logprobs, count_outcomes, sum_logprobs

VALUES = ["conditioned_score", "direct_score", "ifd", "ifd_ppl"]
NAN, INFINITY = math.nan, math.inf


def aggregate_turns(*pairs: Any, reasons: Any = None, truncated: Any = None) -> pl.DataFrame:
    """Scores of rows given as (conditioned, direct) log-probs by turn, or None if not scored."""
    frame = pl.DataFrame(
        {
            "row": range(len(pairs)),
            "conditioned_logprobs": [pair and pair[0] for pair in pairs],
            "direct_logprobs": [pair and pair[1] for pair in pairs],
            "truncated": truncated or [pair and False for pair in pairs],
            "drop_reason": reasons or [None] * len(pairs),
        },
        schema=LOGPROBS,
    )
    return aggregate_logprobs(frame.lazy()).collect()


def aggregate(*pairs: Any, reasons: Any = None, truncated: Any = None) -> pl.DataFrame:
    """Scores of rows of a single turn."""
    turns = [pair and ([pair[0]], [pair[1]]) for pair in pairs]
    return aggregate_turns(*turns, reasons=reasons, truncated=truncated)


def with_outcomes(above: int = 0, usable: int = 0, **dropped: Any) -> pl.DataFrame:
    """A frame of scores with so many rows of each outcome."""
    lines: list[Any] = [(1.5, "ifd_above_one")] * above + [(0.5, None)] * usable
    lines += [(None, reason) for reason, count in dropped.items() for _ in range(count)]
    columns = dict.fromkeys(SCORES, None) | {
        "ifd": [ifd for ifd, _ in lines],
        "drop_reason": [reason for _, reason in lines],
    }
    return pl.DataFrame(columns, schema=SCORES)


# --- arithmetic --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conditioned", "direct", "conditioned_score", "direct_score", "ifd"),
    [
        ([-1.0], [-2.0], 1.0, 2.0, 0.5),
        ([-0.5, -1.5], [-3.0, -5.0], 1.0, 4.0, 0.25),
        ([-0.25, -0.5, -2.25], [-2.0, -1.0, -5.0], 1.0, 8 / 3, 0.375),
        ([0.0, 0.0], [-1.0, -3.0], 0.0, 2.0, 0.0),
        ([0.0, -3.0, 0.0, -1.0], [-0.5, -0.5, -0.5, -0.5], 1.0, 0.5, 2.0),
    ],
)
def test_scores_are_mean_losses_and_ifd_their_ratio(
    conditioned: list[float],
    direct: list[float],
    conditioned_score: float,
    direct_score: float,
    ifd: float,
) -> None:
    row = aggregate((conditioned, direct)).row(0, named=True)
    assert row["num_answer_tokens"] == len(conditioned)
    assert (row["conditioned_score"], row["direct_score"]) == (conditioned_score, direct_score)
    assert row["ifd"] == ifd
    expected = math.exp(conditioned_score) / math.exp(direct_score)
    assert row["ifd_ppl"] == pytest.approx(expected, rel=1e-12)
    assert row["drop_reason"] == ("ifd_above_one" if ifd > 1 else None)


def test_means_are_taken_in_float64() -> None:
    # 2**24 + 1 is no float32.
    row = aggregate(([-(2.0**24), -1.0], [-(2.0**24), -3.0])).row(0, named=True)
    assert row["conditioned_score"] == (2**24 + 1) / 2
    assert row["direct_score"] == (2**24 + 3) / 2


def test_log_probs_count_as_stored_in_float32() -> None:
    row = aggregate(([-0.1], [-0.3])).row(0, named=True)
    stored = pl.Series([0.1, 0.3], dtype=pl.Float32).cast(pl.Float64)
    assert row["conditioned_score"] == stored[0]
    assert row["conditioned_score"] != 0.1
    assert row["ifd"] == stored[0] / stored[1]


def test_the_papers_figures_come_out() -> None:
    # Figure 8: direct 0.914, conditioned 0.696, IFD 0.761.
    row = aggregate(([-0.6, -0.792], [-0.828, -1.0])).row(0, named=True)
    assert row["ifd"] == pytest.approx(0.761, abs=5e-4)


# --- the line at one ---------------------------------------------------------------------------


def test_an_ifd_of_exactly_one_is_kept() -> None:
    row = aggregate(([-0.7, -0.3], [-0.7, -0.3])).row(0, named=True)
    assert row["ifd"] == 1.0
    assert row["ifd_ppl"] == 1.0
    assert row["drop_reason"] is None


def test_an_ifd_slightly_above_one_is_dropped_with_its_scores_in_place() -> None:
    slightly = 1 + 2.0**-23  # the next float32
    row = aggregate(([-slightly], [-1.0])).row(0, named=True)
    assert row["drop_reason"] == "ifd_above_one"
    assert (row["conditioned_score"], row["direct_score"]) == (slightly, 1.0)
    assert row["ifd"] == slightly
    assert row["ifd_ppl"] == pytest.approx(math.exp(2.0**-23), rel=1e-12)


def test_an_ifd_slightly_below_one_is_kept() -> None:
    row = aggregate(([-1.0], [-1 - 2.0**-23])).row(0, named=True)
    assert row["ifd"] < 1
    assert row["drop_reason"] is None


# --- what is no number -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conditioned", "direct"),
    [
        ([NAN, -1.0], [-1.0, -1.0]),
        ([-1.0, -1.0], [-1.0, NAN]),
        ([NAN], [NAN]),
        ([-INFINITY, -1.0], [-1.0, -1.0]),
        ([-1.0, -1.0], [-INFINITY, -1.0]),
        ([-INFINITY], [-INFINITY]),
        ([-INFINITY, INFINITY], [-1.0, -1.0]),
        ([-1.0], [0.0]),
        ([0.0, 0.0], [0.0, 0.0]),
        ([-1.0], [-0.0]),
    ],
)
def test_a_score_that_is_no_finite_number_is_null_and_named(
    conditioned: list[float], direct: list[float]
) -> None:
    scores = aggregate(([-1.0], [-2.0]), (conditioned, direct), ([-1.0], [-4.0]))
    assert scores["drop_reason"].to_list() == [None, "non_finite", None]
    assert scores.select(VALUES).row(1) == (None, None, None, None)
    assert scores["num_answer_tokens"].to_list() == [1, len(conditioned), 1]
    assert scores["ifd"].to_list() == [0.5, None, 0.25]


# --- conversations ------------------------------------------------------------------------------


def test_both_means_are_over_the_tokens_of_all_turns() -> None:
    turns = [[-1.0, -2.0], [-3.0], [-0.5] * 4], [[-4.0, -2.0], [-6.0], [-1.0] * 4]
    row = aggregate_turns(turns).row(0, named=True)
    assert (row["num_turns"], row["num_answer_tokens"]) == (3, 7)
    assert row["conditioned_score"] == 8 / 7
    assert row["direct_score"] == 16 / 7
    assert row["ifd"] == 0.5
    assert row["turn_ifd"] == [0.5, 0.5, 0.5]


def test_a_turn_without_a_number_has_no_ifd_and_the_others_have_theirs() -> None:
    turns = [[-1.0], [-3.0], [NAN]], [[-4.0], [0.0], [-1.0]]
    (row,) = aggregate_turns(turns).iter_rows(named=True)
    assert row["turn_ifd"] == [0.25, None, None]
    assert row["drop_reason"] == "non_finite"
    (row,) = aggregate_turns(([[-1.0], [-3.0]], [[-4.0], [0.0]])).iter_rows(named=True)
    assert (row["turn_ifd"], row["ifd"], row["drop_reason"]) == ([0.25, None], 1.0, None)


# --- rows that were not scored -----------------------------------------------------------------


@pytest.mark.parametrize(
    "reason", ["malformed", "empty_answer", "refusal", "out_of_vocabulary", "prompt_too_long"]
)
def test_a_row_dropped_before_keeps_its_reason_and_has_no_score(reason: str) -> None:
    scores = aggregate(None, ([-1.0], [-2.0]), reasons=[reason, None])
    assert scores["drop_reason"].to_list() == [reason, None]
    assert scores.drop("row", "drop_reason").row(0) == (None,) * 11


def test_order_schema_and_truncation_are_kept() -> None:
    pairs = [([-float(i)], [-8.0]) if i % 3 else None for i in range(10)]
    reasons = [None if pair else "empty_answer" for pair in pairs]
    cut = [pair and row % 2 == 0 for row, pair in enumerate(pairs)]
    scores = aggregate(*pairs, reasons=reasons, truncated=cut)
    assert scores.schema == pl.Schema(SCORES)
    assert scores["row"].to_list() == list(range(10))
    assert scores["truncated"].to_list() == cut
    expected = [None if pair is None else row / 8 for row, pair in enumerate(pairs)]
    assert scores["ifd"].to_list() == expected


def test_nothing_scored_is_a_frame_of_the_same_schema() -> None:
    scores = aggregate(None, None, reasons=["malformed", "empty_answer"])
    assert scores.schema == pl.Schema(SCORES)
    assert scores.height == 2


def test_shards_do_not_change_a_score() -> None:
    pairs = [([-0.1 * i, -0.7], [-1.1, -0.3 * i]) for i in range(1, 9)]
    parts = [aggregate(*pairs[:3]), aggregate(*pairs[3:])]
    joined = pl.concat(parts).with_columns(row=pl.int_range(8, dtype=pl.Int64))
    assert_frame_equal(aggregate(*pairs), joined, check_exact=True)


# --- counting ----------------------------------------------------------------------------------


def test_outcomes_add_up_to_the_rows() -> None:
    scores = aggregate(
        ([-1.0], [-2.0]),
        ([-2.0], [-1.0]),
        ([NAN], [-1.0]),
        None,
        ([-1.0], [-1.0]),
        None,
        None,
        reasons=[None, None, None, "malformed", None, "refusal", "malformed"],
    )
    outcomes = count_outcomes(scores)
    assert {name: count for name, count in outcomes.items() if count} == {
        "usable": 2,
        "ifd_above_one": 1,
        "non_finite": 1,
        "malformed": 2,
        "refusal": 1,
    }
    assert set(outcomes) == {"usable", *(reason.value for reason in DropReason)}
    assert sum(outcomes.values()) == scores.height


def test_every_reason_is_counted_by_itself() -> None:
    numbers = {reason.value: number for number, reason in enumerate(DropReason, 1)}
    above = numbers.pop("ifd_above_one")
    outcomes = count_outcomes(with_outcomes(above=above, usable=20, **numbers))
    assert outcomes == {"usable": 20, "ifd_above_one": above, **numbers}


def test_the_summary_shows_every_number() -> None:
    scores = with_outcomes(above=11, usable=22, malformed=33, refusal=44)
    scores = scores.with_columns(truncated=pl.col("ifd").is_not_null())
    lines = [line.split() for line in summarize(scores, num_selected=5).splitlines()]
    numbers = {" ".join(line[:-2]): line[-2] for line in lines[:-1]}
    assert numbers == {
        "rows read": "110",
        "scored": "33",
        "of these, answer cut at max_length": "33",
        "dropped: malformed": "33",
        "dropped: refusal": "44",
        "dropped: ifd_above_one": "11",
        "usable": "22",
        "selected": "5",
    }
    assert lines[-1][-3:] == ["0.500", "0.500", "0.500"]


# --- the warning -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("above", "usable"),
    [(0, 10), (1, 2), (33, 66), (33, 67), (100, 200), (0, 0)],
)
def test_no_warning_up_to_a_third_above_one(above: int, usable: int) -> None:
    assert misfit_warning(with_outcomes(above, usable, malformed=3)) is None


@pytest.mark.parametrize(("above", "usable"), [(1, 1), (34, 66), (101, 200), (1, 0)])
def test_a_warning_from_more_than_a_third_above_one(above: int, usable: int) -> None:
    warning = misfit_warning(with_outcomes(above, usable)) or ""
    assert f"{above} of {above + usable} scored rows" in warning
    assert "prompt=" in warning


def test_rows_without_a_score_do_not_hide_a_misfit() -> None:
    scores = with_outcomes(above=2, usable=3, malformed=100, non_finite=50, empty_answer=10)
    assert "2 of 5 scored rows" in str(misfit_warning(scores))


def test_sums_alone_give_the_same_scores() -> None:
    generator = np.random.default_rng(0)
    lists = [(-generator.gamma(2.0, 1.0, (2, length))).tolist() for length in range(1, 60)]
    lists += [[[math.nan], [-1.0]], [[-1.0], [-INFINITY]], [[-2.0], [-1.0, -0.5]]]
    lists = [[[conditioned], [direct]] for conditioned, direct in lists]
    lists += [[[[-1.0], [-2.0, -3.0]], [[-2.0, -1.0], [-0.5]]], [[[-1.0]] * 3, [[-2.0]] * 3]]
    frame = pl.LazyFrame(
        {
            "row": range(len(lists) + 1),
            "conditioned_logprobs": [*(pair[0] for pair in lists), None],
            "direct_logprobs": [*(pair[1] for pair in lists), None],
            "truncated": [*(False for _ in lists), None],
            "drop_reason": [*(None for _ in lists), "malformed"],
        },
        schema=LOGPROBS,
    )
    sums = sum_logprobs(frame).collect()
    assert sums.schema == pl.Schema(SUMS)
    assert_frame_equal(
        aggregate_logprobs(sums.lazy()).collect(),
        aggregate_logprobs(frame).collect(),
        check_exact=True,
    )
