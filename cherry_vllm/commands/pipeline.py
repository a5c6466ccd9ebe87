"""The paper's method from end to end: every stage in its turn, each in a process of its own.

    base model -> sample -> train (pre-experienced) -> score -> select -> train (cherry)

Artifacts lie in ``run_dir`` under the fingerprint of what they were made from, so that the jobs of
a sweep share what they have in common; what is one job's own lies in the job's folder:

    run_dir/experience/ models/ scores/     shared by all jobs
    job/cherry.json                         the chosen rows
    job/pipeline.json                       the manifest: configuration, versions, stages
"""

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from cherry_vllm.commands.inputs import Job, Outcome, find_model, find_prompt
from cherry_vllm.commands.sample import has_experience, sample
from cherry_vllm.commands.score import score
from cherry_vllm.commands.select import select
from cherry_vllm.commands.train import train
from cherry_vllm.config import Config
from cherry_vllm.errors import UserError
from cherry_vllm.options import DataFormat, Sampling
from cherry_vllm.runtime.processes import ChildError, isolate
from cherry_vllm.runtime.text import printable
from cherry_vllm.runtime.versions import installed_versions
from cherry_vllm.store.files import read_json, write_json
from cherry_vllm.store.marks import check_replaceable, mark_path, own_file
from cherry_vllm.training.probe import gain_kept, warn_of_lost_gain
from cherry_vllm.training.run import scorer_checkpoint

COMMAND = "pipeline"


def run(config: Config, job: Job) -> Outcome:
    """Runs what of the method has not been done before.

    Raises:
        UserError: a share of the shards was asked for, which later stages could not go on from.
    """
    if config.share.count != 1:
        raise UserError(
            f"share.count={config.share.count}: only `score` and `embed` can be shared; drop it"
        )
    config = _with_date(config)
    manifest = Manifest(job, config)
    shared = Path(config.run_dir) / "scores"
    scorer, scored = config, replace(config, scores_dir=str(shared / "base"))
    tuned = experience = None
    if has_experience(config):
        if config.sample.strategy is Sampling.difficulty:
            manifest.run("score base", score, scored)
        experience = manifest.run("sample", sample, scored)
        lesson = replace(_with_data(config, experience), train=config.pre_experience)
        tuned = manifest.run("train pre-experienced", train, lesson)
        scorer = replace(
            config,
            model=replace(config.model, path=str(scorer_checkpoint(tuned))),
            scores_dir=str(shared / tuned.name),
        )
        scored = scorer
    scores = manifest.run("score", score, scored)
    if tuned and experience:
        manifest.note("gain", measure_gain(tuned, experience, scores))
    chosen = manifest.run("select", select, scored)
    model = manifest.run("train cherry", train, _with_data(config, chosen))
    print(printable(f"cherry model: {model / 'model'}  manifest: {manifest.path}"))
    return Outcome(manifest.path, {})


class Manifest:
    """``pipeline.json``: what was run, with which settings and versions, and what came out."""

    def __init__(self, job: Job, config: Config) -> None:
        self.path = job.output_dir / "pipeline.json"
        check_replaceable(self.path, COMMAND)
        self._job = job
        self._content: dict[str, Any] = {
            "config": _plain(asdict(config)),
            "versions": installed_versions(),
            "stages": [],
        }

    def run(self, name: str, stage: Callable[[Config, Job], Outcome], config: Config) -> Path:
        """Runs a stage in a process of its own, records it, and returns its artifact."""
        started, clock = datetime.now(UTC), time.monotonic()
        try:
            outcome = isolate(stage, config, self._job)
        except ChildError as lost:
            raise UserError(f"{name}: its process {lost}; the same command resumes") from None
        entry = {
            "stage": name,
            "artifact": str(outcome.artifact),
            "started": started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - clock, 1),
            "facts": outcome.facts,
        }
        self._content["stages"].append(entry)
        self._write()
        return outcome.artifact

    def note(self, key: str, value: Any) -> None:
        """Adds something to the stage that ran last."""
        self._content["stages"][-1][key] = value
        self._write()

    def _write(self) -> None:
        with own_file(self.path, COMMAND) as path:
            write_json(path, self._content)


def measure_gain(tuned: Path, experience: Path, scores: Path) -> dict[str, float | None]:
    """Whether what the pre-experienced model learned is in its scores; warns if it is not.

    Compares the answer loss, in nats per token, of the probe rows under the base model, the tuned
    model in fp32, and the scorer.
    """
    probe = read_json(tuned / "train.json")["probe"]
    if not probe["losses"]:
        return {}
    rows = read_json(mark_path(experience))["rows"]
    wanted = pl.Series("row", [rows[position] for position in probe["rows"]])
    found = wanted.to_frame().join(pl.read_parquet(scores, glob=False), on="row")
    columns = found["conditioned_score"].to_numpy(), found["num_answer_tokens"].to_numpy()
    scored = float(np.average(columns[0], weights=columns[1]))
    base, model = probe["losses"]["base"], probe["losses"]["model"]
    warn_of_lost_gain("the scorer", base, model, scored)
    return {"base": base, "tuned": model, "scorer": scored, "kept": gain_kept(base, model, scored)}


def _with_data(config: Config, file: Path) -> Config:
    return replace(
        config, data=replace(config.data, path=str(file), format=DataFormat.auto, max_rows=None)
    )


def _with_date(config: Config) -> Config:
    """The same date for all stages, where the chat template writes one."""
    if not config.prompt.chat:
        return config
    date = find_prompt(config, find_model(config)).date
    return replace(config, prompt=replace(config.prompt, date=date))


def _plain(value: Any) -> Any:
    """Configuration values as JSON has them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value.value if isinstance(value, Enum) else value
