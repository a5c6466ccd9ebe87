"""A run folder to a page.

.../report.html    everything, in one file that needs no network
.../report/*.png   its figures, in light colours
"""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from cherry_vllm.errors import UserError
from cherry_vllm.experience.stored_embeddings import list_embeddings
from cherry_vllm.figures import instructions as instruction_figures
from cherry_vllm.figures import models as model_figures
from cherry_vllm.figures import scores as score_figures
from cherry_vllm.figures.figure import save_png
from cherry_vllm.figures.results import ScoredSelection
from cherry_vllm.reporting.artifacts import (
    find_aspects,
    find_check,
    find_jobs,
    find_losses,
    find_rows,
    find_scores,
    find_selection,
)
from cherry_vllm.reporting.extremes import count_first_words, find_samples, find_texts
from cherry_vllm.reporting.landscape import find_dominated, survey
from cherry_vllm.reporting.page import Page, render
from cherry_vllm.runtime.progress import Progress
from cherry_vllm.scoring.ifd import count_outcomes
from cherry_vllm.selection.sides import Side, label_sides
from cherry_vllm.store.marks import check_replaceable, own_file, own_folder
from cherry_vllm.store.run_folder import File, Folder
from cherry_vllm.store.scores import open_scores

log = logging.getLogger(__name__)

COMMAND = "report"
MODEL = "model.path=..."
FINGERPRINT = "fingerprint of the scores"


class Scored(NamedTuple):
    """A data set with its scores."""

    folder: Path
    manifest: dict[str, Any]  # score.json
    scores: pl.DataFrame  # of SCORES
    ranked: pl.DataFrame  # the usable rows, with their side
    rows: pl.LazyFrame | None  # of ROWS
    embeddings: pl.LazyFrame | None
    aspects: dict[str, Any] | None  # how a judge rated both sides
    selection: ScoredSelection | None  # of the run itself
    cuts: dict[str, float]  # of that selection, or else of a sweep's selections


def report(
    run_dir: Path,
    scores_dir: Path,
    output_dir: Path,
    *,
    mark_name: str,
    fraction: float,
    max_embeddings: int,
    num_clusters: int,
    num_examples: int,
    seed: int,
) -> tuple[Path, Page]:
    """Writes ``report.html`` and its figures, from all that ``run_dir`` holds.

    ``mark_name`` is the file name of a selection's mark. ``fraction`` is the share of the usable
    rows at each end of the IFD scale; the map shows at most ``max_embeddings`` rows.

    Raises:
        UserError: the folder holds nothing that a page could show, ``scores_dir`` holds no scores,
            or the page would replace something that is not ours.
    """
    for target in _find_targets(output_dir):
        check_replaceable(target, COMMAND)
    page = Page(name=run_dir.resolve().name, fraction=fraction)
    page.jobs, losses = find_jobs(run_dir, mark_name), find_losses(run_dir)
    folders, check = find_scores(run_dir, scores_dir), find_check(run_dir)
    if not (page.jobs or folders or losses.height or check):
        raise UserError(
            f"{run_dir}: nothing to report on; run `cherry-vllm score` or `cherry-vllm pipeline` "
            "with this run_dir first"
        )
    place = f"run_dir={run_dir}"
    if folders:
        for other in folders[1:]:
            log.warning("%s: not shown; scores_dir=%s shows it", other, other)
        scored = _load(run_dir, folders[0], page, mark_name)
        _add_scores(page, scored, place)
        _add_rows(page, scored, num_examples)
        _add_landscape(
            page, scored, place, max_rows=max_embeddings, num_clusters=num_clusters, seed=seed
        )
        _add_aspects(page, scored, place)
        _add_origin(page, scored)
    else:
        page.lack("Scores and their figures", "score", "data.path=...", MODEL, place)
    if losses.height:
        page.draw(model_figures.draw_losses(losses))
    else:
        page.lack("A model's loss curve", "train", "data.path=...", MODEL, place)
    _add_judgements(page, place)
    if check:
        _add_check(page, *check)
    return _write(page, output_dir), page


def _write(page: Page, output_dir: Path) -> Path:
    target, pictures = _find_targets(output_dir)
    with (
        Progress("drawing", unit="figures", total=len(page.figures)) as bar,
        own_folder(pictures, COMMAND) as folder,
    ):
        for name, figure in page.figures.items():
            save_png(folder / f"{name}.png", figure)
            bar.update()
    with own_file(target, COMMAND) as path:
        path.write_text(render(page), encoding="utf-8")
    return target


def _find_targets(output_dir: Path) -> tuple[Path, Path]:
    """The page, and the folder of its pictures."""
    return output_dir / File.REPORT, output_dir / Folder.REPORT


