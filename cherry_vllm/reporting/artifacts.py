"""Finds what a run folder holds, from a single stage, the whole method or a sweep."""

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import polars as pl

from cherry_vllm.errors import UserError
from cherry_vllm.figures.results import JobResult, ScoredSelection
from cherry_vllm.runtime.text import first_line
from cherry_vllm.scoring.check_result import describe
from cherry_vllm.selection.choice import Choice
from cherry_vllm.selection.chosen_rows import open_selection
from cherry_vllm.selection.sides import Side
from cherry_vllm.store.files import read_json
from cherry_vllm.store.marks import SUFFIX as MARK_SUFFIX
from cherry_vllm.store.marks import is_ours
from cherry_vllm.store.run_folder import File, Folder, Inner
from cherry_vllm.store.scores import Scores

log = logging.getLogger(__name__)

T = TypeVar("T")

FAULTS = (
    *(ValueError, TypeError, AttributeError, LookupError, OSError, UserError),
    pl.exceptions.PolarsError,
)
LOSSES = {"model": pl.String, "step": pl.Int64, "loss": pl.Float64, "learning_rate": pl.Float64}
FIGURES = {
    "testset": pl.String,
    "category": pl.String,
    **dict.fromkeys(("win", "tie", "loss"), pl.Int64),
    "winning_score": pl.Float64,
    "interval": pl.List(pl.Float64),
}


def _read(path: Path, parse: Callable[[Path], T]) -> T | None:
    """What ``parse`` makes of a file; None, with a warning, if it is damaged or foreign."""
    try:
        return parse(path)
    except KeyError as error:
        reason = f"no {error}"
    except FAULTS as error:
        reason = first_line(error)
    log.warning(
        "%s: damaged, or not written by cherry-vllm (%s); left out of the report", path, reason
    )
    return None


def _read_all(paths: Iterable[Path], parse: Callable[[Path], T]) -> dict[Path, T]:
    found = {path: _read(path, parse) for path in paths}
    return {path: content for path, content in found.items() if content is not None}


def _conform(values: Iterable[Mapping[str, Any]], schema: Mapping[str, Any]) -> None:
    """Raises an error if one of the values lacks a key, or holds something of another type."""
    rows = [{name: value[name] for name in schema} for value in values]
    pl.DataFrame(rows, schema=dict(schema), strict=True)


def find_manifests(run_dir: Path) -> list[dict[str, Any]]:
    """The manifests of the run itself and then of the jobs below it."""
    paths = sorted(
        run_dir.rglob(File.PIPELINE_MANIFEST.value), key=lambda path: (len(path.parts), path)
    )
    return list(_read_all(paths, _parse_manifest).values())


def _parse_manifest(path: Path) -> dict[str, Any]:
    found = read_json(path)
    _conform([found["config"]], {"run_dir": pl.String})
    _conform(found["stages"], {"stage": pl.String, "artifact": pl.String})
    return found


def find_artifacts(manifests: list[dict[str, Any]], run_dir: Path, stage: str) -> list[Path]:
    """What a stage made, each result once even if jobs share it; the run folder may have moved."""
    entries = [
        (entry["artifact"], manifest["config"]["run_dir"])
        for manifest in manifests
        for entry in manifest["stages"]
        if entry["stage"] == stage
    ]
    return list(dict.fromkeys(_locate(run_dir, *entry) for entry in entries))


def _locate(run_dir: Path, artifact: str, made_in: str) -> Path:
    """The path of an artifact: below this run folder, or below a parent if this is a job's."""
    if not Path(artifact).is_relative_to(made_in):
        return Path(artifact)
    inner = Path(artifact).relative_to(made_in)
    folders = (run_dir, *run_dir.resolve().parents)
    return next((folder / inner for folder in folders if (folder / inner).exists()), Path(artifact))


def find_scores(run_dir: Path, scores_dir: Path) -> list[Path]:
    """Folders with ``scores.parquet``: the one asked for, or those of the run's manifests.

    Raises:
        UserError: the folder asked for has none.
    """
    if (scores_dir / File.SCORES).is_file():
        return [scores_dir]
    if scores_dir != run_dir:
        raise UserError(
            f"scores_dir={scores_dir}: no scores.parquet there; score first, or leave it out"
        )
    found = find_artifacts(find_manifests(run_dir), run_dir, "score")
    return [path.parent for path in found if path.is_file()]


def find_selection(mark: Path, scores: Scores) -> ScoredSelection | None:
    """The selection that a mark describes; None if it was not made from these scores.

    One that was edited or deleted since is left out, with a warning.
    """
    if not mark.is_file():
        return None
    return _read(mark, partial(_parse_selection, scores=scores))


