"""``cherry-vllm score``: turns data and a model into IFD scores."""

import logging
from collections.abc import Sequence
from pathlib import Path

from cherry_vllm.commands.inputs import (
    check_compatibility,
    find_input,
    find_prompt,
    find_used_model,
    hold_share,
    model_use,
    read_input,
)
from cherry_vllm.commands.job import Job, Outcome
from cherry_vllm.commands.summary import misfit_warning, summarize
from cherry_vllm.config import Config
from cherry_vllm.engines.checkpoint import Checkpoint
from cherry_vllm.runtime.text import printable
from cherry_vllm.scoring.ifd import count_outcomes
from cherry_vllm.scoring.run import aggregate, score_rows
from cherry_vllm.store.marks import own_file, read_mark
from cherry_vllm.store.run_folder import File
from cherry_vllm.store.scores import (
    Scores,
    changing_scores,
    refuse_as_input,
    scores_fingerprint,
)

log = logging.getLogger(__name__)


COMMAND = "score"


def score(config: Config, job: Job) -> Outcome:
    """Scores a data set with a model, or a share of it, and prints the summary."""
    files = find_input(config)
    checkpoint = find_used_model(config, num_tokens=config.max_length + 1)
    return score_with(config, job, files, checkpoint, Path(config.scores_dir))


def score_with(
    config: Config, job: Job, files: Sequence[Path], checkpoint: Checkpoint, scores_dir: Path
) -> Outcome:
    """Scores ``files`` with ``checkpoint`` and writes the scores to ``scores_dir``."""
    scores = score_files(config, files, checkpoint, scores_dir, may_replace=not job.is_sweep)
    if scores is None:
        share = config.share
        print(f"share {share.index} of {share.count} scored; the last one writes the scores")
        return Outcome(Path(config.run_dir), {})
    _print(scores)
    return Outcome(scores_dir / File.SCORES, count_outcomes(scores.frame), scores.fingerprint)


def score_files(
    config: Config,
    files: Sequence[Path],
    checkpoint: Checkpoint,
    scores_dir: Path,
    *,
    may_replace: bool,
) -> Scores | None:
    """The scores of ``files``; None if other processes still have shares to score.

    Raises:
        UserError: the input or the model cannot be used, or ``scores_dir`` holds scores of other
            settings and ``may_replace`` is False.
    """
    refuse_as_input(files, scores_dir)
    prompt, run_dir = find_prompt(config, checkpoint), Path(config.run_dir)
    with hold_share(config) as share:
        rows = read_input(config, files)
        check_compatibility(config, checkpoint, prompt, rows)
        logprobs = score_rows(
            run_dir,
            scores_dir,
            rows,
            checkpoint,
            model_use(config, prompt),
            may_replace=may_replace,
            keep_logprobs=config.score.keep_logprobs,
            share=share,
        )
        if not logprobs.is_complete():
            if scores_fingerprint(scores_dir) not in (None, logprobs.fingerprint):
                log.warning(
                    "%s: still the scores of other settings, until the last share replaces them",
                    scores_dir / File.SCORES,
                )
            return None
        with changing_scores(scores_dir):
            percent = config.score.s_ifd_percent
            scores = aggregate(scores_dir, rows, logprobs, s_ifd_percent=percent)
            draw(scores)
    return scores


def draw(scores: Scores) -> None:
    """Draws the picture of the scores, unless it exists or another file is in its place."""
    picture = scores.folder / File.IFD_PICTURE
    mark = read_mark(picture)
    drawn_from = {"scores": scores.fingerprint, "contents": scores.contents}
    if mark and drawn_from.items() <= mark.items():
        return
    if picture.exists() and not mark:
        log.warning("%s: not drawn by cherry-vllm, so it is kept; move it and run again", picture)
        return
    from cherry_vllm.figures.figure import save_png
    from cherry_vllm.figures.scores import draw_ifd, draw_scores

    with own_file(picture, COMMAND, **drawn_from) as path:
        save_png(path, draw_ifd(scores.frame), draw_scores(scores.frame))


def _print(scores: Scores) -> None:
    print(summarize(scores.frame))
    places = {"scores": scores.folder / File.SCORES, "picture": scores.folder / File.IFD_PICTURE}
    print(printable("  ".join(f"{name}: {path}" for name, path in places.items())))
    warning = misfit_warning(scores.frame)
    if warning:
        log.warning(warning)
