"""The whole method from the command line, and what the jobs of a sweep share."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cherry_vllm.commands.pipeline import measure_gain
from tests.conftest import ROWS, Cli, start

SMALL = [
    "engine=hf",
    "engine.dtype=float32",
    "max_length=128",
    "shard_rows=10",
    "sample.num_clusters=3",
    "sample.count=6",
    "pre_experience.global_batch_size=2",
    "pre_experience.learning_rate=0.003",
    "pre_experience.num_probe_rows=4",
    "train.global_batch_size=2",
    "train.num_epochs=1",
    "pre_experience.compile_layers=false",
    "train.compile_layers=false",
    "select.fraction=0.2",
]


def command(tiny: Path, run_dir: Path, *more: str) -> list[str]:
    places = [f"data.path={ROWS}", f"model.path={tiny}", f"run_dir={run_dir}"]
    return ["pipeline", *places, *SMALL, *more]


def stages_of(manifest: Path) -> dict[str, dict[str, Any]]:
    stages = json.loads(manifest.read_text())["stages"]
    return {stage["stage"]: stage for stage in stages}


@pytest.fixture(scope="module")
def run_dir(tiny: Path, cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, which was killed on its way, in the middle of a stage."""
    folder = tmp_path_factory.mktemp("method") / "run"
    process = start(*command(tiny, folder))
    while process.poll() is None and not list(folder.glob("models/pre_*/tuned.json")):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()  # returns once no process that the run started holds its pipes
    assert not (folder / "cherry.json").exists()
    done = cli(*command(tiny, folder))
    assert done.returncode == 0, done.stderr
    assert "cherry model:" in done.stdout
    return folder


def test_a_killed_run_goes_on_where_it_was(run_dir: Path) -> None:
    (folder,) = run_dir.glob("models/pre_experience-*")
    assert (folder / "train.json").is_file()
    tuned = (folder / "model" / "model.safetensors").stat().st_mtime_ns
    sampled = next(run_dir.glob("experience/*/experience.json")).stat().st_mtime_ns
    manifest = (run_dir / "pipeline.json").stat().st_mtime_ns
    assert sampled < tuned < manifest


def test_the_manifest_tells_the_whole_story(tiny: Path, run_dir: Path) -> None:
    manifest = json.loads((run_dir / "pipeline.json").read_text())
    assert manifest["config"]["model"]["path"] == str(tiny)
    assert manifest["config"]["seed"] == 0
    assert {"torch", "transformers", "scikit-learn"} <= manifest["versions"].keys()
    stages = stages_of(run_dir / "pipeline.json")
    assert list(stages) == ["sample", "train pre-experienced", "score", "select", "train cherry"]
    for stage in stages.values():
        assert Path(stage["artifact"]).exists()
        assert stage["seconds"] >= 0
    assert (
        stages["train pre-experienced"]["facts"]["num_trained"]
        == (stages["sample"]["facts"]["num_sampled"])
    )
    assert sum(stages["score"]["facts"].values()) == 26
    selected = stages["select"]["facts"]["num_selected"]
    assert selected == stages["train cherry"]["facts"]["num_rows"]
    assert selected == int(0.2 * stages["score"]["facts"]["usable"])


def test_the_scorer_is_the_tuned_model_and_keeps_its_gain(run_dir: Path) -> None:
    gain = stages_of(run_dir / "pipeline.json")["score"]["gain"]
    assert gain["tuned"] < gain["base"]
    assert gain["kept"] == pytest.approx(1, abs=0.05)


def test_again_nothing_is_done_again(tiny: Path, cli: Cli, run_dir: Path) -> None:
    made = {
        path: path.stat().st_mtime_ns
        for pattern in ("models/*/train.json", "logprobs/*/*", "embeddings/*/*", "experience/*/*")
        for path in run_dir.glob(pattern)
    }
    again = cli(*command(tiny, run_dir))
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("nothing to do") >= 6
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_a_sweep_trains_from_one_scoring_run(tiny: Path, cli: Cli, run_dir: Path) -> None:
    more = ["-m", "select.strategy=cherry,random", "select.num_examples=0"]
    swept = cli(*command(tiny, run_dir, *more))
    assert swept.returncode == 0, swept.stderr
    assert len(list(run_dir.glob("models/pre_experience-*"))) == 1
    assert len(list(run_dir.glob("logprobs/*"))) == 1
    assert len(list(run_dir.glob("models/cherry-*"))) == 2  # one is the single run's
    manifests = sorted(run_dir.glob("*/pipeline.json"))
    assert len(manifests) == 2
    scores = {stages_of(path)["score"]["artifact"] for path in manifests}
    models = {stages_of(path)["train cherry"]["artifact"] for path in manifests}
    assert (len(scores), len(models)) == (1, 2)


def test_every_way_to_gain_experience(tiny: Path, cli: Cli, run_dir: Path) -> None:
    more = ["-m", "sample=difficulty,none", "sample.count=6"]
    places = [f"data.path={ROWS}", f"model.path={tiny}", f"run_dir={run_dir}"]
    small = [item for item in SMALL if not item.startswith("sample.")]
    swept = cli("pipeline", *places, *small, *more)
    assert swept.returncode == 0, swept.stderr
    scored = {}
    for path in run_dir.glob("*sample=*/pipeline.json"):
        stages = stages_of(path)
        strategy = json.loads(path.read_text())["config"]["sample"]["strategy"]
        scored[strategy] = stages["score"]["artifact"]
        assert ("train pre-experienced" in stages) is (strategy != "none")
    assert set(scored) == {"difficulty", "none"}
    assert len(set(scored.values())) == 2
    assert scored["none"].endswith("scores/base/scores.parquet")
    base = pl.read_parquet(scored["none"]).filter(pl.col("drop_reason").is_null())
    (meta,) = run_dir.glob("experience/difficulty-*/experience.json.meta.json")
    hardest = base.sort("ifd", descending=True).head(6)["row"].sort().to_list()
    assert json.loads(meta.read_text())["rows"] == hardest


def test_what_was_learned_reaches_the_scores_of_vllm(
    checkpoint: Path, cli: Cli, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    places = [f"data.path={ROWS}", f"run_dir={tmp_path}", "max_length=96"]
    recipe = ["train.num_epochs=3", "train.global_batch_size=8", "train.num_probe_rows=99"]
    recipe += ["train.compile_layers=false"]
    trained = cli("train", *places, f"model.path={checkpoint}", "train=pre_experience", *recipe)
    assert trained.returncode == 0, trained.stderr
    (tuned,) = tmp_path.glob("models/pre_experience-*")
    meta = tmp_path / "experience.json.meta.json"
    meta.write_text(json.dumps({"rows": list(range(26))}))
    kept = {}
    for copy, dtype in [("bfloat16", "auto"), ("model", "bfloat16")]:
        scores_dir = tmp_path / copy
        more = [f"model.path={tuned / copy}", f"scores_dir={scores_dir}", f"engine.dtype={dtype}"]
        scored = cli("score", *places, "engine=vllm_eager", *more)
        assert scored.returncode == 0, scored.stderr
        caplog.clear()
        experience, scores = tmp_path / "experience.json", scores_dir / "scores.parquet"
        gain = measure_gain(tuned, experience, scores)
        kept[copy] = (gain["kept"], "of what training taught" in caplog.text)
    assert kept["bfloat16"] == (pytest.approx(1, abs=0.1), False)  # rounded stochastically
    assert kept["model"] == (pytest.approx(0.4, abs=0.4), True)  # rounded to nearest by vLLM
