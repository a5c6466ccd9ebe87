"""Workers that are processes of this machine."""

import os
from pathlib import Path

import pytest

from cherry_vllm.engines.settings import HfSettings
from cherry_vllm.errors import UserError
from cherry_vllm.workers.local import LocalExecutor, split_cores
from cherry_vllm.workers.settings import ExecutorSettings
from tests.conftest import children, start
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
    assert LocalExecutor(ExecutorSettings(), engine).num_workers == 1
    assert LocalExecutor(ExecutorSettings(num_workers=3), engine).num_workers == 3


@pytest.mark.parametrize("num_workers", [0, -1])
def test_a_number_of_workers_below_one_is_refused(num_workers: int) -> None:
    engine = HfSettings(name="hf", dtype="auto", device="cpu", batch_tokens=1)
    with pytest.raises(UserError, match=f"executor.num_workers={num_workers}: give"):
        LocalExecutor(ExecutorSettings(num_workers=num_workers), engine)


@pytest.mark.engine
@pytest.mark.process
def test_two_local_workers_make_the_same_shards(
    data: Path, tiny: Path, undisturbed: Path, tmp_path: Path
) -> None:
    process, workers = start(*command(data, tiny, tmp_path, "executor.num_workers=2")), set[int]()
    while process.poll() is None:
        workers.update(children(process.pid))
    assert process.returncode == 0, process.communicate()[1]
    assert len(workers) == 3  # one is the reader
    assert_same(tmp_path, undisturbed)
