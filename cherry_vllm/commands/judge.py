"""``cherry-vllm judge``: two models' answers to verdicts, or rows to ratings."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from cherry_vllm.commands import tables
from cherry_vllm.commands.inputs import (
    Job,
    Outcome,
    find_input,
    read_input,
)
from cherry_vllm.config import Config, JudgeConfig
from cherry_vllm.errors import UserError
from cherry_vllm.evaluation import aspects
from cherry_vllm.evaluation import pairwise as judging
from cherry_vllm.evaluation import ratings as rating
from cherry_vllm.evaluation.answers import read_pairs
from cherry_vllm.evaluation.endpoint import Endpoint, read_api_key
from cherry_vllm.evaluation.prompts import AspectRequests, PairRequests, RatingRequests
from cherry_vllm.evaluation.reviews import read_reviews
from cherry_vllm.evaluation.verdicts import Judgement
from cherry_vllm.options import Mode
from cherry_vllm.store.files import file_sha256
from cherry_vllm.store.locks import exclusive
from cherry_vllm.store.run_folder import name_data, name_scores, read_scores, scan_rows

log = logging.getLogger(__name__)


Work = Callable[[], tuple[list[Judgement], Counter[str]]]
"""Gives the judgements, and the reasons of requests that failed, counted."""


def judge(config: Config, job: Job) -> Outcome:
    """Has two models' answers compared, or adds up recorded reviews, or has rows rated."""
    run = {Mode.pairwise: _compare, Mode.rating: _rate, Mode.aspects: _rate_aspects}
    return run[config.judge.mode](config, job)


def _compare(config: Config, job: Job) -> Outcome:
    """Prints the table of two models' answers, judged in both orders."""
    run_dir, against = Path(config.run_dir), config.judge.against
    others = None if against is None else judging.read_others(Path(against))
    is_recorded = config.judge.reviews is not None
    work, settings = (_recorded if is_recorded else _to_ask)(config.judge, run_dir)
    with exclusive(run_dir):
        judgements, failures = work()
        tallies, agreement = judging.conclude(
            job.output_dir,
            judgements,
            failures=failures,
            others=others,
            seed=config.seed,
            settings={**settings, "against": against, "seed": config.seed},
        )
    print(tables.show_tallies(tallies))
    total = next(row for row in reversed(tallies) if row.category is None)
    print(tables.show_position_bias(total))
    if agreement:
        print(tables.show_agreement(agreement, str(against)))
    target = job.output_dir / "verdicts.parquet"
    print(f"verdicts: {target}")
    if failures:
        log.warning(tables.show_failures(failures))
    return Outcome(target, total._asdict())


def _recorded(settings: JudgeConfig, _run_dir: Path) -> tuple[Work, dict[str, Any]]:
    """Recorded reviews: nothing to ask. The work, and the settings that name it."""
    if settings.first is not None or settings.second is not None:
        raise UserError("judge.reviews: excludes judge.first and judge.second; give one or other")
    names = settings.reviews if isinstance(settings.reviews, list) else [settings.reviews]
    files = [Path(name) for name in names]
    judgements = read_reviews(files)
    return lambda: (judgements, Counter()), {"reviews": _hashes(files)}


def _to_ask(settings: JudgeConfig, run_dir: Path) -> tuple[Work, dict[str, Any]]:
    """Answers to be judged: the work, and the settings that name it, of which the key is none."""
    for name in ("first", "second"):
        if not getattr(settings, name):
            raise UserError(f"judge.{name}: not given; add judge.{name}=... (a file of answers)")
    files = [Path(str(settings.first)), Path(str(settings.second))]
    pairs = read_pairs(*files)
    request = _request_settings(settings)
    requests, endpoint = PairRequests(**request), _connect(settings)
    work = partial(
        judging.judge, run_dir, pairs, requests, endpoint, concurrency=settings.concurrency
    )
    return work, {"answers": _hashes(files), "base_url": settings.base_url, **request}


def _rate(config: Config, job: Job) -> Outcome:
    """Rates every row of a data set and prints the counts."""
    settings, run_dir = config.judge, Path(config.run_dir)
    _refuse_answers(settings, "data.path")
    files = find_input(config)
    request = _request_settings(settings)
    requests, endpoint = RatingRequests(**request), _connect(settings)
    with exclusive(run_dir):
        rows = read_input(config, files)
        ratings, failures = rating.rate(
            run_dir, rows.scan(), requests, endpoint, concurrency=settings.concurrency
        )
        counts = rating.write(
            job.output_dir,
            ratings,
            threshold=settings.threshold,
            failures=failures,
            origin=name_data(rows.summary["settings"]),
            settings={"rows": rows.fingerprint, "base_url": settings.base_url, **request},
        )
    print(tables.show_ratings(counts, settings.threshold))
    target = job.output_dir / "ratings.parquet"
    print(f"ratings: {target}")
    if failures:
        log.warning(tables.show_failures(failures))
    return Outcome(target, counts)


def _rate_aspects(config: Config, job: Job) -> Outcome:
    """Has instructions of high and of low IFD rated aspect by aspect, and prints the means."""
    settings, run_dir, scores_dir = config.judge, Path(config.run_dir), Path(config.scores_dir)
    _refuse_answers(settings, "the rows of a scored run")
    request = _request_settings(settings) | {"aspects": settings.aspects}
    scores = read_scores(scores_dir)
    sides = aspects.take_sides(scores, fraction=settings.fraction, count=settings.count)
    requests, endpoint = AspectRequests(**request), _connect(settings)
    with exclusive(run_dir):
        texts = scan_rows(scores_dir).select("row", "instruction", "input")
        rows = sides.lazy().join(texts, on="row", maintain_order="left").collect()
        ratings, failures = aspects.rate(
            run_dir, rows, requests, endpoint, concurrency=settings.concurrency
        )
        summary = aspects.summarize(ratings, requests.aspects)
        origin = {"scores": name_scores(scores_dir), "base_url": settings.base_url}
        aspects.write(
            job.output_dir, ratings, summary, failures=failures, settings={**origin, **request}
        )
    print(aspects.show(summary))
    target = job.output_dir / "aspects.parquet"
    print(f"aspects: {target}  picture: {target.with_suffix('.png')}")
    if failures:
        log.warning(tables.show_failures(failures))
    return Outcome(target, summary)


def _refuse_answers(settings: JudgeConfig, rated: str) -> None:
    if settings.first or settings.second or settings.reviews or settings.against:
        raise UserError(
            f"judge={settings.mode.value}: rates {rated}; give no answers, reviews or judge.against"
        )


def _request_settings(settings: JudgeConfig) -> dict[str, Any]:
    """What a request is made of, next to what the judge is shown."""
    if not settings.model:
        raise UserError("judge.model: not given; add judge.model=... (as the endpoint calls it)")
    return {"model": settings.model, "parameters": settings.parameters, **asdict(settings.prompt)}


def _connect(settings: JudgeConfig) -> Endpoint:
    return Endpoint(
        base_url=settings.base_url,
        api_key=read_api_key(settings.api_key_env),
        timeout_s=settings.timeout_s,
        max_tries=settings.max_tries,
        backoff_s=settings.backoff_s,
        max_wait_s=settings.max_wait_s,
    )


def _hashes(files: Sequence[Path]) -> list[list[str]]:
    return [[str(file), file_sha256(file)] for file in files]
