"""The whole method: what each stage hands to the next, and what the jobs of a sweep share."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cherry_vllm.commands.job import Job
from cherry_vllm.commands.pipeline import run
from cherry_vllm.config import compose
from cherry_vllm.errors import UserError
from cherry_vllm.training.probe import measure_gain
from cherry_vllm.training.tuned_model import open_tuned
from tests import fakes
from tests.conftest import ROWS, Cli, start

SMALL = [
    "engine=hf",
    "engine.dtype=float32",
    "max_length=128",
    "shard_rows=10",
    "pre_experience.global_batch_size=2",
    "pre_experience.learning_rate=0.003",
    "pre_experience.num_probe_rows=4",
    "train.global_batch_size=2",
    "train.num_epochs=1",
    "pre_experience.compile_layers=false",
    "train.compile_layers=false",
    "select.fraction=0.2",
]
KMEANS = ["sample.num_clusters=3", "sample.count=6"]
STAGES = ["sample", "train pre-experienced", "score", "select", "train cherry"]


def settings(tiny: Path, run_dir: Path) -> list[str]:
    return [f"data.path={ROWS}", f"model.path={tiny}", f"run_dir={run_dir}", *SMALL]


def stages_of(manifest: Path) -> dict[str, dict[str, Any]]:
    stages = json.loads(manifest.read_text())["stages"]
    return {stage["stage"]: stage for stage in stages}


@pytest.fixture(scope="module")
def run_dir(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, which was killed on its way, in the middle of a stage."""
    folder = tmp_path_factory.mktemp("method") / "run"
    chosen = [*settings(tiny, folder), *KMEANS]
    process = start("pipeline", *chosen)
    while process.poll() is None and not list(folder.glob("models/pre_*/tuned.json")):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()  # returns once no process that the run started holds its pipes
    assert not (folder / "cherry.json").exists()
    with fakes.stages_in_this_process():
        run(compose(*chosen), Job(folder, is_sweep=False))
    return folder


@pytest.fixture
def pipeline(tiny: Path, run_dir: Path) -> Iterator[Callable[..., dict[str, dict[str, Any]]]]:
    """Runs a job of a sweep over the finished run."""

    def run_job(name: str, *more: str) -> dict[str, dict[str, Any]]:
        config = compose(*settings(tiny, run_dir), *more)
        return stages_of(run(config, Job(run_dir / name, is_sweep=True)).artifact)

    with fakes.stages_in_this_process():
        yield run_job


@pytest.mark.engine
@pytest.mark.process
def test_a_killed_run_resumes_where_it_was(run_dir: Path) -> None:
    (folder,) = run_dir.glob("models/pre_experience-*")
    assert (folder / "train.json").is_file()
    tuned = (folder / "model" / "model.safetensors").stat().st_mtime_ns
    sampled = next(run_dir.glob("experience/*/experience.json")).stat().st_mtime_ns
    manifest = (run_dir / "pipeline.json").stat().st_mtime_ns
    assert sampled < tuned < manifest


@pytest.mark.engine
@pytest.mark.process
def test_the_manifest_tells_the_whole_story(tiny: Path, run_dir: Path) -> None:
    manifest = json.loads((run_dir / "pipeline.json").read_text())
    assert manifest["config"]["model"]["path"] == str(tiny)
    assert manifest["config"]["seed"] == 0
    assert {"torch", "transformers", "scikit-learn"} <= manifest["versions"].keys()
    stages = stages_of(run_dir / "pipeline.json")
    assert list(stages) == STAGES
    for stage in stages.values():
        assert Path(stage["artifact"]).exists()
        assert stage["seconds"] >= 0
    trained = stages["train pre-experienced"]["facts"]["num_trained"]
    assert trained == stages["sample"]["facts"]["num_sampled"]
    assert sum(stages["score"]["facts"].values()) == 26
    selected = stages["select"]["facts"]["num_selected"]
    assert selected == stages["train cherry"]["facts"]["num_rows"]
    assert selected == int(0.2 * stages["score"]["facts"]["usable"])


@pytest.mark.engine
@pytest.mark.process
def test_the_scorer_is_the_tuned_model_and_keeps_its_gain(run_dir: Path) -> None:
    gain = stages_of(run_dir / "pipeline.json")["score"]["gain"]
    assert gain["tuned"] < gain["base"]
    assert gain["kept"] == pytest.approx(1, abs=0.05)
    assert gain["num_rows"] == gain["num_probe_rows"] == 4


