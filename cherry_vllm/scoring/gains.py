"""What the instruction gains for each answer token: the columns beyond the mean losses.

gain_t       = c_t - d_t: the log-prob of token t given the instruction, minus that without it, nats
share_helped = share of a row's answer tokens with gain_t > 0
nats_saved   = sum of gain_t over a row's answer tokens
s_ifd        = exp(-mean of gain_t over the row's tokens with abs(gain_t) > threshold): S-IFD of
               T-SHIRT (arXiv 2506.01317)

The threshold is the (100 - percent)th percentile of abs(gain_t) over all tokens of all scored rows,
interpolated linearly between two tokens, as numpy does. It is exact, yet takes the memory of two
histograms: the bits of a float32 that is not negative are ordered as the numbers are. Gains are
taken in float32, as log-probs are stored; sums and means in float64.

A row gets no gains where its passes differ in their tokens (a tokenizer may join an answer's
beginning with what precedes it), or where a log-prob is not finite.
"""

from fractions import Fraction

import polars as pl

from cherry_vllm.schema import PASSES

FINE_BITS = 16  # of 32; the upper bits choose a bin of the first histogram


def row_gains() -> pl.Expr:
    """The gains of a row of :data:`schema.LOGPROBS`, of all its turns in order; or null."""
    conditioned, direct = map(pl.col, PASSES)
    lengths, others = (
        column.list.eval(pl.element().list.len()) for column in (conditioned, direct)
    )
    tokens, same = (
        pl.when(lengths == others).then(column.list.eval(pl.element().explode()))
        for column in (conditioned, direct)
    )
    gains = tokens - same
    return pl.when(gains.list.eval(pl.element().is_finite()).list.all()).then(gains)


def s_ifd(gains: pl.Expr, threshold: float) -> pl.Expr:
    """S-IFD of a row; null if no gain exceeds the threshold in size, or there are none."""
    exceeds = pl.element().abs().cast(pl.Float64) > threshold
    mean = gains.list.agg(pl.element().filter(exceeds).cast(pl.Float64).mean())
    return (-mean).exp()


def num_helped(gains: pl.Expr) -> pl.Expr:
    """How many of a row's answer tokens the instruction helps; null without gains."""
    return gains.list.eval(pl.element() > 0).list.sum()


def find_threshold(logprobs: pl.LazyFrame, percent: float) -> float | None:
    """The size that ``percent`` of all gains exceed, exactly; None if no row has gains.

    ``logprobs`` is a frame of :data:`schema.LOGPROBS`, which is read twice.
    """
    sizes = logprobs.select(row_gains().alias("size")).drop_nulls().explode("size")
    bits = sizes.select(bits=pl.col("size").abs().reinterpret(dtype=pl.UInt32))
    coarse = _count(bits.select(pl.col("bits") // 2**FINE_BITS))
    total = int(coarse["len"].sum())
    if not total:
        return None
    place = (100 - Fraction(str(percent))) / 100 * (total - 1)
    places = (int(place), min(int(place) + 1, total - 1))
    bins = [coarse["bits"][_find(coarse, wanted)] for wanted in places]
    fine = _count(bits.filter((pl.col("bits") // 2**FINE_BITS).is_in(bins)))
    before = int(coarse.filter(pl.col("bits") < bins[0])["len"].sum())
    low, high = (
        float(fine["bits"].reinterpret(dtype=pl.Float32)[_find(fine, wanted - before)])
        for wanted in places
    )
    return low + float(place % 1) * (high - low)


def _count(bits: pl.LazyFrame) -> pl.DataFrame:
    """How often each value of ``bits`` occurs, in order; at most 2**17 different values.

    Polars counts in 32 bits, and sums of such counts would begin again at 0.
    """
    counts = bits.group_by("bits").agg(pl.len().cast(pl.Int64))
    return counts.collect(engine="streaming").sort("bits")


def _find(counts: pl.DataFrame, place: int) -> int:
    """The line of ``counts`` that holds the value at ``place`` (from 0) in sorted order."""
    return int((counts["len"].cum_sum() <= place).sum())
