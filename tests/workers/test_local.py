"""Workers that are processes of this machine."""

import logging
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cherry_vllm import config
from cherry_vllm.config import compose
from cherry_vllm.engines.checkpoint import Checkpoint
from cherry_vllm.engines.settings import HfSettings
from cherry_vllm.errors import UserError
from cherry_vllm.store.shards import Shards
from cherry_vllm.workers.driver import Driver
from cherry_vllm.workers.local import LocalExecutor, split_cores
from cherry_vllm.workers.settings import ExecutorSettings
from cherry_vllm.workers.work import Task
from tests import fakes
from tests.conftest import children, start
from tests.fakes import FakeEngine, Faults
from tests.runs import assert_same, command


def test_cores_are_split_and_none_is_left_over() -> None:
    cores = os.sched_getaffinity(0)
    for num_workers in (1, 2, 3):
        parts = [split_cores(slot, num_workers) for slot in range(num_workers)]
        assert all(parts)
        assert set().union(*parts) == cores
        if num_workers <= len(cores):
            assert sum(map(len, parts)) == len(cores)


def test_without_gpus_there_is_one_worker_unless_told_otherwise() -> None:
    engine = HfSettings(name="hf", dtype="auto", device="cpu", batch_tokens=1)
    assert LocalExecutor(executor_settings(), engine).num_workers == 1
    assert LocalExecutor(executor_settings(num_workers=3), engine).num_workers == 3


@pytest.mark.parametrize("num_workers", [0, -1])
def test_a_number_of_workers_below_one_is_refused(num_workers: int) -> None:
    engine = HfSettings(name="hf", dtype="auto", device="cpu", batch_tokens=1)
    with pytest.raises(UserError, match=f"executor.num_workers={num_workers}: give"):
        LocalExecutor(executor_settings(num_workers=num_workers), engine)


# --- a fake engine in processes of its own -------------------------------------------------------

NUM_SHARDS, SHARD_ROWS, BAD = 4, 3, 7


@dataclass
class Bad(Faults):
    """What a fake engine does on the bad row."""

    def meet(self, sequences: Sequence[list[int]]) -> None:
        """See :class:`Faults`."""
        if any(BAD in token_ids for token_ids in sequences):
            self.act()

    def act(self) -> None:
        raise TypeError("forward() got an unexpected keyword argument 'logits_to_keep'")


class Spins(Bad):
    def act(self) -> None:
        """Computes for long without a sign of life."""
        end = time.monotonic() + 4
        while time.monotonic() < end:
            pass


class Sleeps(Bad):
    def act(self) -> None:
        """Hangs."""
        time.sleep(60)


class Dies(Bad):
    def act(self) -> None:
        """Is killed, as when memory runs out."""
        os.kill(os.getpid(), signal.SIGKILL)


def no_builder() -> None:
    """Token ids are made up."""


def executor_settings(**changes: Any) -> ExecutorSettings:
    """Those of ``conf/``, with changes."""
    return replace(config.executor_settings(compose().executor), **changes)


def drive(folder: Path, faults: Faults, **settings: Any) -> Shards:
    """A run over a fake engine in a worker's process; returns the results, whole or not."""
    checkpoint = Checkpoint(folder, "fingerprint", ())
    source = fakes.write_row_shards(Shards(folder / "rows", {}), NUM_SHARDS, SHARD_ROWS)
    target = Shards(folder / "scores", {})
    target.folder.mkdir(parents=True, exist_ok=True)
    builder: Any = no_builder
    open_model = partial(FakeEngine, checkpoint, faults)
    task = Task(source, target, checkpoint, builder, open_model, "logprobs", fakes.make_shard)
    engine = HfSettings(name="hf", dtype="auto", device="cpu", batch_tokens=1)
    executor = LocalExecutor(executor_settings(**settings), engine)
    driver = Driver("scoring", task, executor, units_per_row=1, recycle_shards=200)
    indices = range(NUM_SHARDS)
    driver.run(indices, target.missing(indices))
    return target


def reasons(shards: Shards) -> list[str | None]:
    return pl.concat([shards.read(index) for index in range(NUM_SHARDS)])["drop_reason"].to_list()


@pytest.mark.process
def test_a_row_that_computes_for_long_without_a_sign_is_scored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        target = drive(tmp_path, Spins(), timeout_s=1)
    assert set(reasons(target)) == {None}
    assert "but the engine is computing: waiting" in caplog.text
    assert "gave no sign of life" not in caplog.text


@pytest.mark.process
def test_a_row_that_only_ever_hangs_ends_the_run_and_is_scored_by_the_next(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no sign of life for 2 s.* raise executor\.timeout_s"):
        drive(tmp_path, Sleeps(), timeout_s=0.5)
    target = Shards(tmp_path / "scores", {})
    assert target.missing(range(NUM_SHARDS)) == [BAD // SHARD_ROWS]
    assert set(reasons(drive(tmp_path, Faults()))) == {None}


@pytest.mark.process
def test_a_row_that_kills_its_worker_is_dropped_alone(tmp_path: Path) -> None:
    dropped = [row for row, reason in enumerate(reasons(drive(tmp_path, Dies()))) if reason]
    assert dropped == [BAD]
    failures = (Shards(tmp_path / "scores", {}).folder / "failures.log").read_text()
    assert "was killed by SIGKILL" in failures


@pytest.mark.process
def test_an_error_that_every_row_meets_is_told_from_a_workers_process(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"failed: TypeError: forward\(\) got .*every row"):
        drive(tmp_path, Bad())
    failures = (Shards(tmp_path / "scores", {}).folder / "failures.log").read_text()
    assert failures.count("Traceback") == 1


# --- the real thing ------------------------------------------------------------------------------


@pytest.mark.engine
@pytest.mark.process
def test_two_local_workers_make_the_same_shards(
    data: Path, tiny: Path, undisturbed: Path, tmp_path: Path
) -> None:
    process, workers = start(*command(data, tiny, tmp_path, "executor.num_workers=2")), set[int]()
    while process.poll() is None:
        workers.update(children(process.pid))
        time.sleep(0.05)
    assert process.returncode == 0, process.communicate()[1]
    assert len(workers) == 3  # one is the reader
    assert_same(tmp_path, undisturbed)
