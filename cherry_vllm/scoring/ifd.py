"""Token log-probs to scores: the Polars stage (paper, section 2.2).

s(A|Q) = -mean log P(a_i | Q, a_<i)        conditioned score
s(A)   = -mean log P(a_i | a_<i)           direct score
IFD    = s(A|Q) / s(A)

In a conversation, Q is all that precedes an answer, and both means are over the tokens of all
answers that are scored.
"""

import polars as pl

from cherry_vllm.schema import REASON, SCORES, SUMS, DropReason


def sum_logprobs(logprobs: pl.LazyFrame) -> pl.LazyFrame:
    """Turns a frame of :data:`schema.LOGPROBS` into one of :data:`schema.SUMS`."""
    return logprobs.with_columns(
        num_answer_tokens=_count_by_turn("conditioned_logprobs"),
        conditioned_sum=_sum_by_turn("conditioned_logprobs"),
        num_direct_tokens=_count_by_turn("direct_logprobs"),
        direct_sum=_sum_by_turn("direct_logprobs"),
    ).select(list(SUMS))


def aggregate_logprobs(logprobs: pl.LazyFrame) -> pl.LazyFrame:
    """Turns a frame of :data:`schema.LOGPROBS`, or of their :data:`schema.SUMS`, into one of
    :data:`schema.SCORES`, row by row.

    A score that is not finite is null with ``drop_reason`` "non_finite". An IFD above 1, strictly,
    gets "ifd_above_one" and keeps its scores.
    """
    is_summed = "conditioned_sum" in logprobs.collect_schema()
    sums = logprobs if is_summed else sum_logprobs(logprobs)
    by_turn = ["num_answer_tokens", "conditioned_sum", "num_direct_tokens", "direct_sum"]
    scored = (
        sums.with_columns(
            num_turns=pl.col("num_answer_tokens").list.len(),
            turn_ifd=_turn_ifd(),
            **{name: pl.col(name).list.sum() for name in by_turn},
        )
        .with_columns(
            conditioned_score=-pl.col("conditioned_sum") / pl.col("num_answer_tokens"),
            direct_score=-pl.col("direct_sum") / pl.col("num_direct_tokens"),
        )
        .with_columns(
            ifd=pl.col("conditioned_score") / pl.col("direct_score"),
            ifd_ppl=(pl.col("conditioned_score") - pl.col("direct_score")).exp(),
        )
    )
    values = ["conditioned_score", "direct_score", "ifd", "ifd_ppl"]
    was_scored = pl.col("num_turns").is_not_null()
    finite = pl.all_horizontal(pl.col(values).is_finite())
    return (
        scored.with_columns(
            drop_reason=pl.when(was_scored & ~finite)
            .then(pl.lit(DropReason.NON_FINITE.value, REASON))
            .when(was_scored & (pl.col("ifd") > 1))
            .then(pl.lit(DropReason.IFD_ABOVE_ONE.value, REASON))
            .otherwise("drop_reason")
        )
        .with_columns(pl.when(finite).then(pl.col(values)))
        .select(list(SCORES))
        .cast(SCORES)  # type: ignore[arg-type]
    )


def _count_by_turn(column: str) -> pl.Expr:
    return pl.col(column).list.eval(pl.element().list.len())


def _sum_by_turn(column: str) -> pl.Expr:
    # In float64: a sum of float32 log-probs would lose digits that the ratio shows.
    return pl.col(column).list.eval(pl.element().cast(pl.List(pl.Float64)).list.sum())


def _turn_ifd() -> pl.Expr:
    mean = pl.col("conditioned_sum") / pl.col("num_answer_tokens")
    direct_mean = pl.col("direct_sum") / pl.col("num_direct_tokens")
    ratio = pl.element()
    return (mean / direct_mean).list.eval(pl.when(ratio.is_finite()).then(ratio))


def count_outcomes(scores: pl.DataFrame) -> dict[str, int]:
    """How many rows are usable, and how many have each drop reason; the counts add up to all."""
    counts = dict(scores["drop_reason"].value_counts().iter_rows())
    reasons = {reason.value: counts.get(reason.value, 0) for reason in DropReason}
    return {"usable": counts.get(None, 0), **reasons}
