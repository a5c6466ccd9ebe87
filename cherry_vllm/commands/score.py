"""``cherry-vllm score``: data and a model to IFD scores."""

import logging
from pathlib import Path

import polars as pl

from cherry_vllm.commands import summary as report
from cherry_vllm.commands.inputs import (
    Job,
    Outcome,
    find_input,
    find_model,
    find_prompt,
    hold_share,
    model_use,
    read_input,
    warn_of_misfits,
)
from cherry_vllm.config import Config
from cherry_vllm.scoring.ifd import count_outcomes
from cherry_vllm.scoring.run import aggregate, score_rows
from cherry_vllm.store.files import atomic_path
from cherry_vllm.store.scores import changing_scores

log = logging.getLogger(__name__)


def score(config: Config, job: Job) -> Outcome:
    """Scores a data set with a model, or a share of it, and prints the summary."""
    files, checkpoint = find_input(config), find_model(config)
    prompt = find_prompt(config, checkpoint)
    run_dir, scores_dir = Path(config.run_dir), Path(config.scores_dir)
    with hold_share(config) as share:
        rows = read_input(config, files)
        warn_of_misfits(prompt, rows)
        logprobs = score_rows(
            run_dir,
            scores_dir,
            rows,
            checkpoint,
            model_use(config, prompt),
            may_replace=not job.is_sweep,
            keep_logprobs=config.score.keep_logprobs,
            share=share,
        )
        if not logprobs.is_complete():
            print(f"share {share.index} of {share.count} scored; the last to end aggregates")
            return Outcome(logprobs.folder, {})
        with changing_scores(scores_dir):
            scores = aggregate(scores_dir, rows, logprobs).frame
            _draw(scores, scores_dir / "ifd.png")
    print(report.summarize(scores))
    print(f"scores: {scores_dir / 'scores.parquet'}  picture: {scores_dir / 'ifd.png'}")
    warning = report.misfit_warning(scores)
    if warning:
        log.warning(warning)
    return Outcome(scores_dir / "scores.parquet", count_outcomes(scores))


def _draw(scores: pl.DataFrame, target: Path) -> None:
    from cherry_vllm.figures.figure import save_png
    from cherry_vllm.figures.scores import draw_ifd, draw_scores

    with atomic_path(target) as path:
        save_png(path, draw_ifd(scores), draw_scores(scores))
