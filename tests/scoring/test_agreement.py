"""How far two engines' log-probs are apart, and what counts as too far."""

from dataclasses import replace
from typing import Any

import polars as pl
import pytest

from cherry_vllm.schema import LOGPROBS
from cherry_vllm.scoring.agreement import Agreement, compare, usual_bounds
from tests.made_up import made_up_logprobs

ROWS = 30
FULL, HALF = usual_bounds("float32"), usual_bounds("bfloat16")


def shifted(frame: pl.DataFrame, by: float, every: int = 1) -> pl.DataFrame:
    """With other conditioned log-probs in every so many rows."""
    column = pl.col("conditioned_logprobs")
    moved = column.list.eval(pl.element().list.eval(pl.element() + by))
    chosen = pl.when(pl.col("row") % every == 0).then(moved).otherwise(column)
    return frame.with_columns(conditioned_logprobs=chosen).cast(LOGPROBS)  # type: ignore[arg-type]


def test_the_same_log_probs_agree_in_everything() -> None:
    frame = made_up_logprobs(ROWS)
    found = compare(frame, frame)
    assert found.num_compared == frame["conditioned_logprobs"].is_not_null().sum()
    assert found.spearman == pytest.approx(1)
    assert {it.largest for it in found.differences.values()} == {0}
    assert found.num_other_tokens == found.num_scored_by_one == found.num_crossed == 0
    assert all(left == right for left, right in found.outcomes.values())
    assert FULL.find_faults(found) == []


def test_differences_are_of_tokens_scores_and_ratios() -> None:
    frame = made_up_logprobs(ROWS)
    found = compare(shifted(frame, -0.01), frame).differences
    assert found["conditioned_score"].median == pytest.approx(0.01, rel=1e-3)
    assert found["direct_score"].largest == 0
    assert found["logprob"].p99 == pytest.approx(0.01, rel=1e-3)
    assert 0 < found["ifd"].median <= found["ifd"].p99 <= found["ifd"].largest


def test_each_bound_is_told_in_a_line_and_half_precision_has_wider_ones() -> None:
    frame = made_up_logprobs(ROWS)
    found = compare(shifted(frame, -0.01), frame)
    assert [line.split(" of ")[0] for line in FULL.find_faults(found)] == [
        "99th percentile",
        "median difference",
    ]
    assert HALF.find_faults(found) == []
    apart = compare(shifted(frame, -5, every=2), frame)
    assert any(line.startswith("Spearman") for line in HALF.find_faults(apart))
    assert replace(HALF, min_spearman=-1).find_faults(apart) != []


def test_rows_that_one_did_not_score_or_with_other_tokens_are_counted_not_compared() -> None:
    frame = made_up_logprobs(ROWS)
    no_number = shifted(frame.head(2), float("nan")).vstack(frame.tail(-2))
    found = compare(no_number, frame)
    assert (found.num_scored_by_one, found.outcomes["non_finite"]) == (1, [1, 0])
    assert any("only one of the two" in line for line in HALF.find_faults(found))
    longer = frame.with_columns(
        pl.col("direct_logprobs").list.eval(
            pl.element().list.concat(pl.lit([-1.0], pl.List(pl.Float32)))
        )
    )
    found = compare(longer.cast(LOGPROBS), frame)  # type: ignore[arg-type]
    assert found.num_compared == 0
    assert found.num_other_tokens > 0
    assert found.differences == {}
    assert HALF.find_faults(found) == [f"{found.num_other_tokens} rows with other tokens"]


def test_rows_around_an_ifd_of_one_are_counted_as_crossed() -> None:
    rows = [
        {"row": n, "conditioned_logprobs": [[-one]], "direct_logprobs": [[-1.0]]}
        for n, one in enumerate((0.5, 0.9999, 1.2))
    ]
    nothing: dict[str, Any] = {"truncated": False, "drop_reason": None}
    frame = pl.DataFrame([row | nothing for row in rows], schema=LOGPROBS)
    found: Agreement = compare(shifted(frame, -0.0002), frame)
    assert (found.num_crossed, found.num_scored_by_one) == (1, 0)
    assert found.outcomes == {"usable": [1, 2], "ifd_above_one": [2, 1]}


def test_too_few_rows_have_no_order() -> None:
    frame = made_up_logprobs(ROWS).filter(pl.col("row").is_in([1, 2]))
    assert compare(frame, frame).spearman is None
