"""``cherry-vllm judge``: turns two models' answers into verdicts, or rows into ratings."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from cherry_vllm.commands import judgement_tables as tables
from cherry_vllm.commands.inputs import find_input, read_input
from cherry_vllm.commands.job import Job, Outcome
from cherry_vllm.config import Config, JudgeConfig, as_list
from cherry_vllm.conversation import show_conversations
from cherry_vllm.errors import UserError
from cherry_vllm.evaluation import aspects, pairwise, ratings
from cherry_vllm.evaluation.answers import read_pairs
from cherry_vllm.evaluation.endpoint import Endpoint, EndpointSettings
from cherry_vllm.evaluation.pairwise import Judged
from cherry_vllm.evaluation.prompts import (
    AspectRequests,
    JudgePrompt,
    PairRequests,
    RatingRequests,
    RequestSettings,
)
from cherry_vllm.evaluation.result_files import COMMAND
from cherry_vllm.evaluation.reviews import read_reviews
from cherry_vllm.options import Mode
from cherry_vllm.runtime.text import printable
from cherry_vllm.sources.row_shards import name_data
from cherry_vllm.store.hashes import file_sha256
from cherry_vllm.store.locks import exclusive
from cherry_vllm.store.marks import MADE_BY, check_replaceable, marked_file
from cherry_vllm.store.run_folder import File
from cherry_vllm.store.scores import open_scores

log = logging.getLogger(__name__)

Source = tuple[Callable[[], Judged], dict[str, Any]]
"""A function that returns the judgements, and the settings that say what they were made from."""


def judge(config: Config, job: Job) -> Outcome:
    """Compares two models' answers, adds up recorded reviews, or rates rows."""
    modes = {Mode.pairwise: _compare, Mode.rating: _rate, Mode.aspects: _rate_aspects}
    return modes[config.judge.mode](config, job)


def _compare(config: Config, job: Job) -> Outcome:
    """Prints the table of two models' answers, judged in both orders."""
    settings, run_dir, against = config.judge, Path(config.run_dir), config.judge.against
    others = None if against is None else pairwise.read_others(Path(against))
    is_recorded = settings.reviews is not None
    files = _review_files(settings) if is_recorded else _answer_files(settings)
    results = pairwise.find_results(job.output_dir)
    results.check([*files, *([] if against is None else [Path(against)])])
    get_judged, made_from = _recorded(files) if is_recorded else _asked(settings, run_dir, files)
    with exclusive(run_dir):
        judged = get_judged()
        tallies, agreement = pairwise.conclude(
            results, judged, others=others, settings={**made_from, "against": against}
        )
    print(tables.show_tallies(tallies))
    total = next(row for row in reversed(tallies) if row.category is None)
    print(tables.show_position_bias(total))
    if agreement:
        print(tables.show_agreement(agreement, printable(against)))
    print(printable(f"verdicts: {results.table}"))
    _warn(judged.failures, judged.ids_with_markers, "questions")
    return Outcome(results.table, total._asdict())


def _review_files(settings: JudgeConfig) -> list[Path]:
    if settings.first is not None or settings.second is not None:
        raise UserError("judge.reviews: excludes judge.first and judge.second; give only one kind")
    return [Path(name) for name in as_list(settings.reviews)]


def _answer_files(settings: JudgeConfig) -> list[Path]:
    for name in ("first", "second"):
        if not getattr(settings, name):
            raise UserError(f"judge.{name}: not given; add judge.{name}=... (a file of answers)")
    return [Path(str(settings.first)), Path(str(settings.second))]


def _recorded(files: Sequence[Path]) -> Source:
    judged = Judged(read_reviews(files))
    return lambda: judged, {"reviews": _hashes(files)}


def _asked(settings: JudgeConfig, run_dir: Path, files: Sequence[Path]) -> Source:
    pairs = read_pairs(*files)
    request = _request_settings(settings)
    requests, endpoint = PairRequests(request), Endpoint(_endpoint_settings(settings))
    made_from = {"answers": _hashes(files), **_describe(request, endpoint)}
    return partial(pairwise.judge, run_dir, pairs, requests, endpoint), made_from


