"""The paper's method from end to end; each stage runs in its own process.

    base model -> sample -> train (pre-experienced) -> score -> select -> train (cherry)

A stage returns what it made, and the next one takes it. Artifacts are in ``run_dir``, named by the
fingerprint of what they were made from, so that the jobs of a sweep share what they have in common.
What belongs to one job only is in the job's folder:

    run_dir/experience/ models/ scores/     shared by all jobs
    job/cherry.json                         the chosen rows
    job/pipeline.json                       the manifest: configuration, versions, stages
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from cherry_vllm.commands.inputs import find_input, find_model, find_prompt
from cherry_vllm.commands.job import Job, Outcome
from cherry_vllm.commands.sample import diverse_sampling, has_experience, sample_from
from cherry_vllm.commands.score import score_with
from cherry_vllm.commands.select import select_from
from cherry_vllm.commands.train import train_on
from cherry_vllm.config import Config, ServerConfig, TrainConfig
from cherry_vllm.engines import NOT_BY_SERVERS
from cherry_vllm.engines.checkpoint import Checkpoint
from cherry_vllm.errors import UserError
from cherry_vllm.options import Sampling
from cherry_vllm.runtime.processes import ChildError, isolate
from cherry_vllm.runtime.text import printable
from cherry_vllm.runtime.versions import installed_versions
from cherry_vllm.store.files import write_json
from cherry_vllm.store.marks import check_replaceable, own_file
from cherry_vllm.store.run_folder import File, Folder
from cherry_vllm.store.scores import open_scores
from cherry_vllm.training.probe import measure_gain
from cherry_vllm.training.tuned_model import TunedModel


class Artifact(Protocol):
    """What a stage returns."""

    @property
    def artifact(self) -> Path: ...

    @property
    def facts(self) -> dict[str, Any]: ...


Made = TypeVar("Made", bound=Artifact)

COMMAND = "pipeline"


def run(config: Config, job: Job) -> Outcome:
    """Runs the method, skipping stages whose results already exist.

    Raises:
        UserError: the settings do not suit a pipeline (:func:`check_settings`), or a stage met a
            mistake.
    """
    check_settings(config)
    files, base = find_input(config), find_model(config)
    config = with_date(config, base)
    manifest = Manifest(job, config)
    scored, _ = score_pool(config, job, files, base, manifest)
    chosen = manifest.run(
        "select", select_from, config, job, scored.artifact.parent, scored.fingerprint
    )
    cherry = manifest.run("train cherry", train_made, config, config.train, chosen.artifact, base)
    print(printable(f"cherry model: {cherry.model.folder}  manifest: {manifest.path}"))
    return Outcome(manifest.path, {})


def check_settings(config: Config) -> None:
    """Checks, before any work, that all stages can run with these settings.

    Raises:
        UserError: only a share of the shards was asked for, which is not enough for later stages;
            the engine asks servers, which hold none of the models made here; or the settings of
            the sample contradict each other.
    """
    if "WORLD_SIZE" in os.environ:
        raise UserError("pipeline: torchrun is only for `train`; run the pipeline without it")
    if config.share.count != 1:
        raise UserError(
            f"share.count={config.share.count}: only `score` and `embed` can be shared; give 1"
        )
    if isinstance(config.engine, ServerConfig):
        raise UserError(NOT_BY_SERVERS)
    diverse_sampling(config)


def score_pool(
    config: Config, job: Job, files: Sequence[Path], base: Checkpoint, manifest: "Manifest"
) -> tuple[Outcome, TunedModel | None]:
    """The stages up to the scores: sample, train the pre-experienced model, score with it.

    Returns the scores and the model; None if ``base`` itself scores.
    """
    scores = Path(config.run_dir) / Folder.SCORES
    place, made = scores / "base", None
    if not has_experience(config):
        return manifest.run("score", score_with, config, job, files, base, place), None
    if config.sample.strategy is Sampling.difficulty:
        scored = manifest.run("score base", score_with, config, job, files, base, place)
        made = scored.fingerprint
    experience = manifest.run("sample", sample_from, config, files, base, place, made)
    settings = config.pre_experience
    tuned = manifest.run(
        "train pre-experienced", train_made, config, settings, experience.artifact, base
    )
    scores_dir = scores / tuned.artifact.name
    scored = manifest.run("score", score_with, config, job, files, tuned.scorer, scores_dir)
    frame = open_scores(scores_dir, scored.fingerprint).frame
    gain = measure_gain(tuned.probe, experience.rows, frame)
    manifest.add("gain", asdict(gain) if gain else {})
    return scored, tuned


def train_made(config: Config, group: TrainConfig, file: Path, base: Checkpoint) -> TunedModel:
    """Trains on what another stage wrote, in one process."""
    return cast(TunedModel, train_on(config, group, [file], base, is_made_here=True))


def with_date(config: Config, base: Checkpoint) -> Config:
    """The configuration with one date for all stages, if the chat template writes a date."""
    if not config.prompt.chat:
        return config
    return replace(config, prompt=replace(config.prompt, date=find_prompt(config, base).date))


class Manifest:
    """``pipeline.json``: the stages that were run, their settings and versions, and the results."""

    def __init__(self, job: Job, config: Config) -> None:
        self.path = job.output_dir / File.PIPELINE_MANIFEST
        check_replaceable(self.path, COMMAND)
        self._content: dict[str, Any] = {
            "config": to_json(asdict(config)),
            "versions": installed_versions(),
            "stages": [],
        }

    def run(self, name: str, stage: Callable[..., Made], *arguments: Any) -> Made:
        """Runs a stage in its own process, records it, and returns what it made.

        Raises:
            UserError: the user made a mistake, or the process was killed.
        """
        started, clock = datetime.now(UTC), time.monotonic()
        try:
            made = isolate(stage, *arguments)
        except ChildError as lost:
            raise UserError(f"{name}: its process {lost}; the same command resumes") from None
        entry = {
            "stage": name,
            "artifact": str(made.artifact),
            "started": started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - clock, 1),
            "facts": made.facts,
        }
        self._content["stages"].append(entry)
        self._write()
        return made

    def add(self, key: str, value: Any) -> None:
        """Adds a value to the entry of the stage that ran last."""
        self._content["stages"][-1][key] = value
        self._write()

    def _write(self) -> None:
        with own_file(self.path, COMMAND) as path:
            write_json(path, self._content)


def to_json(value: Any) -> Any:
    """Configuration values, with enums replaced by what JSON can hold."""
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    return value.value if isinstance(value, Enum) else value
