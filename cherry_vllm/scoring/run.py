"""Row shards to log-prob shards, and log-prob shards to ``scores.parquet``."""

import logging
from contextlib import suppress
from pathlib import Path

import polars as pl

from cherry_vllm.engines import build_engine
from cherry_vllm.engines.checkpoint import Checkpoint
from cherry_vllm.errors import UserError
from cherry_vllm.runtime.text import rough_time
from cherry_vllm.schema import GAINS, SCORES, SUMS
from cherry_vllm.scoring.gains import find_threshold
from cherry_vllm.scoring.ifd import aggregate_logprobs, count_outcomes
from cherry_vllm.scoring.shard import count_tokens, score_shard, sum_shard
from cherry_vllm.store.files import read_json
from cherry_vllm.store.marks import is_ours
from cherry_vllm.store.run_folder import File, Folder
from cherry_vllm.store.scores import (
    S_IFD,
    Scores,
    check_scores_dir,
    open_scores,
    scores_fingerprint,
    write_scores,
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
    """Row shards to log-prob shards, or only to their sums if ``keep_logprobs`` is False.

    Raises:
        UserError: the model cannot be used, or cannot take ``max_length`` tokens; the scores would
            replace the user's files; or ``scores_dir`` holds scores of other settings and
            ``may_replace`` is False.
    """
    scoring = prepare(run_dir, rows, checkpoint, use, keep_logprobs=keep_logprobs)
    check_scores_dir(scores_dir)
    held = scores_fingerprint(scores_dir)
    if not may_replace and held not in (None, scoring.target.fingerprint):
        raise UserError(
            f"{scores_dir}: holds scores of other settings, which this sweep would replace; give "
            "each job a folder of its own, as in run_dir='runs/${max_length}'"
        )
    if share == WHOLE:
        _tell_forecast(run_dir, scoring.target)
    return scoring.run(
        "scoring",
        build_engine,
        "logprobs",
        score_shard if keep_logprobs else sum_shard,
        done="scored",
        units_per_row=2,  # two passes
        share=share,
    )


def _tell_forecast(run_dir: Path, target: Shards) -> None:
    """Says how long a run takes, if a check measured that; an edited file counts as none."""
    file = run_dir / File.CHECK
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = read_json(file)
        seconds = float(found["forecast"]["seconds"])
        if found["scoring"] == target.fingerprint and is_ours(file) and not target.is_begun():
            log.info("scoring: about %s, as `check` measured", rough_time(seconds))


def prepare(
    run_dir: Path, rows: Shards, checkpoint: Checkpoint, use: ModelUse, *, keep_logprobs: bool
) -> ModelRun:
    """The run that scores the rows, with all that names it decided; nothing is run yet."""
    return ModelRun(
        run_dir / Folder.LOGPROBS, rows, checkpoint, use, count_tokens, keep_logprobs=keep_logprobs
    )


def aggregate(
    scores_dir: Path, rows: Shards, logprobs: Shards, *, s_ifd_percent: float = 75
) -> Scores:
    """Log-prob shards to ``scores.parquet`` and ``score.json``, unless these exist already.

    The caller must be inside :func:`changing_scores`.

    Raises:
        UserError: a shard is missing or damaged, or the user's files would be replaced.
    """
    with suppress(UserError):
        scores = open_scores(scores_dir)
        is_same = scores.manifest["score"] == logprobs.summary
        if is_same and scores.s_ifd_percent == s_ifd_percent:
            return scores
        if scores.fingerprint != logprobs.fingerprint:
            log.warning("%s: scores of other settings are replaced; their shards stay", scores_dir)
    frame, threshold = _make_scores(logprobs, s_ifd_percent)
    num_rows = rows.summary["num_rows"]
    if frame.height != num_rows:
        raise RuntimeError(f"{scores_dir}: {frame.height} lines for {num_rows} input rows")
    manifest = {
        "fingerprint": logprobs.fingerprint,
        "num_rows": num_rows,
        "outcomes": count_outcomes(frame),
        "read": rows.summary,
        "score": logprobs.summary,
        S_IFD: {"percent": s_ifd_percent, "threshold": threshold},
    }
    return write_scores(scores_dir, frame, rows.folder, manifest)


def with_gains(scores: Scores, *, s_ifd_percent: float) -> pl.DataFrame:
    """The frame of scores; if an earlier release made it, with the columns that it lacks.

    Raises:
        UserError: the log-probs that these columns need are gone.
    """
    if scores.frame.columns == list(SCORES):
        return scores.frame
    try:
        found, _ = _make_scores(Shards.open(scores.logprobs_folder), s_ifd_percent)
    except UserError:
        raise UserError(
            f"{scores.folder / File.SCORES}: made by an earlier cherry-vllm, without "
            f"{', '.join(GAINS)}; run `cherry-vllm score` again, which adds them"
        ) from None
    added = scores.frame.join(found.select("row", *GAINS), on="row", maintain_order="left")
    return added.select(list(SCORES))


def _make_scores(logprobs: Shards, s_ifd_percent: float) -> tuple[pl.DataFrame, float | None]:
    """The scores, and the threshold of ``s_ifd``; None if there are sums in place of log-probs."""
    if logprobs.settings.get("keep_logprobs", True):
        scan = logprobs.scan()
        threshold = find_threshold(scan, s_ifd_percent)
    else:
        scan, threshold = logprobs.scan(SUMS), None
        log.info(
            "s_ifd: null in all rows, since score.keep_logprobs=false keeps no token's log-prob"
        )
    return aggregate_logprobs(scan, threshold).collect(engine="streaming"), threshold