def _parse_selection(mark: Path, scores: Scores) -> ScoredSelection | None:
    facts = read_json(mark)
    if "num_selected" not in facts or not _is_made_from(scores, facts):
        return None
    output = mark.with_name(mark.name.removesuffix(MARK_SUFFIX))
    if not is_ours(output):
        log.warning("%s: edited or deleted since `select` wrote it; not in the report", output)
        return None
    chosen = pl.DataFrame({"row": open_selection(mark, scores).rows}, schema={"row": pl.Int64})
    rows = scores.frame.join(chosen, on="row", how="semi", maintain_order="left")
    return ScoredSelection(facts, rows)


def _is_made_from(scores: Scores, facts: Mapping[str, Any]) -> bool:
    """Whether something was made from these scores as they are now."""
    return (facts.get("scores"), facts.get("contents")) == (scores.fingerprint, scores.contents)


def find_aspects(run_dir: Path, scores: Scores) -> dict[str, Any] | None:
    """Both sides of the first ``aspects.json`` made from these scores; None if there is none."""
    found = _read_all(sorted(run_dir.rglob(File.ASPECT_SUMMARY.value)), _parse_aspects).values()
    same = (one["sides"] for one in found if _is_made_from(scores, one["settings"]))
    return next(same, None)


def _parse_aspects(path: Path) -> dict[str, Any]:
    found = read_json(path)
    _conform([found["settings"]], {"scores": pl.String})
    sides = [found["sides"][side.value] for side in (Side.TOP, Side.LEAST)]
    _conform(sides, {"rows": pl.Int64, "rated": pl.Int64})
    for side in sides:
        _conform([side["means"]], dict.fromkeys(side["means"], pl.Float64))
    return found


def find_rows(scores: Scores) -> pl.LazyFrame | None:
    """The rows that were scored, as a frame of ROWS; None if their shards were deleted."""
    return scores.open_rows().scan() if list(scores.rows_folder.glob("part-*.parquet")) else None


def find_check(run_dir: Path) -> tuple[str, dict[str, str]] | None:
    """The fingerprint of the run that was checked, and what was found in words; None without it."""
    path = run_dir / File.CHECK
    return _read(path, _parse_check) if path.is_file() else None


def _parse_check(path: Path) -> tuple[str, dict[str, str]]:
    if not is_ours(path):
        raise ValueError("edited")
    found = read_json(path)
    facts = describe(found)
    lines = {"could be tried": found["advice"], "warning": found["warnings"]}
    facts |= {label: "; ".join(texts) for label, texts in lines.items() if texts}
    return str(found["scoring"]), facts


def find_losses(run_dir: Path) -> pl.DataFrame:
    """Columns ``model``, ``step``, ``loss`` and ``learning_rate`` of every model trained here."""
    manifests = find_manifests(run_dir)
    stages = ("train pre-experienced", "train cherry")
    named = [path for stage in stages for path in find_artifacts(manifests, run_dir, stage)]
    folders = named or sorted(
        path.parent for path in run_dir.glob(f"{Folder.MODELS}/*/{Inner.LOSSES}")
    )
    paths = [folder / Inner.LOSSES for folder in folders]
    frames = _read_all([path for path in paths if path.is_file()], _parse_losses).values()
    return pl.concat([pl.DataFrame(schema=LOSSES), *frames])


def _parse_losses(path: Path) -> pl.DataFrame:
    found = pl.read_csv(path, glob=False).with_columns(model=pl.lit(path.parent.name))
    return found.select(list(LOSSES)).cast(LOSSES)  # type: ignore[arg-type]


def find_jobs(run_dir: Path, mark_name: str) -> list[JobResult]:
    """The jobs with a selection or verdicts, in the run folder and below it, by folder name.

    Verdicts belong to the selection in the same folder, or else in the nearest folder above.
    """
    found = _read_all(sorted(run_dir.rglob(mark_name)), _parse_mark)
    marks = {path.parent: mark for path, mark in found.items()}
    judged: dict[Path, dict[str, dict[str, Any]]] = {folder: {} for folder in marks}
    summaries = sorted(run_dir.rglob(File.VERDICT_SUMMARY.value))
    for path, judgement in _read_all(summaries, _parse_judgement).items():
        within = [folder for folder in (path.parent, *path.parent.parents) if folder in marks]
        owner = within[0] if within else path.parent
        name = path.parent.relative_to(run_dir).as_posix()
        judged.setdefault(owner, {})[name] = judgement
    return [
        JobResult(folder.relative_to(run_dir).as_posix(), marks.get(folder), judgements)
        for folder, judgements in sorted(judged.items())
    ]


def _parse_mark(path: Path) -> dict[str, Any] | None:
    """A selection's mark; None for that of answers, which may have the same name."""
    found = read_json(path)
    if "num_selected" not in found and "answers" in found:
        return None
    _conform([found], {"num_selected": pl.Int64})
    Choice.from_json(found)
    return found


def _parse_judgement(path: Path) -> dict[str, Any]:
    found = read_json(path)
    _conform(found["figures"], FIGURES)
    totals = [row for row in found["figures"] if row["category"] is None]
    if not totals or any(row["winning_score"] and len(row["interval"]) != 2 for row in totals):
        raise ValueError("no figures of all questions")
    return found
