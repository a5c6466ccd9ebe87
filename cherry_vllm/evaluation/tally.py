"""Verdicts to the paper's figures: counts, winning score, position bias."""

import math
from typing import NamedTuple

import polars as pl

from cherry_vllm.evaluation.verdicts import DECIDED, Verdict

Z = 1.959964  # the 97.5% quantile of the normal distribution


class Tally(NamedTuple):
    """The figures of a group of questions; None as test set or category means all of them."""

    testset: str | None
    category: str | None
    questions: int
    win: int
    tie: int
    loss: int
    unparsed: int
    failed: int
    unanswered: int
    winning_score: float | None  # (win - loss) / (win + tie + loss) + 1
    interval: tuple[float, float] | None  # 95% (:func:`score_interval`)
    position_bias: float | None  # share of the decided questions whose verdict flips
    flips: int
    flips_to_assistant_1: int  # flips that prefer whichever answer is Assistant 1's


def tally(
    verdicts: pl.DataFrame, *, testset: str | None = None, category: str | None = None
) -> Tally:
    """The figures of a frame of :data:`VERDICTS`."""
    counts = {verdict: verdicts.filter(verdict=verdict.value).height for verdict in Verdict}
    win, tie, loss = (counts[verdict] for verdict in DECIDED)
    num_decided = win + tie + loss
    flipped = verdicts.filter("flips")
    to_assistant_1 = flipped.filter(pl.col("first_score") > pl.col("second_score"))
    return Tally(
        testset=testset,
        category=category,
        questions=verdicts.height,
        **{verdict.value: count for verdict, count in counts.items()},
        winning_score=(win - loss) / num_decided + 1 if num_decided else None,
        interval=score_interval(win, tie, loss) if num_decided else None,
        position_bias=flipped.height / num_decided if num_decided else None,
        flips=flipped.height,
        flips_to_assistant_1=to_assistant_1.height,
    )


def tally_groups(verdicts: pl.DataFrame) -> list[Tally]:
    """The figures of each test set and its categories, in order of appearance; then of all."""
    tallies = []
    testsets = verdicts.partition_by("testset", as_dict=True, maintain_order=True)
    for (testset,), group in testsets.items():
        tallies.append(tally(group, testset=testset))
        categories = group.drop_nulls("category")
        parts = categories.partition_by("category", as_dict=True, maintain_order=True)
        for (category,), part in parts.items():
            tallies.append(tally(part, testset=testset, category=category))
    if len(testsets) > 1:
        tallies.append(tally(verdicts))
    return tallies


def score_interval(win: int, tie: int, loss: int) -> tuple[float, float]:
    """The 95% interval of the winning score, after Bonett and Price (2012).

    Wins and losses are the discordant pairs of a paired comparison, so the score minus 1 is a
    difference of paired proportions. One win and one loss are added before the usual formula. The
    interval always contains the score. Unlike a bootstrap interval, it keeps its width if a few
    questions all have the same verdict.
    """
    total = win + tie + loss + 2
    won, lost = (win + 1) / total, (loss + 1) / total
    margin = Z * math.sqrt((won + lost - (won - lost) ** 2) / total)
    return max(0.0, won - lost - margin + 1), min(2.0, won - lost + margin + 1)
