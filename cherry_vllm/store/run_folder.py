"""What a run folder holds, and where."""

from pathlib import Path
from typing import Any

import polars as pl

from cherry_vllm.errors import UserError
from cherry_vllm.store.files import file_sha256, fingerprint, read_json


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
