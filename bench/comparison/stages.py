"""The stages of the pipeline, as the entries share them; what they print goes to a log."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.comparison.entries import needs_embeddings
from bench.comparison.rows import RowSet
from cherry_vllm.commands.job import Job, Outcome
from cherry_vllm.commands.pipeline import Manifest, score_pool, train_made
from cherry_vllm.commands.sample import embed
from cherry_vllm.commands.select import select_from
from cherry_vllm.config import Config
from cherry_vllm.engines import Span
from cherry_vllm.engines.checkpoint import Checkpoint
from cherry_vllm.errors import UserError
from cherry_vllm.runtime.processes import ChildError, isolate, preload_malloc
from cherry_vllm.runtime.progress import Progress
from cherry_vllm.store.marks import read_mark
from cherry_vllm.training.probe import answer_losses
from cherry_vllm.training.tuned_model import TunedModel

LOG = "log.txt"  # in the folder of a job


def score(config: Config, folder: Path, base: Checkpoint) -> tuple[Outcome, TunedModel | None]:
    """The scores of ``data.path``, and the pre-experienced model, if one made them."""
    job = Job(folder, is_sweep=False)
    with printing_to(folder / LOG):
        files = [Path(config.data.path)]
        return score_pool(config, job, files, base, Manifest(job, config))


def choose(config: Config, folder: Path, scored: Outcome) -> dict[str, Any]:
    """Writes chosen rows to the folder, with what the strategy needs; returns their mark."""
    job = Job(folder, is_sweep=False)
    manifest = Manifest(job, config)
    with printing_to(folder / LOG):
        if needs_embeddings(config) and config.select.embeddings is None:
            embedded = manifest.run("embed", embed, config, job)
            select = replace(config.select, embeddings=str(embedded.artifact))
            config = replace(config, select=select)
        place = scored.artifact.parent
        manifest.run("select", select_from, config, job, place, scored.fingerprint)
    mark = read_mark(folder / config.select.output)
    assert mark
    return dict(mark)


def train(config: Config, chosen: Path, base: Checkpoint) -> TunedModel:
    """The base model, trained on a file of chosen rows, in whose folder a log is kept."""
    folder = chosen.parent / "training"
    manifest = Manifest(Job(folder, is_sweep=False), config)
    with printing_to(folder / LOG):
        return manifest.run("train", train_made, config, config.train, chosen, base)


def measure(
    model: Checkpoint, sets: Sequence[RowSet], *, trust_remote_code: bool
) -> dict[str, list[float]]:
    """The summed loss over the answer tokens of each row, in nats, by set.

    Raises:
        UserError: the process that measures was killed.
    """
    spans = [of_row for rows in sets for of_row in rows.spans]
    try:
        means = iter(
            isolate(
                _measure,
                model,
                spans,
                trust_remote_code=trust_remote_code,
                environment=preload_malloc(),
            )
        )
    except ChildError as lost:
        raise UserError(f"held-out losses: the process {lost}; the same command resumes") from None
    return {rows.name: [count * next(means) for count in rows.num_answer_tokens] for rows in sets}


def _measure(
    model: Checkpoint, spans: Sequence[Sequence[Span]], *, trust_remote_code: bool
) -> list[float]:
    with Progress("measuring", unit="spans", total=sum(map(len, spans))) as bar:
        return answer_losses(
            model, spans, trust_remote_code=trust_remote_code, on_scored=bar.update
        )


@contextmanager
def printing_to(file: Path) -> Iterator[None]:
    """Sends what this process and its children print to a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with file.open("ab") as log:
            os.dup2(log.fileno(), 1)
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
