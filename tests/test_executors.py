"""Who makes the shards: the failure policy by itself, and every executor on the real thing."""

import os
import signal
import time
from pathlib import Path

import polars as pl
import pytest

from cherry_vllm.engines.settings import HfSettings
from cherry_vllm.errors import UserError
from cherry_vllm.workers.local import LocalExecutor, split_cores
from cherry_vllm.workers.run import Share
from cherry_vllm.workers.settings import ExecutorSettings
from tests.conftest import Cli, children, start
from tests.runs import (
    NUM_ROWS,
    NUM_SHARDS,
    SHARD_ROWS,
    assert_gone,
    assert_refused,
    assert_same,
    command,
    logprob_files,
    stamps,
    wait_for_shards,
)


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


# --- the real thing ------------------------------------------------------------------------------


def test_two_local_workers_make_the_same_shards(
    data: Path, tiny: Path, undisturbed: Path, tmp_path: Path
) -> None:
    process, workers = start(*command(data, tiny, tmp_path, "executor.num_workers=2")), set[int]()
    while process.poll() is None:
        workers.update(children(process.pid))
    assert process.returncode == 0, process.communicate()[1]
    assert len(workers) == 3  # one is the reader
    assert_same(tmp_path, undisturbed)


def test_ray_actors_make_the_same_shards_and_take_over_from_a_killed_one(
    data: Path, tiny: Path, undisturbed: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    more = ("executor=ray", "executor.num_workers=2")
    process = start(*command(data, tiny, tmp_path, *more))
    wait_for_shards(process, tmp_path, 5)
    started_by = {pid: name for pid, name in processes() if name.startswith("ray::Actor")}
    assert len(started_by) == 2
    os.kill(min(started_by), signal.SIGKILL)
    finished = stamps(tmp_path)
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert "the engine was lost" in stderr
    assert finished.items() <= stamps(tmp_path).items()
    assert_gone(list(started_by))
    assert_same(tmp_path, undisturbed)


def processes() -> list[tuple[int, str]]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "cmdline").read_bytes().split(b"\0")[0].decode()
        except (FileNotFoundError, ProcessLookupError):
            continue
        found.append((int(folder.name), name))
    return found


# --- shares of a run -----------------------------------------------------------------------------


def test_two_processes_share_a_run_and_the_last_to_end_aggregates(
    data: Path, tiny: Path, cli: Cli, undisturbed: Path, tmp_path: Path
) -> None:
    shares = [
        start(*command(data, tiny, tmp_path, f"shard.index={index}", "shard.count=2"))
        for index in (0, 1)
    ]
    running = dict(enumerate(shares))
    while running:  # until each holds its share; then neither may end before the others have tried
        assert all(share.poll() is None for share in shares)
        for index in {int(name[5:10]) % 2 for name in stamps(tmp_path)} & running.keys():
            running.pop(index).send_signal(signal.SIGSTOP)
        time.sleep(0.005)
    assert_refused(cli(*command(data, tiny, tmp_path)), "in use by another run")
    taken = cli(*command(data, tiny, tmp_path, "shard.index=1", "shard.count=2"))
    assert_refused(taken, "in use by another run", str(shares[1].pid))
    for share in shares:
        share.send_signal(signal.SIGCONT)
    ends = [share.communicate() for share in shares]
    for share, (_, stderr) in zip(shares, ends, strict=True):
        assert share.returncode == 0, stderr
        assert f"/{NUM_ROWS // 2} [" in stderr  # the progress of a share is told of the share
    assert sum("rows read" in stdout for stdout, _ in ends) >= 1
    assert_same(tmp_path, undisturbed)


def test_a_share_leaves_the_rest_to_a_plain_run_which_recycles_its_engine(
    data: Path, tiny: Path, cli: Cli, undisturbed: Path, tmp_path: Path
) -> None:
    share = cli(*command(data, tiny, tmp_path, "shard.index=2", "shard.count=3"))
    assert share.returncode == 0, share.stderr
    assert "share 2 of 3 scored" in share.stdout
    expected = [f"part-{index:05d}.done" for index in range(2, NUM_SHARDS, 3)]
    assert sorted(stamps(tmp_path)) == expected
    assert not (tmp_path / "scores.parquet").exists()
    finished = stamps(tmp_path)
    # Which has 40 shards to make, and a new engine after 25.
    plain, workers = start(*command(data, tiny, tmp_path, "executor.recycle_shards=25")), set[int]()
    while plain.poll() is None:
        workers.update(children(plain.pid))
    _, stderr = plain.communicate()
    assert plain.returncode == 0, stderr
    assert len(workers) == 2
    assert f"{len(expected) * SHARD_ROWS}/{NUM_ROWS}" in stderr
    assert finished.items() <= stamps(tmp_path).items()
    assert_same(tmp_path, undisturbed)


def test_a_share_that_there_is_not_is_refused() -> None:
    for index, count in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(UserError, match=f"shard.index={index} shard.count={count}: give"):
            Share(index, count).check()


# --- sums ----------------------------------------------------------------------------------------


def test_sums_alone_give_the_same_scores_on_less_disk(
    data: Path, tiny: Path, cli: Cli, undisturbed: Path, tmp_path: Path
) -> None:
    done = cli(*command(data, tiny, tmp_path, "score.keep_logprobs=false", "shard_rows=240"))
    assert done.returncode == 0, done.stderr
    sums, scores = logprob_files(tmp_path), pl.read_parquet(tmp_path / "scores.parquet")
    full = pl.read_parquet(undisturbed / "scores.parquet")
    assert scores.drop("ifd", "ifd_ppl", "conditioned_score", "direct_score").equals(
        full.drop("ifd", "ifd_ppl", "conditioned_score", "direct_score")
    )
    # Shards of another size are other batches.
    assert scores["ifd"].to_list() == pytest.approx(full["ifd"].to_list(), abs=1e-6)
    assert set(pl.read_parquet(*tmp_path.glob("logprobs/*/*.parquet")).columns) == {
        "row",
        "num_answer_tokens",
        "conditioned_sum",
        "num_direct_tokens",
        "direct_sum",
        "truncated",
        "drop_reason",
    }
    assert sum(map(len, sums.values())) < 40 * NUM_ROWS
