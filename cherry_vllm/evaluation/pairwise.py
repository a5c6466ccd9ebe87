"""Two models' answers to verdicts and figures.

run_dir/replies.jsonl   every reply (:mod:`requests`)
.../verdicts.parquet    one line per question (:data:`verdicts.VERDICTS`)
.../judge.json          settings, counts and figures
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from cherry_vllm.evaluation.answers import AnswerPair
from cherry_vllm.evaluation.endpoint import Endpoint
from cherry_vllm.evaluation.judge_agreement import JudgeAgreement, compare_judges
from cherry_vllm.evaluation.prompts import PairRequests
from cherry_vllm.evaluation.replies import Reply
from cherry_vllm.evaluation.requests import ask_all, name_request
from cherry_vllm.evaluation.result_files import ResultFiles
from cherry_vllm.evaluation.reviews import read_reviews
from cherry_vllm.evaluation.tally import Tally, tally_groups
from cherry_vllm.evaluation.verdicts import Judgement, decide, read_verdicts
from cherry_vllm.store.run_folder import File

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judged:
    """Judgements, in the order of the pairs, and what went wrong or is doubtful about them."""

    judgements: Sequence[Judgement]
    failures: Counter[str] = field(default_factory=Counter)  # reasons of failed requests
    ids_with_markers: Sequence[str] = ()  # questions whose texts contain the prompt's markers


def judge(
    run_dir: Path, pairs: Sequence[AnswerPair], requests: PairRequests, endpoint: Endpoint
) -> Judged:
    """Has the judge compare every pair in both orders.

    A pair that lacks an answer is not sent to the judge.

    Raises:
        UserError: the endpoint refuses the settings or is down, or no request has a reply.
    """
    built = [requests.build(pair) if pair.is_answered else () for pair in pairs]
    named = [{name_request(body, endpoint): body for body in both} for both in built]
    responses = ask_all(run_dir, {name: both[name] for both in named for name in both}, endpoint)
    judgements = [
        _find_judgement(pair, list(both), responses.replies)
        for pair, both in zip(pairs, named, strict=True)
    ]
    with_markers = [
        pair.id
        for pair in pairs
        if pair.is_answered
        and requests.holds_marker([pair.question, pair.input, pair.first, pair.second])
    ]
    return Judged(judgements, responses.failures, with_markers)


def _find_judgement(
    pair: AnswerPair, names: Sequence[str], replies: Mapping[str, Reply]
) -> Judgement:
    if not names:
        return Judgement(pair, None, None)
    in_order, reverse = names[0], names[-1]  # one request if both answers are the same
    return Judgement(pair, replies.get(in_order), replies.get(reverse), in_order, reverse)


def read_others(file: Path) -> pl.DataFrame:
    """Another judge's verdicts, from a ``verdicts.parquet`` or from recorded reviews.

    Raises:
        UserError: the file is neither.
    """
    if file.suffix == ".json":
        return decide(read_reviews([file]))
    return read_verdicts(file)


def find_results(output_dir: Path) -> ResultFiles:
    return ResultFiles(output_dir / File.VERDICTS, output_dir / File.VERDICT_SUMMARY)


def conclude(
    results: ResultFiles,
    judged: Judged,
    *,
    others: pl.DataFrame | None,
    settings: Mapping[str, Any],
) -> tuple[list[Tally], JudgeAgreement | None]:
    """Writes the verdicts and their summary; returns the figures."""
    verdicts = decide(judged.judgements)
    tallies = tally_groups(verdicts)
    agreement = None if others is None else compare_judges(verdicts, others)
    before = results.read_summary()
    if before and before["settings"] != settings:
        log.warning("%s: verdicts of other settings are replaced; replies stay", results.table)
    results.write(
        verdicts,
        {
            "settings": settings,
            "answered_by": _count_models(judged.judgements),
            "figures": [row._asdict() for row in tallies],
            "agreement": agreement and agreement._asdict(),
            "failures": judged.failures,
            "with_markers": judged.ids_with_markers,
        },
    )
    return tallies, agreement


def _count_models(judgements: Sequence[Judgement]) -> dict[str, int]:
    """Replies per model, by the names that the endpoint gave."""
    replies = (reply for judgement in judgements for reply in judgement[1:3])
    return Counter(reply.model for reply in replies if reply and reply.model)
