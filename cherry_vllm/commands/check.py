"""``cherry-vllm check``: proves the engine on a few rows, and says what all rows will take."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from cherry_vllm.commands.inputs import (
    check_compatibility,
    find_input,
    find_model,
    find_prompt,
    find_used_model,
    model_use,
    read_input,
)
from cherry_vllm.commands.job import Job, Outcome
from cherry_vllm.commands.summary import misfit_warning
from cherry_vllm.config import CheckConfig, Config, ServerConfig
from cherry_vllm.engines.checkpoint import Checkpoint, checkpoint_dtype
from cherry_vllm.errors import DisagreementError, UserError
from cherry_vllm.runtime.text import printable
from cherry_vllm.scoring.agreement import Bounds, compare, usual_bounds
from cherry_vllm.scoring.check_result import COMMAND, CheckResult, describe
from cherry_vllm.scoring.forecast import advise, foresee
from cherry_vllm.scoring.ifd import aggregate_logprobs
from cherry_vllm.scoring.trial import Trial, try_engine
from cherry_vllm.store.locks import exclusive
from cherry_vllm.store.marks import check_replaceable
from cherry_vllm.store.run_folder import File
from cherry_vllm.workers.local import may_use_gpus

log = logging.getLogger(__name__)

SHOWN_ROWS = 2
SHOWN_LINES, SHOWN_CHARS = 3, 90  # at either end of a part of a prompt; of a line
FORECAST_ASSUMES = (
    "the forecast assumes that all rows are like those drawn, and that nothing else runs here; "
    "tokens are counted in 512 rows at most; larger shards are usually faster, and a GPU is "
    "often faster in a second check, once its kernels are compiled"
)


def check(config: Config, job: Job) -> Outcome:
    """Scores some rows with the engine and with the reference; prints and writes what differs.

    Raises:
        DisagreementError: the engine is beyond the bounds.
        UserError: the input or a model cannot be used, or neither of the two scores any row.
    """
    if config.share.count != 1:
        raise UserError(f"share.count={config.share.count}: a check is not shared; leave it out")
    target, run_dir = job.output_dir / File.CHECK, Path(config.run_dir)
    files = find_input(config)
    checkpoint = find_used_model(config, num_tokens=config.max_length + 1)
    reference = _find_reference(config, checkpoint)
    check_replaceable(target, COMMAND)
    with exclusive(run_dir):
        rows = read_input(config, files)
        prompt = find_prompt(config, checkpoint)
        check_compatibility(config, checkpoint, prompt, rows)
        trial = try_engine(
            run_dir,
            rows,
            checkpoint,
            reference,
            model_use(config, prompt),
            keep_logprobs=config.score.keep_logprobs,
            count=config.check.count,
            seed=config.seed,
        )
        found = _conclude(config, trial, reference, rows.summary["num_rows"])
        found.write(target)
    _print(found, target)
    if found.faults:
        raise DisagreementError(
            f"{target}: the engine does not agree with transformers in fp32: "
            f"{'; '.join(found.faults)}"
        )
    return Outcome(target, found.as_json())


def _find_reference(config: Config, checkpoint: Checkpoint) -> Checkpoint:
    """The model as transformers can load it; servers keep theirs to themselves."""
    if not isinstance(config.engine, ServerConfig):
        return checkpoint
    try:
        return find_model(config)
    except UserError as error:
        raise UserError(
            f"check: compares the servers with transformers, which needs the weights here: {error}"
        ) from None


def _conclude(config: Config, trial: Trial, reference: Checkpoint, num_rows: int) -> CheckResult:
    engine, keep = trial.run.engine, config.score.keep_logprobs
    dtype = engine.computes_in(checkpoint_dtype(reference.folder))
    agreement = compare(trial.engine.logprobs, trial.reference.logprobs)
    if not (agreement.num_compared or agreement.num_scored_by_one or agreement.num_other_tokens):
        reasons = ", ".join(f"{name} {count[1]}" for name, count in agreement.outcomes.items())
        raise UserError(
            f"check.count: none of the {trial.sample.height} rows drawn can be scored ({reasons}); "
            "see docs/outputs.md, Drop reasons"
        )
    forecast = foresee(trial, num_rows, keep_logprobs=keep)
    warning = misfit_warning(aggregate_logprobs(trial.engine.logprobs.lazy()).collect())
    return CheckResult(
        trial=trial,
        model=reference.folder,
        dtype=dtype,
        agreement=agreement,
        bounds=_bounds(config.check, dtype),
        forecast=forecast,
        advice=advise(
            trial,
            forecast,
            dtype=dtype,
            is_on_gpu=_is_on_gpu(trial),
            num_cores=len(os.sched_getaffinity(0)),
        ),
        warnings=[warning] if warning else [],
    )


def _is_on_gpu(trial: Trial) -> bool:
    """Whether the engine used a GPU; several of them hold it in processes of their own."""
    engine = trial.run.engine
    has_used_one = trial.engine.pace.peak_gpu_bytes > 0 or engine.num_devices > 1
    return may_use_gpus(engine) and has_used_one


def _bounds(settings: CheckConfig, dtype: str) -> Bounds:
    usual = usual_bounds(dtype)

    def pick(given: float | None, otherwise: float) -> float:
        return otherwise if given is None else given

    return Bounds(
        min_spearman=pick(settings.min_spearman, usual.min_spearman),
        max_ifd_difference=pick(settings.max_ifd_difference, usual.max_ifd_difference),
        max_logprob_difference=pick(settings.max_logprob_difference, usual.max_logprob_difference),
    )


def _print(found: CheckResult, target: Path) -> None:
    for row, parts in found.trial.show_prompts(SHOWN_ROWS):
        print(f"row {row}, as the model gets it, with its answer behind >")
        for text, is_answer in parts:
            print("\n".join(_show_part(text, "  > " if is_answer else "  | ")))
    facts = describe(found.as_json())
    width = max(map(len, facts)) + 2
    print("\n".join(printable(f"{label:<{width}}{value}") for label, value in facts.items()))
    print(f"({FORECAST_ASSUMES})")
    for line in found.advice:
        print(f"you could try  {line}")
    print(printable(f"check: {target}"))
    for warning in found.warnings:
        log.warning(warning)


def _show_part(text: str, mark: str) -> Sequence[str]:
    """The first and last lines of a text, each with its beginning and its end."""
    lines = text.split("\n")
    if len(lines) > 2 * SHOWN_LINES + 1:
        rest = f"({len(lines) - 2 * SHOWN_LINES} more lines)"
        lines = [*lines[:SHOWN_LINES], rest, *lines[-SHOWN_LINES:]]
    return [mark + _shorten(printable(line)) for line in lines]


def _shorten(line: str) -> str:
    half = SHOWN_CHARS // 2
    return line if len(line) <= SHOWN_CHARS else f"{line[:half]} ... {line[-half:]}"
