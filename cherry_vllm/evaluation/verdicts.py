"""Scores in both orders to verdicts, and verdicts to the paper's figures."""

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from cherry_vllm.errors import UserError
from cherry_vllm.evaluation.answers import Pair
from cherry_vllm.evaluation.parsing import parse_scores
from cherry_vllm.evaluation.replies import Reply
from cherry_vllm.schema import Schema

NUM_RESAMPLES = 10_000
INTERVAL = (0.025, 0.975)


class Verdict(StrEnum):
    """What became of a question; the first answer is the side that wins or loses."""

    WIN = "win"  # better in both orders, or better in one and level in the other
    TIE = "tie"  # level in both, or better in one and worse in the other
    LOSS = "loss"
    UNPARSED = "unparsed"  # a reply without two scores that can be told for certain
    FAILED = "failed"  # a request without a reply
    UNANSWERED = "unanswered"  # a model without an answer, so nothing was asked


DECIDED = [Verdict.WIN, Verdict.TIE, Verdict.LOSS]
VERDICT = pl.Enum([verdict.value for verdict in Verdict])

# One line per question: verdicts.parquet.
VERDICTS: Schema = {
    "testset": pl.String,
    "id": pl.String,
    "category": pl.String,
    "question": pl.String,
    "pair": pl.String,  # names the question and its two answers
    "request": pl.String,  # in replies.jsonl; null for recorded reviews
    "request_reversed": pl.String,
    "first_score": pl.Float64,  # of the first answer, shown as Assistant 1
    "second_score": pl.Float64,
    "first_score_reversed": pl.Float64,  # of the first answer, shown as Assistant 2
    "second_score_reversed": pl.Float64,
    "verdict": VERDICT,
    "flips": pl.Boolean,  # each order prefers another answer; null without a verdict
}


class Judgement(NamedTuple):
    """A pair and the replies in either order; None for a request that failed."""

    pair: Pair
    reply: Reply | None
    reply_reversed: Reply | None
    request: str | None = None
    request_reversed: str | None = None


def decide(judgements: Iterable[Judgement]) -> pl.DataFrame:
    """The verdicts, as a frame of :data:`VERDICTS` in the order given."""
    rows = pl.DataFrame(
        [_row(judgement) for judgement in judgements],
        schema={name: dtype for name, dtype in VERDICTS.items() if name != "flips"},
        orient="row",
    )
    margin = (pl.col("first_score") - pl.col("second_score")).sign()
    margin_reversed = (pl.col("first_score_reversed") - pl.col("second_score_reversed")).sign()
    both = margin + margin_reversed  # null unless all four scores are there
    decided = (
        pl.when(both > 0)
        .then(pl.lit(Verdict.WIN.value))
        .when(both < 0)
        .then(pl.lit(Verdict.LOSS.value))
        .when(both == 0)
        .then(pl.lit(Verdict.TIE.value))
    )
    return rows.with_columns(
        verdict=pl.coalesce("verdict", decided.otherwise(None).cast(VERDICT)),
        flips=margin * margin_reversed < 0,
    )


def _row(judgement: Judgement) -> tuple[str | float | None, ...]:
    pair, *replies = judgement[:3]
    scores = [reply and parse_scores(reply.text, is_whole=reply.is_whole) for reply in replies]
    in_order, reverse = (found or (None, None) for found in scores)
    missing = Verdict.UNPARSED if None in scores else None
    verdict = Verdict.FAILED if None in replies else missing
    if not pair.is_answered:
        verdict = Verdict.UNANSWERED
    names = (pair.testset, pair.id, pair.category, pair.question, pair.key, *judgement[3:])
    return (*names, *in_order, *reversed(reverse), verdict and verdict.value)


class Tally(NamedTuple):
    """The figures of a group of questions; None stands for every test set or category."""

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
    interval: tuple[float, float] | None  # 95%, by bootstrap over the questions
    position_bias: float | None  # share of the decided questions whose verdict flips
    flips: int
    flips_to_assistant_1: int  # those that prefer whichever answer is Assistant 1's


def tally(
    verdicts: pl.DataFrame, *, seed: int, testset: str | None = None, category: str | None = None
) -> Tally:
    """Counts a frame of :data:`VERDICTS`."""
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
        interval=bootstrap_interval(win, tie, loss, seed=seed) if num_decided else None,
        position_bias=flipped.height / num_decided if num_decided else None,
        flips=flipped.height,
        flips_to_assistant_1=to_assistant_1.height,
    )


def tally_groups(verdicts: pl.DataFrame, *, seed: int) -> list[Tally]:
    """Each test set, followed by its categories, in order of appearance; then all, if several."""
    tallies = []
    testsets = verdicts.partition_by("testset", as_dict=True, maintain_order=True)
    for (testset,), group in testsets.items():
        tallies.append(tally(group, seed=seed, testset=testset))
        categories = group.drop_nulls("category")
        parts = categories.partition_by("category", as_dict=True, maintain_order=True)
        for (category,), part in parts.items():
            tallies.append(tally(part, seed=seed, testset=testset, category=category))
    if len(testsets) > 1:
        tallies.append(tally(verdicts, seed=seed))
    return tallies


def bootstrap_interval(win: int, tie: int, loss: int, *, seed: int) -> tuple[float, float]:
    """The 95% interval of the winning score over questions drawn anew, with replacement."""
    num_decided = win + tie + loss
    shares = np.array([win, tie, loss]) / num_decided
    # Drawing questions with replacement and counting them is one multinomial draw.
    draws = np.random.default_rng(seed).multinomial(num_decided, shares, size=NUM_RESAMPLES)
    scores = (draws[:, 0] - draws[:, 2]) / num_decided + 1
    low, high = np.quantile(scores, INTERVAL)
    return float(low), float(high)


class Agreement(NamedTuple):
    """How far two judges agree on the questions that both decided."""

    questions: int
    equal: float | None  # share of equal verdicts
    kappa: float | None  # Cohen's; None where chance alone would make all equal


def compare(verdicts: pl.DataFrame, others: pl.DataFrame) -> Agreement:
    """Compares two judges' verdicts on the same answers, whatever ids the questions have."""
    left, right = (_decided_by_pair(frame) for frame in (verdicts, others))
    both = left.join(right, on=["pair", "occurrence"])
    if both.is_empty():
        return Agreement(0, None, None)
    equal = float((both["verdict"] == both["verdict_right"]).sum()) / both.height
    shares = [
        [(both[column] == verdict.value).sum() / both.height for verdict in DECIDED]
        for column in ("verdict", "verdict_right")
    ]
    by_chance = sum(mine * theirs for mine, theirs in zip(*shares, strict=True))
    kappa = (equal - by_chance) / (1 - by_chance) if by_chance < 1 else None
    return Agreement(both.height, equal, kappa)


def _decided_by_pair(frame: pl.DataFrame) -> pl.DataFrame:
    occurrence = pl.int_range(pl.len()).over("pair")
    numbered = frame.select("pair", "verdict", occurrence=occurrence)
    return numbered.filter(pl.col("verdict").is_in([verdict.value for verdict in DECIDED]))


def read_verdicts(file: Path) -> pl.DataFrame:
    """The verdicts that another run left.

    Raises:
        UserError: the file is no such table.
    """
    try:
        frame = pl.read_parquet(file, glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{file}: not readable ({reason}); give a verdicts.parquet") from None
    if not {"pair", "verdict"} <= set(frame.columns):
        raise UserError(f"{file}: no verdicts; give a verdicts.parquet or a reviews .json file")
    return frame
