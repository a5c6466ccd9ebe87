"""``cherry-vllm train``: data and a model to a tuned model."""

from contextlib import nullcontext
from pathlib import Path

from cherry_vllm.commands import summary as report
from cherry_vllm.commands.inputs import (
    Job,
    Outcome,
    find_input,
    find_model,
    find_prompt,
    read_input,
    warn_of_misfits,
)
from cherry_vllm.config import Config, plain
from cherry_vllm.runtime.text import printable
from cherry_vllm.store.locks import exclusive
from cherry_vllm.training import run as training


def train(config: Config, _job: Job) -> Outcome:
    """Fine-tunes a model on a data set; under torchrun, in several processes."""
    files, checkpoint = find_input(config), find_model(config)
    prompt = find_prompt(config, checkpoint)
    run_dir, recipe = Path(config.run_dir), plain(config.train)
    is_first = training.is_first_process()
    with exclusive(run_dir) if is_first else nullcontext():
        with training.first_process_first():
            rows = read_input(config, files)
        warn_of_misfits(prompt, rows)
        folder = training.train(
            run_dir,
            rows,
            checkpoint,
            name=recipe.pop("name"),
            prompt=prompt,
            max_length=config.max_length,
            scorer_dtype=recipe.pop("scorer_dtype"),
            num_probe_rows=recipe.pop("num_probe_rows"),
            recipe=recipe,
            seed=config.seed,
            trust_remote_code=config.model.trust_remote_code,
        )
    if not is_first:
        return Outcome(folder, {})
    facts = training.describe(folder)
    print(report.describe(f"train={config.train.name}", facts))
    print(printable(f"model: {folder / 'model'}  picture: {folder / 'losses.png'}"))
    return Outcome(folder, facts)
