"""``cherry-vllm embed`` and ``sample``: find the rows of the brief experience."""

from collections.abc import Sequence
from pathlib import Path

from cherry_vllm.commands.inputs import (
    check_compatibility,
    find_input,
    find_model,
    find_prompt,
    hold_share,
    model_use,
    read_input,
)
from cherry_vllm.commands.job import Job, Outcome
from cherry_vllm.commands.summary import describe
from cherry_vllm.config import Config, KMeansConfig
from cherry_vllm.engines.checkpoint import Checkpoint
from cherry_vllm.errors import UserError
from cherry_vllm.experience.embeddings import embed as embed_rows
from cherry_vllm.experience.sampling import (
    DiverseSampling,
    Experience,
    sample_difficult,
    sample_diverse,
    sample_random,
)
from cherry_vllm.options import Sampling
from cherry_vllm.runtime.text import printable
from cherry_vllm.store.locks import exclusive
from cherry_vllm.store.shards import Shards
from cherry_vllm.workers.run import WHOLE, Share


def embed(config: Config, _job: Job) -> Outcome:
    """Embeds the prompts of a data set with the base model, and measures their perplexities."""
    files, checkpoint = find_input(config), find_model(config)
    with hold_share(config) as share:
        rows = read_input(config, files)
        embeddings = _embed(config, rows, checkpoint, share)
    print(printable(f"embeddings and perplexities: {embeddings.folder}"))
    return Outcome(embeddings.folder, {"num_shards": rows.num_shards})


def sample(config: Config, _job: Job) -> Experience:
    """Samples the rows that the pre-experienced model learns from."""
    if not has_experience(config):
        raise UserError(
            f"sample={config.sample.strategy.value}, sample.count={config.sample.count}: nothing "
            "to sample; choose a strategy and a count, or go on with `score`"
        )
    diverse_sampling(config)  # before the rows are embedded
    files = find_input(config)
    base = find_model(config) if isinstance(config.sample, KMeansConfig) else None
    return sample_from(config, files, base, Path(config.scores_dir))


def sample_from(
    config: Config,
    files: Sequence[Path],
    base: Checkpoint | None,
    scores_dir: Path,
    scores: str | None = None,
) -> Experience:
    """Samples rows of ``files`` with the help of the model ``base``.

    ``sample=kmeans`` embeds the rows with it, and ``sample=difficulty`` takes its scores from
    ``scores_dir``, which have the fingerprint ``scores`` if another stage made them.
    """
    settings, diverse = config.sample, diverse_sampling(config)
    run_dir, count, seed = Path(config.run_dir), settings.count, config.seed
    with exclusive(run_dir):
        rows = read_input(config, files)
        if diverse and base:
            embeddings = _embed(config, rows, base)
            found = sample_diverse(run_dir, rows, embeddings, diverse, seed=seed)
        elif settings.strategy is Sampling.difficulty:
            found = sample_difficult(run_dir, rows, scores_dir, count=count, wanted=scores)
        else:
            found = sample_random(run_dir, rows, count=count, seed=seed)
    print(describe(f"sample={settings.strategy.value}", found.facts))
    print(printable(f"experience: {found.artifact}"))
    return found


def diverse_sampling(config: Config) -> DiverseSampling | None:
    """The settings of ``sample=kmeans``; None for another strategy.

    Raises:
        UserError: the count is not a multiple of the number of clusters.
    """
    settings = config.sample
    if not isinstance(settings, KMeansConfig):
        return None
    low, high = settings.percentiles
    return DiverseSampling(
        count=settings.count,
        num_clusters=settings.num_clusters,
        percentiles=(low, high),
        n_init=settings.n_init,
        minibatch_rows=settings.minibatch_rows,
    )


def has_experience(config: Config) -> bool:
    """Whether the configuration asks for a pre-experienced model."""
    return config.sample.strategy is not Sampling.none and config.sample.count > 0


def _embed(config: Config, rows: Shards, checkpoint: Checkpoint, share: Share = WHOLE) -> Shards:
    prompt = find_prompt(config, checkpoint)
    check_compatibility(config, checkpoint, prompt, rows, with_answers=False)
    use = model_use(config, prompt)
    return embed_rows(Path(config.run_dir), rows, checkpoint, use, share)
