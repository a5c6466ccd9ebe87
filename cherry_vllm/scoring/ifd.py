"""Token log-probs to scores: the Polars stage (paper, section 2.2).

s(A|Q) = -mean log P(a_i | Q, a_<i)        conditioned score
s(A)   = -mean log P(a_i | a_<i)           direct score
IFD    = s(A|Q) / s(A)

In a conversation, Q is all that precedes an answer, and both means are over the tokens of all
answers that are scored. :mod:`scoring.gains` has the columns that need each token.
"""

import polars as pl

from cherry_vllm.schema import GAINS, REASON, SCORES, SUMS, DropReason
from cherry_vllm.scoring.gains import num_helped, row_gains, s_ifd


def sum_logprobs(logprobs: pl.LazyFrame) -> pl.LazyFrame:
    """Turns a frame of :data:`schema.LOGPROBS` into one of :data:`schema.SUMS`."""
    return _add_sums(logprobs).select(list(SUMS))


def _add_sums(logprobs: pl.LazyFrame) -> pl.LazyFrame:
    return logprobs.with_columns(
        num_answer_tokens=_count_by_turn("conditioned_logprobs"),
        conditioned_sum=_sum_by_turn("conditioned_logprobs"),
        num_direct_tokens=_count_by_turn("direct_logprobs"),
        direct_sum=_sum_by_turn("direct_logprobs"),
        num_helped_tokens=num_helped(row_gains()).cast(pl.UInt32),
    )


def aggregate_logprobs(logprobs: pl.LazyFrame, threshold: float | None = None) -> pl.LazyFrame:
    """Turns a frame of :data:`schema.LOGPROBS`, or of their :data:`schema.SUMS`, into one of
    :data:`schema.SCORES`, row by row.

    A score that is not finite is null with ``drop_reason`` "non_finite". An IFD above 1, strictly,
    gets "ifd_above_one" and keeps its scores. ``s_ifd`` needs log-probs and the ``threshold`` of
    :func:`gains.find_threshold`, and is null without either.
    """
    is_summed = "conditioned_sum" in logprobs.collect_schema()
    if is_summed or threshold is None:
        selective = pl.lit(None, pl.Float64)
    else:
        selective = s_ifd(row_gains(), threshold)
    with_s_ifd = logprobs.with_columns(s_ifd=selective)
    sums = with_s_ifd if is_summed else _add_sums(with_s_ifd)
    by_turn = ["num_answer_tokens", "conditioned_sum", "num_direct_tokens", "direct_sum"]
    is_same = pl.col("has_same_tokens")
    scored = (
        sums.with_columns(
            has_same_tokens=pl.col("num_answer_tokens") == pl.col("num_direct_tokens"),
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
            share_helped=pl.col("num_helped_tokens") / pl.col("num_answer_tokens"),
            nats_saved=pl.when(is_same).then(pl.col("conditioned_sum") - pl.col("direct_sum")),
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
        .with_columns(pl.when(finite).then(pl.col([*values, *GAINS])))
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
