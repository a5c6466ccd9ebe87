"""The command `judge`: takes the typed configuration apart and hands plain arguments on."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from cherry_vllm.config import Config, JudgeConfig
from cherry_vllm.errors import UserError
from cherry_vllm.evaluation import judging, rating, tables
from cherry_vllm.evaluation.answers import read_pairs
from cherry_vllm.evaluation.endpoint import Endpoint, read_api_key
from cherry_vllm.evaluation.requests import Mode, PairRequests, RatingRequests
from cherry_vllm.evaluation.reviews import read_reviews
from cherry_vllm.evaluation.verdicts import Judgement
from cherry_vllm.stages import Job, Outcome, find_input, read_input
from cherry_vllm.store import exclusive, file_sha256

log = logging.getLogger(__name__)

Work = Callable[[], tuple[list[Judgement], Counter[str]]]
"""Gives the judgements, and the reasons of requests that failed, counted."""


def judge(config: Config, job: Job) -> Outcome:
    """Has two models' answers compared, or adds up recorded reviews, or has rows rated."""
    run = _rate if config.judge.mode is Mode.rating else _compare
    return run(config, job)


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
    print(tables.show_position_bias(tallies[-1]))
    if agreement:
        print(tables.show_agreement(agreement, str(against)))
    target = job.output_dir / "verdicts.parquet"
    print(f"verdicts: {target}")
    if failures:
        log.warning(tables.show_failures(failures))
    return Outcome(target, tallies[-1]._asdict())


def _recorded(settings: JudgeConfig, _run_dir: Path) -> tuple[Work, dict[str, Any]]:
    """Recorded reviews: nothing to ask. The work, and the settings that name it."""
    if settings.first is not None or settings.second is not None:
        raise UserError("judge.reviews: excludes judge.first and judge.second; give one or other")
    names = settings.reviews if isinstance(settings.reviews, list) else [settings.reviews]
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"judge.reviews={settings.reviews}: give a file, or a list of files")
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
    if settings.first or settings.second or settings.reviews or settings.against:
        raise UserError("judge=rating: rates data.path; give no answers, reviews or judge.against")
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
            settings={"rows": rows.fingerprint, "base_url": settings.base_url, **request},
        )
    print(tables.show_ratings(counts, settings.threshold))
    target = job.output_dir / "ratings.parquet"
    print(f"ratings: {target}")
    if failures:
        log.warning(tables.show_failures(failures))
    return Outcome(target, counts)


def _request_settings(settings: JudgeConfig) -> dict[str, Any]:
    """What a request is made of, next to what the judge is shown."""
    if not settings.model:
        raise UserError("judge.model: not given; add judge.model=... (as the endpoint calls it)")
    return {"model": settings.model, "parameters": settings.parameters, **asdict(settings.prompt)}


def _connect(settings: JudgeConfig) -> Endpoint:
    for name in ("concurrency", "timeout_s", "max_tries", "backoff_s", "max_wait_s"):
        if not getattr(settings, name) > 0:
            raise UserError(f"judge.{name}={getattr(settings, name)}: give a number above 0")
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