@pytest.mark.engine
@pytest.mark.process
def test_again_nothing_is_done_again(
    pipeline: Callable[..., Any], run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "cherry_vllm")
    made = {
        path: path.stat().st_mtime_ns
        for pattern in ("models/*/train.json", "logprobs/*/*", "embeddings/*/*", "experience/*/*")
        for path in run_dir.glob(pattern)
        if path.name != ".turn"  # a lock, which whoever looks takes
    }
    pipeline("again", *KMEANS)
    assert caplog.text.count("nothing to do") == len(STAGES)
    assert {path: path.stat().st_mtime_ns for path in made} == made


@pytest.mark.engine
@pytest.mark.process
def test_the_jobs_of_a_sweep_train_from_one_scoring_run(
    pipeline: Callable[..., Any], run_dir: Path
) -> None:
    jobs = [
        pipeline(f"strategy={name}", *KMEANS, f"select={name}") for name in ("cherry", "random")
    ]
    assert len(list(run_dir.glob("models/pre_experience-*"))) == 1
    assert len(list(run_dir.glob("logprobs/*"))) == 1
    assert len({stages["score"]["artifact"] for stages in jobs}) == 1
    assert len({stages["train cherry"]["artifact"] for stages in jobs}) == 2


@pytest.mark.engine
@pytest.mark.process
def test_every_way_to_gain_experience(pipeline: Callable[..., Any], run_dir: Path) -> None:
    jobs = {
        name: pipeline(f"sample={name}", f"sample={name}", "sample.count=6")
        for name in ("difficulty", "random")
    }
    jobs["none"] = pipeline("sample=none", "sample=none")
    scored = {name: stages["score"]["artifact"] for name, stages in jobs.items()}
    assert list(jobs["difficulty"]) == ["score base", *STAGES]
    assert list(jobs["random"]) == STAGES
    assert list(jobs["none"]) == STAGES[2:]
    assert len(set(scored.values())) == 3
    assert scored["none"].endswith("scores/base/scores.parquet")
    base = pl.read_parquet(scored["none"]).filter(pl.col("drop_reason").is_null())
    (meta,) = run_dir.glob("experience/difficulty-*/experience.json.meta.json")
    hardest = base.sort("ifd", descending=True).head(6)["row"].sort().to_list()
    assert json.loads(meta.read_text())["rows"] == hardest


def test_torchrun_and_shares_are_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose(*settings(tmp_path / "model", tmp_path / "run"), "share.count=2")
    with pytest.raises(UserError, match=r"share\.count=2: only `score` and `embed`"):
        run(config, Job(tmp_path / "run", is_sweep=False))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="torchrun is only for `train`"):
        run(config, Job(tmp_path / "run", is_sweep=False))
    assert not (tmp_path / "run").exists()


@pytest.mark.checkpoint
@pytest.mark.engine
@pytest.mark.process
def test_what_was_learned_reaches_the_scores_of_vllm(
    checkpoint: Path, cli: Cli, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    places = [f"data.path={ROWS}", f"run_dir={tmp_path}", "max_length=72", "data.max_rows=8"]
    recipe = ["train.num_epochs=4", "train.global_batch_size=4", "train.num_probe_rows=99"]
    recipe += ["train.compile_layers=false", "train.bf16=false"]
    trained = cli("train", *places, f"model.path={checkpoint}", "train=pre_experience", *recipe)
    assert trained.returncode == 0, trained.stderr
    (folder,) = tmp_path.glob("models/pre_experience-*")
    tuned = open_tuned(folder)
    assert tuned.scorer.folder == folder / "bfloat16"
    kept: dict[str, float] = {}
    warned: dict[str, bool] = {}
    # The copy's weights are in bf16; products in bf16 take long on many CPUs.
    for copy, dtype, num_rows in [("bfloat16", "float32", 8), ("model", "bfloat16", 4)]:
        scores_dir = tmp_path / copy
        more = [f"model.path={folder / copy}", f"scores_dir={scores_dir}", f"engine.dtype={dtype}"]
        more += [f"data.max_rows={num_rows}"]
        scored = cli("score", *places, "engine=vllm_fused_eager", *more)
        assert scored.returncode == 0, scored.stderr
        caplog.clear()
        scores = pl.read_parquet(scores_dir / "scores.parquet")
        gain = measure_gain(tuned.probe, range(8), scores)
        assert gain is not None
        assert gain.kept is not None
        kept[copy], warned[copy] = gain.kept, "of what training taught" in caplog.text
    assert warned == {"bfloat16": False, "model": True}
    assert kept["bfloat16"] == pytest.approx(1, abs=0.1)  # rounded stochastically
    assert kept["model"] == pytest.approx(0.4, abs=0.4)  # rounded to nearest by vLLM
