"""Row shards to log-prob shards, and these to ``scores.parquet``."""

import logging
import os
from pathlib import Path

import polars as pl

from cherry_vllm.engines import build_engine
from cherry_vllm.engines.checkpoint import Checkpoint
from cherry_vllm.errors import UserError
from cherry_vllm.scoring.ifd import aggregate_logprobs, count_outcomes
from cherry_vllm.scoring.shard import score_shard, sum_shard
from cherry_vllm.store.files import (
    ROW_GROUP_ROWS,
    atomic_path,
    file_sha256,
    write_json,
)
from cherry_vllm.store.run_folder import (
    scores_fingerprint,
)
from cherry_vllm.store.shards import Shards
from cherry_vllm.workers.run import WHOLE, ModelRun, ModelUse, Share

log = logging.getLogger(__name__)


def score_rows(
    run_dir: Path,
    scores_dir: Path,
    rows: Shards,
    checkpoint: Checkpoint,
    use: ModelUse,
    *,
    may_replace: bool,
    keep_logprobs: bool = True,
    share: Share = WHOLE,
) -> Shards:
    """Row shards to log-prob shards, or to their sums alone where ``keep_logprobs`` is False.

    Raises:
        UserError: the model cannot be used, or cannot take ``max_length`` tokens; or scores of
        other settings lie in ``scores_dir``, and ``may_replace`` is False.
    """
    scoring = ModelRun(run_dir / "logprobs", rows, checkpoint, use, keep_logprobs=keep_logprobs)
    held = scores_fingerprint(scores_dir)
    if not may_replace and held not in (None, scoring.target.fingerprint):
        raise UserError(
            f"{scores_dir}: holds scores of other settings, which this sweep would replace; give "
            "each job a folder of its own, as in run_dir='runs/${max_length}'"
        )
    return scoring.run(
        "scoring",
        build_engine,
        "logprobs",
        score_shard if keep_logprobs else sum_shard,
        done="scored",
        units_per_row=2,  # two passes
        share=share,
    )


def aggregate(scores_dir: Path, rows: Shards, logprobs: Shards) -> pl.DataFrame:
    """Log-prob shards to ``scores.parquet``, which is returned, a picture and ``score.json``."""
    target, manifest = scores_dir / "scores.parquet", scores_dir / "score.json"
    made_by = scores_fingerprint(scores_dir)
    if made_by == logprobs.fingerprint:
        return pl.read_parquet(target, glob=False)
    if made_by is not None:
        log.warning("%s: scores of other settings are replaced; their shards stay", target)
    origin = {
        "rows": os.path.relpath(rows.folder, scores_dir),  # so that a run folder can move
        "fingerprint": logprobs.fingerprint,
    }
    with atomic_path(target) as path:
        aggregate_logprobs(logprobs.scan()).sink_parquet(
            path, row_group_size=ROW_GROUP_ROWS, metadata=origin
        )
    scores = pl.read_parquet(target, glob=False)
    num_rows = rows.summary["num_rows"]
    if scores.height != num_rows:
        raise RuntimeError(f"{target}: {scores.height} lines for {num_rows} input rows")
    write_json(
        manifest,
        {
            **origin,
            "sha256": file_sha256(target),
            "num_rows": num_rows,
            "outcomes": count_outcomes(scores),
            "read": rows.summary,
            "score": logprobs.summary,
        },
    )
    return scores
