"""Row shards and a checkpoint to a tuned model.

run_dir/models/NAME-FINGERPRINT/
  model/        the tuned checkpoint, in fp32
  adapter/      of a LoRA run: the adapter that was merged into model/
  bfloat16/     a copy of model/ for the scorer, stochastically rounded
  losses.csv    loss, learning rate and gradient norm of every optimizer step; losses.png
  train.json    settings, counts, times, and the loss before and after; written last
"""

import logging
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from cherry_vllm.engines import Span
from cherry_vllm.engines.checkpoint import Checkpoint, load_tokenizer, read_checkpoint
from cherry_vllm.errors import UserError
from cherry_vllm.prompts.prompt import Prompt
from cherry_vllm.prompts.spans import open_span_builder
from cherry_vllm.runtime.versions import installed_versions
from cherry_vllm.schema import SCHEMA_VERSION
from cherry_vllm.store.files import atomic_path, read_json, write_json
from cherry_vllm.store.hashes import fingerprint
from cherry_vllm.store.run_folder import Folder, Inner
from cherry_vllm.store.shards import Shards
from cherry_vllm.training.examples import TrainingSet, build_training_set
from cherry_vllm.training.probe import BASE, TUNED, probe_losses, warn_of_lost_gain
from cherry_vllm.training.processes import is_first_process, run_apart
from cherry_vllm.training.recipe import Machine, Recipe
from cherry_vllm.training.tuned_model import ROUNDED, TunedModel, open_tuned, refuse_other_model

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Training:
    """All that decides a tuned model, except the rows and the model it starts from.

    ``name`` begins the model's folder. ``scorer_dtype`` "bfloat16" adds the rounded copy,
    "float32" adds none. The loss of up to ``num_probe_rows`` rows is measured before and after.
    """

    name: str
    prompt: Prompt
    max_length: int
    recipe: Recipe
    machine: Machine
    scorer_dtype: str
    num_probe_rows: int
    seed: int
    trust_remote_code: bool

    def settings(self, rows: str, model: str) -> dict[str, Any]:
        """The settings that name the result, given the fingerprints of rows and model."""
        return {
            "schema_version": SCHEMA_VERSION,
            "rows": rows,
            "model": model,
            "prompt": self.prompt.as_json(),
            "max_length": self.max_length,
            "recipe": asdict(self.recipe),
            "scorer_dtype": self.scorer_dtype,
            "seed": self.seed,
            "trust_remote_code": self.trust_remote_code,
        }


def train(
    run_dir: Path, rows: Shards, checkpoint: Checkpoint, training: Training
) -> TunedModel | None:
    """Fine-tunes ``checkpoint`` on every usable row, or finds the result of an earlier run.

    Returns None in all but the first process of torchrun.

    Raises:
        UserError: no row can be trained on, training ran out of memory or diverged, or an earlier
            result has been changed.
    """
    settings = training.settings(rows.fingerprint, checkpoint.fingerprint)
    folder = run_dir / Folder.MODELS / f"{training.name}-{fingerprint(settings)}"
    if (folder / Inner.TRAINING).is_file():
        log.info("%s: trained before, nothing to do", folder)
        return open_tuned(folder) if is_first_process() else None
    check_trackers(training.machine.report_to)
    tokenizer = _load_tokenizer(checkpoint, trust_remote_code=training.trust_remote_code)
    training_set = _build_training_set(rows, checkpoint, tokenizer, training)
    log.info("%s: training on %s", folder, training_set)
    _tune(folder, checkpoint, training_set.examples, tokenizer, training)
    if not is_first_process():
        return None
    facts = _copy_and_probe(folder, checkpoint, training_set, training)
    write_json(
        folder / Inner.TRAINING,
        {
            **facts,
            "settings": settings,
            "machine": asdict(training.machine),
            "versions": installed_versions(),
        },
    )
    (folder / Inner.TUNING).unlink()
    return open_tuned(folder)


def _build_training_set(
    rows: Shards, checkpoint: Checkpoint, tokenizer: Any, training: Training
) -> TrainingSet:
    builder = open_span_builder(
        checkpoint,
        prompt=training.prompt,
        max_length=training.max_length,
        trust_remote_code=training.trust_remote_code,
    )
    training_set = build_training_set(
        rows.scan().select("messages", "tools", "drop_reason").collect(),
        builder,
        eos_token_id=tokenizer.eos_token_id,
        max_length=training.max_length,
    )
    if not training_set.examples:
        raise UserError(f"no row to train on: {training_set}; check data.path")
    return training_set


