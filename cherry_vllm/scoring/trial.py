"""A trial: the engine of a run and a reference score the same few rows, apart from the run.

run_dir/.check/     what both made; the engine's failures.log stays there if it fails
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import polars as pl

from cherry_vllm.conversation import open_conversations
from cherry_vllm.engines import build_engine
from cherry_vllm.engines.checkpoint import Checkpoint
from cherry_vllm.engines.settings import REFERENCE
from cherry_vllm.errors import UserError
from cherry_vllm.prompts.spans import AnswerSpans, SpanBuilder
from cherry_vllm.schema import SCHEMA_VERSION
from cherry_vllm.scoring.run import prepare
from cherry_vllm.scoring.shard import count_tokens, score_shard
from cherry_vllm.store.run_folder import TRIAL, Folder
from cherry_vllm.store.shards import Shards
from cherry_vllm.workers import build_executor
from cherry_vllm.workers.local import find_gpus
from cherry_vllm.workers.pace import Pace
from cherry_vllm.workers.run import ModelRun, ModelUse
from cherry_vllm.workers.settings import ExecutorSettings

USUAL_ROWS, USUAL_ROWS_ON_GPU = 32, 1024  # at most two minutes for 135M on two cores
ENGINE, OTHER = "engine", "reference"  # folders


@dataclass(frozen=True)
class ScoredSample:
    """Rows that were scored, and what that took."""

    logprobs: pl.DataFrame  # of LOGPROBS
    pace: Pace
    num_bytes: int  # of its shards


@dataclass(frozen=True)
class Trial:
    """A sample of a data set, scored by the engine of a run and by the reference."""

    run: ModelRun  # the run that `score` would begin or resume
    sample: pl.DataFrame  # of ROWS
    num_tokens: int  # of the whole data set, estimated from a larger sample
    engine: ScoredSample
    reference: ScoredSample

    def show_prompts(self, count: int) -> Sequence[tuple[int, Sequence[tuple[str, bool]]]]:
        """The first rows that have spans: the row, and its text in parts, answers marked True."""
        builder = self.run.open_builder()
        usable = self.sample.filter(pl.col("drop_reason").is_null())
        built = builder.build(open_conversations(usable))
        pairs = zip(usable["row"], built, strict=True)
        shown = [(row, _parts(builder, it)) for row, it in pairs if isinstance(it, AnswerSpans)]
        return shown[:count]


def try_engine(
    run_dir: Path,
    rows: Shards,
    checkpoint: Checkpoint,
    reference: Checkpoint,
    use: ModelUse,
    *,
    keep_logprobs: bool,
    count: int | None,
    seed: int,
) -> Trial:
    """Scores ``count`` rows, spread over the data set, twice; the caller holds the run's lock.

    ``reference`` is the model as transformers can load it. No log-probs or scores of a run are read
    or written. Without a ``count``, it is as many rows as the device scores in a moment.

    Raises:
        UserError: a model cannot be used, or an engine dies on anything.
    """
    run = prepare(run_dir, rows, checkpoint, use, keep_logprobs=keep_logprobs)
    usual = USUAL_ROWS_ON_GPU if find_gpus(run.engine) else USUAL_ROWS
    sample = rows.draw(count or usual, seed=seed)
    num_tokens = run.estimate_tokens(count_tokens)
    place = _clear(run_dir / TRIAL)
    settled = replace(use, engine=run.engine)
    alone = replace(use, engine=REFERENCE, executor=_one_worker(use.executor))
    num_workers = build_executor(use.executor, run.engine).num_workers
    parts = _write(place, rows, sample, min(num_workers, sample.height))
    engine = _score(place / ENGINE, "checking", parts, checkpoint, settled)
    try:
        other = _score(place / OTHER, "the reference", parts, reference, alone)
    except UserError as error:
        raise UserError(f"check: transformers in fp32, the reference: {error}") from None
    shutil.rmtree(place)
    return Trial(run, sample, num_tokens, engine, other)


def _clear(place: Path) -> Path:
    """An empty folder for trials; what an earlier one left there is removed.

    Raises:
        UserError: it holds something else.
    """
    known = {Folder.ROWS.value, ENGINE, OTHER}
    if place.is_symlink() or (place.exists() and {it.name for it in place.iterdir()} - known):
        raise UserError(f"{place}: not from cherry-vllm; move it, or choose another run_dir")
    if place.exists():
        shutil.rmtree(place)
    place.mkdir(parents=True)
    return place


def _write(place: Path, rows: Shards, sample: pl.DataFrame, num_shards: int) -> Shards:
    """The sample in ``num_shards`` shards of about the same size."""
    settings = {
        "schema_version": SCHEMA_VERSION,
        "of": rows.fingerprint,
        "rows": sample["row"].to_list(),
    }
    shards = Shards(place / Folder.ROWS, settings)
    for index in range(num_shards):
        first, stop = (sample.height * it // num_shards for it in (index, index + 1))
        shards.write(index, sample[first:stop])
    shards.close(num_shards, num_rows=sample.height, files=[])
    return shards


def _score(
    place: Path, label: str, rows: Shards, checkpoint: Checkpoint, use: ModelUse
) -> ScoredSample:
    run = ModelRun(place, rows, checkpoint, use)
    made = run.run(label, build_engine, "logprobs", score_shard, done="scored", units_per_row=2)
    if run.pace is None:
        raise RuntimeError(f"{place}: was not empty")
    return ScoredSample(
        made.scan().collect(), run.pace, sum(path.stat().st_size for path in made.written())
    )


def _one_worker(executor: ExecutorSettings) -> ExecutorSettings:
    """One process of this machine, with the patience of ``executor``."""
    names = [item.name for item in fields(ExecutorSettings)]
    given = {name: getattr(executor, name) for name in names}
    return ExecutorSettings(**given | {"num_workers": 1})


def _parts(builder: SpanBuilder, pair: AnswerSpans) -> list[tuple[str, bool]]:
    """The text of a row's first sequence, cut where its answers begin and end."""
    span = pair.conditioned[0]
    parts, end = [], 0
    for start, stop in span.ranges:
        parts.append((builder.decode(span.token_ids[end:start], with_special=True), False))
        parts.append((builder.decode(span.token_ids[start:stop], with_special=True), True))
        end = stop
    return parts
