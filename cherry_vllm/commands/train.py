"""``cherry-vllm train``: fine-tunes a model on data."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

from cherry_vllm.commands.inputs import (
    check_compatibility,
    find_input,
    find_model,
    find_prompt,
    read_input,
)
from cherry_vllm.commands.job import Job
from cherry_vllm.commands.summary import describe
from cherry_vllm.config import Config, TrainConfig, arguments_of
from cherry_vllm.engines.checkpoint import Checkpoint
from cherry_vllm.prompts.prompt import Prompt
from cherry_vllm.runtime.text import printable
from cherry_vllm.store.locks import exclusive
from cherry_vllm.store.run_folder import Inner
from cherry_vllm.training import run as training
from cherry_vllm.training.processes import (
    first_process_first,
    is_first_process,
    sleep_while_waiting,
)
from cherry_vllm.training.recipe import Machine, Recipe
from cherry_vllm.training.run import Training
from cherry_vllm.training.tuned_model import TunedModel


def train(config: Config, _job: Job) -> TunedModel | None:
    """Fine-tunes a model on a data set; under torchrun, in several processes."""
    return train_on(config, config.train, find_input(config), find_model(config))


def train_on(
    config: Config,
    group: TrainConfig,
    files: Sequence[Path],
    checkpoint: Checkpoint,
    *,
    is_made_here: bool = False,
) -> TunedModel | None:
    """Fine-tunes ``checkpoint`` on ``files``, which another stage wrote if ``is_made_here``."""
    sleep_while_waiting()  # also in the passes over the probe rows, which run here
    prompt = find_prompt(config, checkpoint)
    run_dir, is_first = Path(config.run_dir), is_first_process()
    with exclusive(run_dir) if is_first else nullcontext():
        with first_process_first():
            rows = read_input(config, files, is_made_here=is_made_here)
        check_compatibility(config, checkpoint, prompt, rows)
        settings = training_settings(config, group, prompt)
        tuned = training.train(run_dir, rows, checkpoint, settings)
    if tuned is not None:
        print(describe(f"train={group.name}", tuned.facts))
        picture = tuned.artifact / Inner.LOSS_PICTURE
        print(printable(f"model: {tuned.model.folder}  picture: {picture}"))
    return tuned


def training_settings(config: Config, group: TrainConfig, prompt: Prompt) -> Training:
    """The settings of one training."""
    values = arguments_of(group)
    return Training(
        name=group.name,
        prompt=prompt,
        max_length=config.max_length,
        recipe=Recipe(**_pick(values, Recipe)),
        machine=Machine(**_pick(values | {"report_to": tuple(group.report_to)}, Machine)),
        scorer_dtype=group.scorer_dtype.value,
        num_probe_rows=group.num_probe_rows,
        seed=config.seed,
        trust_remote_code=config.model.trust_remote_code,
    )


def _pick(values: dict[str, Any], settings: type[Recipe | Machine]) -> dict[str, Any]:
    return {field.name: values[field.name] for field in fields(settings)}
