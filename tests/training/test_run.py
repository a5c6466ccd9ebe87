"""``cherry-vllm train``: what it leaves, and a run that is repeated, killed or shared."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cherry_vllm.commands.job import Job
from cherry_vllm.commands.train import train
from cherry_vllm.config import compose
from cherry_vllm.engines.checkpoint import read_checkpoint
from cherry_vllm.errors import UserError
from cherry_vllm.store.files import write_json
from cherry_vllm.training.tuned_model import open_tuned
from tests.conftest import ROWS, Cli, children, start
from tests.training.support import assert_same_weights, load_logits

pytestmark = [pytest.mark.engine, pytest.mark.process]


def train_command(tiny: Path, run_dir: Path, *more: str) -> list[str]:
    return [
        "train",
        f"data.path={ROWS}",
        f"model.path={tiny}",
        f"run_dir={run_dir}",
        "max_length=128",
        "train.global_batch_size=7",
        "train.learning_rate=0.001",
        "train.compile_layers=false",
        "train.num_probe_rows=4",
        *more,
    ]


def folder_of(run_dir: Path) -> Path:
    (folder,) = run_dir.glob("models/*")
    return folder


def losses_of(run_dir: Path) -> list[float]:
    return pl.read_csv(folder_of(run_dir) / "losses.csv")["loss"].to_list()


@pytest.fixture(scope="module")
def trained(tiny: Path, cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    done = cli(*train_command(tiny, run_dir))
    assert done.returncode == 0, done.stderr
    assert "loss on probe rows" in done.stdout
    return run_dir


def test_what_a_training_leaves(trained: Path) -> None:
    folder = folder_of(trained)
    assert folder.name.startswith("cherry-")
    names = {path.name for path in folder.iterdir()}
    assert names == {"model", "losses.csv", "losses.png", "train.json"}
    facts = json.loads((folder / "train.json").read_text())
    assert facts["num_trained"] + sum(facts["dropped"].values()) == facts["num_rows"] == 26
    assert facts["num_steps"] == 3 * math.ceil(facts["num_trained"] / 7)
    probe = facts["probe"]
    assert probe["losses"]["model"] < probe["losses"]["base"]
    assert len(probe["rows"]) == len(probe["row_losses"]["base"]) == 4
    means = np.average(probe["row_losses"]["model"], weights=probe["num_tokens"])
    assert probe["losses"]["model"] == pytest.approx(float(means))


def test_trained_before_is_not_trained_again(tiny: Path, cli: Cli, trained: Path) -> None:
    stamp = (folder_of(trained) / "train.json").stat().st_mtime_ns
    again = cli(*train_command(tiny, trained, "train.micro_batch_tokens=999"))  # decides no weight
    assert "trained before, nothing to do" in again.stderr
    assert (folder_of(trained) / "train.json").stat().st_mtime_ns == stamp


def test_another_model_in_the_folder_of_a_training_is_refused(
    tiny: Path, trained: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(folder_of(trained), tmp_path / "folder")
    found = open_tuned(folder)
    assert found.model.folder == found.scorer.folder == folder / "model"
    shutil.copyfile(tiny / "model.safetensors", folder / "model" / "model.safetensors")
    with pytest.raises(UserError, match="not the model that training saved there"):
        open_tuned(folder)


def test_another_model_between_training_and_its_record_is_refused(
    tiny: Path, trained: Path, tmp_path: Path
) -> None:
    run_dir = Path(shutil.copytree(trained, tmp_path / "run"))
    folder = folder_of(run_dir)
    (folder / "train.json").unlink()  # as a kill before it was written leaves the folder
    model = read_checkpoint(folder / "model").fingerprint
    write_json(folder / "tuned.json", {"num_steps": 1, "seconds": 1.0, "model": model})
    config = compose(*train_command(tiny, run_dir)[1:])
    weights = (folder / "model" / "model.safetensors").read_bytes()
    shutil.copyfile(tiny / "model.safetensors", folder / "model" / "model.safetensors")
    with pytest.raises(UserError, match="not the model that training saved there"):
        train(config, Job(run_dir, is_sweep=False))
    (folder / "model" / "model.safetensors").write_bytes(weights)
    assert train(config, Job(run_dir, is_sweep=False)) is not None
    assert "model" not in json.loads((folder / "train.json").read_text())


def test_kill_9_in_mid_epoch_and_the_same_command_give_the_same_losses(
    tiny: Path, cli: Cli, trained: Path, tmp_path: Path
) -> None:
    command = train_command(tiny, tmp_path, "train.save_steps=0.15")
    for victim, step in [("training", 4), ("command", 6)]:
        process = start(*command)
        state = f"models/*/checkpoints/*-{step}/trainer_state.json"
        while process.poll() is None and not list(tmp_path.glob(state)):
            time.sleep(0.01)
        (child,) = children(process.pid)
        os.kill(process.pid if victim == "command" else child, signal.SIGKILL)
        _, stderr = process.communicate()
        if victim == "training":
            assert process.returncode == 2
            assert "was killed by SIGKILL" in stderr
            assert "the same command resumes" in stderr
            assert "Traceback" not in stderr
    checkpoints = folder_of(tmp_path) / "checkpoints"
    (checkpoints / "checkpoint-99").mkdir()  # as a kill while it was written would leave it
    (checkpoints / "checkpoint-99" / "model.safetensors").write_bytes(b"half")
    done = cli(*command)
    assert done.returncode == 0, done.stderr
    assert "do not match" not in done.stderr  # transformers, of 0.15 and 2 steps
    assert losses_of(tmp_path) == losses_of(trained)
    assert_same_weights(folder_of(tmp_path) / "model", folder_of(trained) / "model", atol=0)
    assert not checkpoints.exists()


def test_two_processes_of_torchrun_leave_the_model_of_one(
    tiny: Path, trained: Path, tmp_path: Path
) -> None:
    run_with_torchrun(train_command(tiny, tmp_path))
    np.testing.assert_allclose(losses_of(tmp_path), losses_of(trained), atol=2e-3)
    left, right = folder_of(tmp_path), folder_of(trained)
    assert left.name == right.name  # so that a pipeline goes on from what torchrun trained
    np.testing.assert_allclose(load_logits(left / "model"), load_logits(right / "model"), atol=0.01)


def test_two_processes_of_torchrun_train_a_multimodal_model_by_lora(
    multimodal: Path, tmp_path: Path
) -> None:
    more = ("train.lora_rank=4", "train.num_epochs=1", "train.lora_dropout=0")
    run_with_torchrun(train_command(multimodal, tmp_path, *more))
    names = {path.name for path in folder_of(tmp_path).iterdir()}
    assert names == {"model", "adapter", "losses.csv", "losses.png", "train.json"}
    assert not list((folder_of(tmp_path) / "model").glob("adapter*"))


def run_with_torchrun(command: list[str]) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "--standalone", "-m", "cherry_vllm", *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_rows_that_cannot_be_trained_on_are_counted_in_one_line(tiny: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"instruction": "a", "output": " "}\n')
    config = compose(f"data.path={empty}", f"model.path={tiny}", f"run_dir={tmp_path / 'run'}")
    with pytest.raises(UserError, match="no row to train on: 0 of 1 rows, 1 empty_answer"):
        train(config, Job(tmp_path, is_sweep=False))
