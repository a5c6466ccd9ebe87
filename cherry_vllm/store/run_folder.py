"""What a run folder holds, and where."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl

from cherry_vllm.errors import UserError
from cherry_vllm.store.files import file_sha256, fingerprint, read_json

MARK = ".turn"  # the lock that every run folder has
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


def scores_fingerprint(scores_dir: Path) -> str | None:
    """What the scores in a folder were made from; None without scores, or with damaged ones."""
    scores = scores_dir / "scores.parquet"
    try:
        made = read_json(scores_dir / "score.json")
        is_whole = made["sha256"] == file_sha256(scores)
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return str(made["fingerprint"]) if is_whole else None


def read_scores(scores_dir: Path) -> pl.DataFrame:
    """The scores (:data:`schema.SCORES`) that a run left.

    Raises:
        UserError: there are none yet.
    """
    source = scores_dir / "scores.parquet"
    if not source.is_file():
        raise UserError(f"{source}: no such file; run `cherry-vllm score` with this run_dir first")
    return pl.read_parquet(source, glob=False)


def name_scores(scores_dir: Path) -> str:
    """The fingerprint of what the scores of a folder were made from."""
    return str(pl.read_parquet_metadata(scores_dir / "scores.parquet")["fingerprint"])


def scan_rows(scores_dir: Path) -> pl.LazyFrame:
    """The input rows (:data:`schema.ROWS`) that ``scores_dir/scores.parquet`` is about."""
    return pl.scan_parquet(sorted(rows_folder(scores_dir).glob("part-*.parquet")), glob=False)


def name_data(settings: dict[str, Any]) -> str:
    """Names the data that row numbers count in, by the settings of its row shards."""
    return fingerprint({"files": settings["files"]})


def rows_folder(scores_dir: Path) -> Path:
    return scores_dir / pl.read_parquet_metadata(scores_dir / "scores.parquet")["rows"]
