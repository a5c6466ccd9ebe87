"""``cherry-vllm embed`` and ``sample``: prompts to the rows of the brief experience."""

from pathlib import Path

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
)
from cherry_vllm.config import Config, KMeansConfig
from cherry_vllm.engines.checkpoint import Checkpoint
from cherry_vllm.errors import UserError
from cherry_vllm.experience import sampling_run as experience
from cherry_vllm.options import Sampling
from cherry_vllm.runtime.text import printable
from cherry_vllm.store.files import read_json
from cherry_vllm.store.locks import exclusive
from cherry_vllm.store.marks import mark_path
from cherry_vllm.store.shards import Shards
from cherry_vllm.workers.run import WHOLE, Share


def embed(config: Config, _job: Job) -> Outcome:
    """Embeds the prompts of a data set with the base model, and measures their perplexity."""
    files, checkpoint = find_input(config), find_model(config)
    with hold_share(config) as share:
        rows = read_input(config, files)
        embeddings, perplexities = _embed(config, rows, checkpoint, share)
    print(printable(f"embeddings: {embeddings.folder}  perplexities: {perplexities.folder}"))
    return Outcome(embeddings.folder, {"num_shards": rows.num_shards})


def sample(config: Config, _job: Job) -> Outcome:
    """Samples the rows that the pre-experienced model is to learn from."""
    if not has_experience(config):
        raise UserError(
            f"sample={config.sample.strategy.value}, sample.count={config.sample.count}: nothing "
            "to sample; without experience the base model scores"
        )
    files = find_input(config)
    with exclusive(Path(config.run_dir)):
        target = _sample(config, read_input(config, files))
    facts = read_json(mark_path(target))["counts"]
    print(report.describe(f"sample={config.sample.strategy.value}", facts))
    print(printable(f"experience: {target}"))
    return Outcome(target, facts)


def has_experience(config: Config) -> bool:
    """Whether the configuration asks for a pre-experienced model."""
    return config.sample.strategy is not Sampling.none and config.sample.count > 0


def _embed(
    config: Config, rows: Shards, checkpoint: Checkpoint, share: Share = WHOLE
) -> tuple[Shards, Shards]:
    use = model_use(config, find_prompt(config, checkpoint))
    arguments = (Path(config.run_dir), rows, checkpoint, use, share)
    return experience.embed(*arguments), experience.measure_perplexity(*arguments)


def _sample(config: Config, rows: Shards) -> Path:
    run_dir, settings = Path(config.run_dir), config.sample
    if isinstance(settings, KMeansConfig):
        low, high = settings.percentiles
        return experience.sample_diverse(
            run_dir,
            rows,
            *_embed(config, rows, find_model(config)),
            count=settings.count,
            num_clusters=settings.num_clusters,
            percentiles=(low, high),
            n_init=settings.n_init,
            minibatch_rows=settings.minibatch_rows,
            seed=config.seed,
        )
    if settings.strategy is Sampling.difficulty:
        scores_dir = Path(config.scores_dir)
        return experience.sample_most_difficult(run_dir, rows, scores_dir, count=settings.count)
    return experience.sample_any(run_dir, rows, count=settings.count, seed=config.seed)