def _copy_and_probe(
    folder: Path, checkpoint: Checkpoint, training_set: TrainingSet, training: Training
) -> dict[str, Any]:
    """Makes the copies of the tuned model, and measures the loss of each; returns all facts."""
    tuning = read_json(folder / Inner.TUNING)
    copies = _make_copies(folder, training)
    refuse_other_model(copies[TUNED], tuning.pop("model", None))
    probe = probe_losses(
        training_set.spans,
        {BASE: checkpoint, **copies},
        num_rows=training.num_probe_rows,
        trust_remote_code=training.trust_remote_code,
    )
    if ROUNDED in probe.losses:
        warn_of_lost_gain("the copy in bfloat16", *probe.losses.values())
    return {
        **_count(training_set),
        **tuning,
        "probe": probe.to_json(),
        "checkpoints": {name: copy.fingerprint for name, copy in copies.items()},
    }


def check_trackers(report_to: Sequence[str]) -> None:
    """Raises a UserError for a tracker that is not installed here."""
    if not report_to:
        return
    from transformers import integrations

    available: list[str] = integrations.get_available_reporting_integrations()  # type: ignore
    for name in report_to:
        if name not in available:
            raise UserError(
                f"train.report_to={name}: not installed, or not known to transformers; install it, "
                f"or choose from: {', '.join(available) or 'none'}"
            )


def _tune(
    folder: Path,
    checkpoint: Checkpoint,
    examples: Sequence[Span],
    tokenizer: Any,
    training: Training,
) -> None:
    """Writes ``model/``, then the loss curve, and at last ``tuned.json``."""
    if not (folder / Inner.TUNING).is_file():
        from cherry_vllm.training.tuning import fine_tune

        started = time.monotonic()
        work = partial(
            fine_tune,
            checkpoint,
            examples,
            tokenizer,
            folder,
            recipe=training.recipe,
            machine=training.machine,
            seed=training.seed,
            trust_remote_code=training.trust_remote_code,
        )
        # The processes of torchrun are already connected to each other.
        losses = work() if "WORLD_SIZE" in os.environ else run_apart(work)
        if not is_first_process():
            return
        seconds = round(time.monotonic() - started, 1)
        _write_losses(losses, folder)
        model = read_checkpoint(folder / TUNED).fingerprint
        tuning = {"num_steps": len(losses), "seconds": seconds, "model": model}
        write_json(folder / Inner.TUNING, tuning)
    if is_first_process():
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _count(training_set: TrainingSet) -> dict[str, Any]:
    return {
        "num_rows": training_set.num_rows,
        "num_trained": len(training_set.spans),
        "dropped": dict(training_set.dropped),
        "num_tokens": sum(len(example.token_ids) for example in training_set.examples),
        "num_answer_tokens": sum(example.num_answer_tokens for example in training_set.examples),
    }


def _make_copies(folder: Path, training: Training) -> dict[str, Checkpoint]:
    """The tuned model and its copies, by the names of their folders."""
    if training.scorer_dtype == ROUNDED:
        from cherry_vllm.training.rounding import export_bfloat16

        export_bfloat16(folder / TUNED, folder / ROUNDED, seed=training.seed)
    names = [TUNED, ROUNDED] if training.scorer_dtype == ROUNDED else [TUNED]
    return {name: read_checkpoint(folder / name) for name in names}


def _write_losses(losses: list[dict[str, float]], folder: Path) -> None:
    from cherry_vllm.figures.figure import save_png
    from cherry_vllm.figures.models import draw_losses

    table = pl.DataFrame(losses)
    with atomic_path(folder / Inner.LOSSES) as path:
        table.write_csv(path)
    with atomic_path(folder / Inner.LOSS_PICTURE) as path:
        save_png(path, draw_losses(table.with_columns(model=pl.lit(folder.name))))


def _load_tokenizer(checkpoint: Checkpoint, *, trust_remote_code: bool) -> Any:
    tokenizer = load_tokenizer(checkpoint.folder, trust_remote_code=trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{checkpoint.folder}: the tokenizer has no EOS token, which must end every answer; "
            "name one in its tokenizer_config.json"
        )
    return tokenizer