def _rate(config: Config, job: Job) -> Outcome:
    """Rates every row of a data set and prints the counts."""
    settings, run_dir = config.judge, Path(config.run_dir)
    _refuse_answers(settings, "data.path")
    files = find_input(config)
    request = _request_settings(settings)
    requests, endpoint = RatingRequests(request), Endpoint(_endpoint_settings(settings))
    results = ratings.find_results(job.output_dir)
    results.check(files)
    with exclusive(run_dir):
        rows = read_input(config, files)
        rated = ratings.rate(run_dir, rows.scan(), requests, endpoint)
        counts = ratings.write(
            results,
            rated,
            threshold=settings.threshold,
            origin=name_data(rows.summary["settings"]),
            settings={"rows": rows.fingerprint, **_describe(request, endpoint)},
        )
    print(tables.show_ratings(counts, settings.threshold))
    print(printable(f"ratings: {results.table}"))
    _warn(rated.failures, rated.rows_with_markers, "rows")
    return Outcome(results.table, counts)


def _rate_aspects(config: Config, job: Job) -> Outcome:
    """Rates instructions of high and of low IFD aspect by aspect, and prints the means."""
    from cherry_vllm.figures.figure import save_png
    from cherry_vllm.figures.instructions import draw_aspects

    settings, run_dir, scores_dir = config.judge, Path(config.run_dir), Path(config.scores_dir)
    _refuse_answers(settings, "the rows of a scored run")
    request = _request_settings(settings)
    scores = open_scores(scores_dir)
    sides = aspects.highest_and_lowest(
        scores.frame, fraction=settings.fraction, count=settings.count
    )
    requests = AspectRequests(request, settings.aspects)
    endpoint = Endpoint(_endpoint_settings(settings))
    results, picture = aspects.find_results(job.output_dir), job.output_dir / File.ASPECT_PICTURE
    results.check([])
    check_replaceable(picture, COMMAND)
    with exclusive(run_dir):
        messages = scores.open_rows().scan().select("row", "messages", "tools")
        found = sides.lazy().join(messages, on="row", maintain_order="left").collect()
        rows = show_conversations(found)
        rated = aspects.rate(run_dir, rows, requests, endpoint)
        summary = aspects.summarize(rated.ratings, requests.aspects)
        made_from = {
            "scores": scores.fingerprint,
            "contents": scores.contents,
            "aspects": settings.aspects,
            **_describe(request, endpoint),
        }
        aspects.write(results, rated, summary, settings=made_from)
        with marked_file(picture, {MADE_BY: COMMAND, "drawn_from": results.summary.name}) as path:
            save_png(path, draw_aspects(summary))
    print(tables.show_aspects(summary))
    print(printable(f"aspects: {results.table}  picture: {picture}"))
    _warn(rated.failures, rated.rows_with_markers, "rows")
    return Outcome(results.table, summary)


def _refuse_answers(settings: JudgeConfig, rated: str) -> None:
    if settings.first or settings.second or settings.reviews or settings.against:
        raise UserError(
            f"judge={settings.mode.value}: rates {rated}; give no answers, reviews or judge.against"
        )


def _request_settings(settings: JudgeConfig) -> RequestSettings:
    if not settings.model:
        raise UserError("judge.model: not given; add judge.model=... (as the endpoint calls it)")
    return RequestSettings(
        model=settings.model,
        parameters=settings.parameters,
        response_format=settings.response_format,
        prompt=JudgePrompt(**asdict(settings.prompt)),
    )


def _endpoint_settings(settings: JudgeConfig) -> EndpointSettings:
    return EndpointSettings(
        base_url=settings.base_url,
        api_key_env=settings.api_key_env,
        concurrency=settings.concurrency,
        timeout_s=settings.timeout_s,
        max_tries=settings.max_tries,
    )


def _describe(request: RequestSettings, endpoint: Endpoint) -> dict[str, Any]:
    """What decides the replies, apart from what the judge is shown."""
    return {
        **asdict(request),
        "response_format": request.response_format.value,
        "base_url": endpoint.address,
    }


def _warn(failures: Mapping[str, int], with_markers: Sequence[str | int], unit: str) -> None:
    if failures:
        log.warning(tables.show_failures(failures))
    if with_markers:
        log.warning(tables.show_markers(with_markers, unit))


def _hashes(files: Sequence[Path]) -> list[list[str]]:
    return [[str(file), file_sha256(file)] for file in files]