def _load(run_dir: Path, folder: Path, page: Page, mark_name: str) -> Scored:
    scores = open_scores(folder)
    found = {
        job.name: selection
        for job in page.jobs
        if (selection := find_selection(run_dir / job.name / mark_name, scores))
    }
    own = found.get(".")
    shown = [own] if own else sorted(found.values(), key=lambda item: item.rows.height)
    embeddings = list_embeddings(run_dir, scores)
    cuts = {f"{item.rows.height:,} rows": item.cut for item in shown if item.cut is not None}
    return Scored(
        folder=folder,
        manifest=scores.manifest,
        scores=scores.frame,
        ranked=label_sides(scores.frame, fraction=page.fraction),
        rows=find_rows(scores),
        embeddings=next((one.scan() for one in embeddings if one.is_complete()), None),
        aspects=find_aspects(run_dir, scores),
        selection=own,
        cuts=cuts,
    )


def _add_scores(page: Page, scored: Scored, place: str) -> None:
    scores, selection = scored.scores, scored.selection
    usable = count_outcomes(scores)["usable"]
    page.headline |= {"rows read": f"{scores.height:,}", "usable": f"{usable:,}"}
    if selection:
        page.headline["selected"] = f"{selection.rows.height:,}"
    if usable:
        page.headline["median IFD"] = f"{scored.ranked.select(pl.median('ifd')).item():.3f}"
    page.draw(score_figures.draw_ledger(scores, selection))
    page.draw(score_figures.draw_ifd(scores, selection, scored.cuts))
    page.draw(score_figures.draw_scores(scores, selection))
    page.draw(score_figures.draw_length(scores, selection))
    if not (selection or scored.cuts):
        elsewhere = [] if place == f"run_dir={scored.folder}" else [f"scores_dir={scored.folder}"]
        page.lack("A selection of these scores", "select", place, *elsewhere)


def _add_rows(page: Page, scored: Scored, num_examples: int) -> None:
    """Adds what the texts of the rows show, if their shards still exist."""
    if scored.rows is None:
        log.warning("%s: the row shards are gone; the page shows no texts", scored.folder)
        return
    ends = find_texts(scored.rows, scored.ranked.filter(pl.col("side") != Side.OTHERS.value))
    words = count_first_words(ends)
    if words.height:
        page.draw(instruction_figures.draw_words(words, page.fraction))
    page.samples = find_samples(scored.ranked, scored.rows, num_examples)


def _add_aspects(page: Page, scored: Scored, place: str) -> None:
    if scored.aspects:
        page.draw(instruction_figures.draw_aspects(scored.aspects))
    else:
        page.lack("How both ends differ", "judge", "judge=aspects", "judge.model=...", place)


def _add_landscape(
    page: Page, scored: Scored, place: str, *, max_rows: int, num_clusters: int, seed: int
) -> None:
    if scored.rows is None:
        return
    if scored.embeddings is None:
        page.lack("A map of the instructions", "embed", _data_path(scored), MODEL, place)
        return
    number = min(max_rows, scored.ranked.height)
    log.info("mapping %d of %d instructions", number, scored.ranked.height)
    landscape = survey(
        scored.ranked,
        scored.embeddings,
        scored.rows,
        max_rows=max_rows,
        num_clusters=num_clusters,
        seed=seed,
    )
    if landscape is None:
        log.warning("%s: too few different instructions for a map", scored.folder)
        return
    page.draw(instruction_figures.draw_landscape(landscape, scored.ranked.height, page.fraction))
    page.clusters = find_dominated(landscape)


def _add_judgements(page: Page, place: str) -> None:
    if not any(job.judgements for job in page.jobs):
        answers = ("judge.first=...", "judge.second=...", "judge.model=...")
        page.lack("Wins, ties and losses", "judge", *answers, place)
        return
    page.draw(model_figures.draw_verdicts(page.jobs))
    points = model_figures.find_points(page.jobs)
    if points.height:
        page.headline["best winning score"] = f"{points.select(pl.max('score')).item():.3f}"
    if points["rows"].n_unique() > 1:
        page.draw(model_figures.draw_winning_score(points))
    else:
        page.lack(
            "Winning score against data size, once each job\u2019s model is judged with "
            "run_dir=(the job\u2019s folder)",
            *("select", "-m", "select.fraction=0.05,0.1,0.15", place),
        )


def _add_check(page: Page, checked: str, facts: dict[str, str]) -> None:
    """Adds what was found of the engine of the run that is named ``checked``."""
    page.check = facts
    if page.origin and page.origin[FINGERPRINT] != checked:
        page.check = {"settings": "not those of the scores on this page"} | facts


def _data_path(scored: Scored) -> str:
    files = scored.manifest["read"]["files"]
    return f"data.path={files[0] if len(files) == 1 else '[' + ','.join(files) + ']'}"


def _add_origin(page: Page, scored: Scored) -> None:
    settings = scored.manifest["score"]["settings"]
    engine = settings["engine"]
    page.origin |= {
        "data": ", ".join(scored.manifest["read"]["files"]),
        "scores": str(scored.folder),
        FINGERPRINT: scored.manifest["fingerprint"],
        "longest prompt and answer": f"{settings['max_length']:,} tokens",
        "engine": f"{engine['name']}, {engine['dtype']}",
        "versions": ", ".join(
            f"{name} {version}" for name, version in scored.manifest["score"]["versions"].items()
        ),
        "prompt": settings["prompt"]["with_input"],
    }
