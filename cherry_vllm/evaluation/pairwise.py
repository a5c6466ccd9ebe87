"""The way through the room: pairs to requests, replies, verdicts and figures.

run_dir/replies.jsonl   every reply (:mod:`asking`)
.../verdicts.parquet    one line per question (:data:`verdicts.VERDICTS`)
.../judge.json          settings, counts and figures
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from cherry_vllm import __version__
from cherry_vllm.evaluation.answers import Pair
from cherry_vllm.evaluation.endpoint import Endpoint
from cherry_vllm.evaluation.prompts import PairRequests, Request
from cherry_vllm.evaluation.requests import ask_all
from cherry_vllm.evaluation.reviews import read_reviews
from cherry_vllm.evaluation.verdicts import (
    Agreement,
    Judgement,
    Tally,
    compare,
    decide,
    read_verdicts,
    tally_groups,
)
from cherry_vllm.store.files import atomic_path, fingerprint, read_json, write_json

log = logging.getLogger(__name__)


def judge(
    run_dir: Path,
    pairs: Sequence[Pair],
    requests: PairRequests,
    endpoint: Endpoint,
    *,
    concurrency: int,
) -> tuple[list[Judgement], Counter[str]]:
    """Has every pair judged in both orders, and counts the reasons of requests that failed.

    Nothing is asked about a pair that lacks an answer.

    Raises:
        UserError: the endpoint refuses the settings or is down, or no request has a reply.
    """
    built = [_named(requests.build(pair)) if pair.is_answered else [] for pair in pairs]
    bodies = {name: body for both in built for name, body in both}
    replies, failures = ask_all(run_dir, bodies, endpoint, concurrency=concurrency)
    judgements = []
    for pair, both in zip(pairs, built, strict=True):
        if both:
            (name, _), (reverse, _) = both
            found = (replies.get(name), replies.get(reverse))
            judgements.append(Judgement(pair, *found, name, reverse))
        else:
            judgements.append(Judgement(pair, None, None))
    return judgements, failures


def _named(requests: Sequence[Request]) -> list[tuple[str, Request]]:
    return [(fingerprint(body), body) for body in requests]


def read_others(file: Path) -> pl.DataFrame:
    """Another judge's verdicts: a ``verdicts.parquet``, or recorded reviews.

    Raises:
        UserError: the file is neither.
    """
    if file.suffix == ".json":
        return decide(read_reviews([file]))
    return read_verdicts(file)


def conclude(
    output_dir: Path,
    judgements: Sequence[Judgement],
    *,
    failures: Mapping[str, int],
    others: pl.DataFrame | None,
    seed: int,
    settings: Mapping[str, Any],
) -> tuple[list[Tally], Agreement | None]:
    """Writes ``verdicts.parquet`` and ``judge.json``; returns the figures."""
    verdicts = decide(judgements)
    tallies = tally_groups(verdicts, seed=seed)
    agreement = None if others is None else compare(verdicts, others)
    manifest = output_dir / "judge.json"
    if manifest.is_file() and read_json(manifest)["settings"] != settings:
        log.warning("%s: verdicts of other settings are replaced; replies stay", output_dir)
    with atomic_path(output_dir / "verdicts.parquet") as path:
        verdicts.write_parquet(path)
    write_json(
        manifest,
        {
            "version": __version__,
            "settings": settings,
            "answered_by": _count_models(judgements),
            "figures": [row._asdict() for row in tallies],
            "agreement": agreement and agreement._asdict(),
            "failures": failures,
        },
    )
    return tallies, agreement


def _count_models(judgements: Sequence[Judgement]) -> dict[str, int]:
    """Replies per model, by the names that the endpoint gave."""
    replies = (reply for judgement in judgements for reply in judgement[1:3])
    return Counter(reply.model for reply in replies if reply and reply.model)
