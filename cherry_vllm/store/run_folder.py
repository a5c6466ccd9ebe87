"""What a run folder holds, and where."""

import logging
import re
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl

from cherry_vllm.schema import SCHEMA_VERSION
from cherry_vllm.store.files import fingerprint, read_json
from cherry_vllm.store.scores import open_scores
from cherry_vllm.store.shards import COMPLETE, SETTINGS

log = logging.getLogger(__name__)

MARK = ".lock"  # that every run folder has
FOLDERS = {"rows", "logprobs", "embeddings", "perplexities", "experience", "models"}
FOLDERS |= {"questions", "answers"}
FILES = {"score.json", "scores.parquet", "pipeline.json", "judge.json", "verdicts.parquet"}
FILES |= {"aspects.json", "aspects.parquet", "ratings.json", "ratings.parquet", "replies.jsonl"}
RESERVED = FOLDERS | FILES | {"scores", "report", "report.html", "ifd.png", "aspects.png"}
NAMED_BY_FINGERPRINT = re.compile(r"(.+-)?[0-9a-f]{16}")


def is_run_file(file: Path) -> bool:
    """Whether a file is one that runs keep for themselves in a run folder."""
    for folder in file.absolute().parents:
        if (folder / MARK).exists():
            parts = file.absolute().relative_to(folder).parts
            return file.name in FILES or any(
                name in FOLDERS and NAMED_BY_FINGERPRINT.fullmatch(below) is not None
                for name, below in pairwise(parts)
            )
    return False


def warn_of_earlier_release(run_dir: Path) -> None:
    """Says in one line that an earlier release left shards which this one makes again.

    Once this release has begun to make them, nothing more is said.
    """
    found = set[int]()
    for path in run_dir.glob("*/*/*.json"):
        if path.parts[-3] in FOLDERS and path.name in (SETTINGS, COMPLETE):
            with suppress(OSError, ValueError, KeyError, TypeError):
                content = read_json(path)
                settings = content if path.name == SETTINGS else content["settings"]
                found.add(settings["schema_version"])
    if found and max(found) < SCHEMA_VERSION:
        log.warning(
            "%s: holds shards and scores of an earlier cherry-vllm (schema %d), which this one "
            "cannot use; they are made again",
            run_dir,
            max(found),
        )


def is_reserved(path: Path, run_dir: Path) -> bool:
    """Whether a path is that of a run's own file or folder, or lies in one, however it is spelt."""
    real, folder = path.parent.resolve() / path.name, run_dir.resolve()
    if not real.is_relative_to(folder) or real == folder:
        return False
    first = real.relative_to(folder).parts[0].casefold()
    return first in RESERVED or first.startswith(".")


def read_scores(scores_dir: Path) -> pl.DataFrame:
    """The scores (:data:`schema.SCORES`) that a run left."""
    return open_scores(scores_dir).frame


def name_scores(scores_dir: Path) -> str:
    """The fingerprint of what the scores of a folder were made from."""
    return open_scores(scores_dir).fingerprint


def scan_rows(scores_dir: Path) -> pl.LazyFrame:
    """The input rows (:data:`schema.ROWS`) that ``scores_dir/scores.parquet`` is about."""
    return open_scores(scores_dir).open_rows().scan()


def name_data(settings: dict[str, Any]) -> str:
    """Names the data that row numbers count in, by the settings of its row shards."""
    return fingerprint({"files": settings["files"]})


def rows_folder(scores_dir: Path) -> Path:
    return open_scores(scores_dir).rows_folder
