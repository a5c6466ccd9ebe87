"""Turns the judge's scores in both orders into one verdict per question."""

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import polars as pl

from cherry_vllm.errors import UserError
from cherry_vllm.evaluation.answers import AnswerPair
from cherry_vllm.evaluation.parsing import parse_scores
from cherry_vllm.evaluation.replies import Reply
from cherry_vllm.runtime.text import first_line
from cherry_vllm.schema import Schema


class Verdict(StrEnum):
    """How a question ended; the first answer is the side that wins or loses."""

    WIN = "win"  # better in both orders, or better in one and level in the other
    TIE = "tie"  # level in both, or better in one and worse in the other
    LOSS = "loss"
    UNPARSED = "unparsed"  # a reply that does not state two scores clearly
    FAILED = "failed"  # a request without a reply
    UNANSWERED = "unanswered"  # a model without an answer, so nothing was asked


DECIDED = [Verdict.WIN, Verdict.TIE, Verdict.LOSS]
VERDICT = pl.Enum([verdict.value for verdict in Verdict])
TEXT = pl.String | pl.Enum | pl.Categorical

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
    "flips": pl.Boolean,  # the two orders prefer different answers; null without a verdict
}


class Judgement(NamedTuple):
    """A pair and the replies in either order; None for a request that failed."""

    pair: AnswerPair
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


def read_verdicts(file: Path) -> pl.DataFrame:
    """The verdicts of another run.

    Raises:
        UserError: the file is not such a table.
    """
    try:
        frame = pl.read_parquet(file, glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(
            f"{file}: not readable ({first_line(error)}); give a verdicts.parquet"
        ) from None
    if not all(isinstance(frame.schema.get(name), TEXT) for name in ("pair", "verdict")):
        raise UserError(
            f"{file}: contains no verdicts; give a verdicts.parquet or a reviews .json file"
        )
    return frame.with_columns(pl.col("pair", "verdict").cast(pl.String))
