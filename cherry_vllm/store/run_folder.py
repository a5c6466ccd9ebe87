"""What a run folder holds, and where."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl

from cherry_vllm.store.files import fingerprint
from cherry_vllm.store.scores import open_scores

MARK = ".lock"  # that every run folder has
FOLDERS = {"rows", "logprobs", "embeddings", "perplexities", "experience", "models"}
FOLDERS |= {"questions", "answers"}
FILES = {"score.json", "scores.parquet", "pipeline.json", "judge.json", "verdicts.parquet"}
FILES |= {"aspects.json", "aspects.parquet", "ratings.json", "ratings.parquet", "replies.jsonl"}
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
