"""How far two judges agree on the same answers."""

from typing import NamedTuple

import polars as pl

from cherry_vllm.evaluation.verdicts import DECIDED


class JudgeAgreement(NamedTuple):
    """How far two judges agree on the questions that both decided."""

    questions: int
    equal: float | None  # share of equal verdicts
    kappa: float | None  # Cohen's; None if chance alone would make all equal


def compare_judges(verdicts: pl.DataFrame, others: pl.DataFrame) -> JudgeAgreement:
    """The agreement of two judges on the same answers, whatever ids the questions have."""
    left, right = (_decided_by_pair(frame) for frame in (verdicts, others))
    both = left.join(right, on=["pair", "occurrence"])
    if both.is_empty():
        return JudgeAgreement(0, None, None)
    equal = float((both["verdict"] == both["verdict_right"]).sum()) / both.height
    shares = [
        [(both[column] == verdict.value).sum() / both.height for verdict in DECIDED]
        for column in ("verdict", "verdict_right")
    ]
    by_chance = sum(mine * theirs for mine, theirs in zip(*shares, strict=True))
    kappa = (equal - by_chance) / (1 - by_chance) if by_chance < 1 else None
    return JudgeAgreement(both.height, equal, kappa)


def _decided_by_pair(frame: pl.DataFrame) -> pl.DataFrame:
    occurrence = pl.int_range(pl.len()).over("pair")
    numbered = frame.select("pair", "verdict", occurrence=occurrence)
    return numbered.filter(pl.col("verdict").is_in([verdict.value for verdict in DECIDED]))
