"""The names of what is in a run folder; those of shards are in :mod:`store.shards`."""

import re
from enum import StrEnum
from itertools import pairwise
from pathlib import Path


class Folder(StrEnum):
    """Folders of a run folder. All but the last two hold one folder for each fingerprint."""

    ROWS = "rows"
    LOGPROBS = "logprobs"
    EMBEDDINGS = "embeddings"
    QUESTIONS = "questions"
    ANSWERS = "answers"
    EXPERIENCE = "experience"
    MODELS = "models"
    SCORES = "scores"  # of `pipeline`: one scores_dir for each scorer
    REPORT = "report"  # figures


class File(StrEnum):
    """Files of a run folder, of a scores_dir or of a job's folder."""

    SCORES = "scores.parquet"
    SCORE_MANIFEST = "score.json"
    IFD_PICTURE = "ifd.png"
    PIPELINE_MANIFEST = "pipeline.json"
    REPORT = "report.html"
    REPLIES = "replies.jsonl"
    VERDICTS = "verdicts.parquet"
    VERDICT_SUMMARY = "judge.json"
    RATINGS = "ratings.parquet"
    RATING_SUMMARY = "ratings.json"
    ASPECTS = "aspects.parquet"
    ASPECT_SUMMARY = "aspects.json"
    ASPECT_PICTURE = "aspects.png"
    CHECK = "check.json"


class Inner(StrEnum):
    """Files of a folder that is named by a fingerprint."""

    SETTINGS = "settings.json"  # of shards, written first
    COMPLETE = "complete.json"  # of shards, written last
    FAILURES = "failures.log"  # of shards: the engine's
    SERVED = "served.json"  # of shards that servers made: what tells their model from others
    EXPERIENCE = "experience.json"
    TRAINING = "train.json"  # of a model, written last
    TUNING = "tuned.json"  # of a model, between its training and its copies
    LOSSES = "losses.csv"
    LOSS_PICTURE = "losses.png"


RUN_LOCK = ".lock"  # every run folder has one
TRIAL = ".check"  # a folder in which `check` scores a few rows
NAMED = frozenset(Folder) - {Folder.SCORES, Folder.REPORT}  # hold folders named by fingerprint
NAMED_BY_FINGERPRINT = re.compile(r"(.+-)?[0-9a-f]{16}")


def is_run_file(file: Path) -> bool:
    """Whether a file is one of a run's own files in a run folder."""
    for folder in file.absolute().parents:
        if (folder / RUN_LOCK).exists():
            parts = file.absolute().relative_to(folder).parts
            return file.name in frozenset(File) or any(
                name in NAMED and NAMED_BY_FINGERPRINT.fullmatch(below) is not None
                for name, below in pairwise(parts)
            )
    return False


def is_reserved(path: Path, run_dir: Path) -> bool:
    """Whether a path is that of a run's own file or folder, or lies in one, however it is spelt."""
    real, folder = path.parent.resolve() / path.name, run_dir.resolve()
    if not real.is_relative_to(folder) or real == folder:
        return False
    first = real.relative_to(folder).parts[0].casefold()
    return first in {*Folder, *File} or first.startswith(".")
