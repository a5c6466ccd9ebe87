"""Shares of a run: several processes, one run folder."""

import signal
import time
from pathlib import Path

import pytest

from tests.conftest import Cli, children, start
from tests.runs import (
    NUM_ROWS,
    NUM_SHARDS,
    SHARD_ROWS,
    assert_refused,
    assert_same,
    command,
    stamps,
)


@pytest.mark.engine
@pytest.mark.process
def test_two_processes_share_a_run_and_the_last_to_end_aggregates(
    data: Path, tiny: Path, cli: Cli, undisturbed: Path, tmp_path: Path
) -> None:
    shares = [
        start(*command(data, tiny, tmp_path, f"share.index={index}", "share.count=2"))
        for index in (0, 1)
    ]
    running = dict(enumerate(shares))
    while running:  # until each holds its share; then neither may end before the others have tried
        assert all(share.poll() is None for share in shares)
        for index in {int(name[5:10]) % 2 for name in stamps(tmp_path)} & running.keys():
            running.pop(index).send_signal(signal.SIGSTOP)
        time.sleep(0.01)
    assert_refused(cli(*command(data, tiny, tmp_path)), "in use by another run")
    taken = cli(*command(data, tiny, tmp_path, "share.index=1", "share.count=2"))
    assert_refused(taken, "in use by another run", str(shares[1].pid))
    for share in shares:
        share.send_signal(signal.SIGCONT)
    ends = [share.communicate() for share in shares]
    for share, (_, stderr) in zip(shares, ends, strict=True):
        assert share.returncode == 0, stderr
        assert f"scoring: {NUM_ROWS // 2} rows in" in stderr  # a share tells of its own rows
    assert sum("rows read" in stdout for stdout, _ in ends) >= 1
    assert_same(tmp_path, undisturbed)


@pytest.mark.engine
@pytest.mark.process
def test_a_share_leaves_the_rest_to_a_plain_run_which_recycles_its_engine(
    data: Path, tiny: Path, cli: Cli, undisturbed: Path, tmp_path: Path
) -> None:
    share = cli(*command(data, tiny, tmp_path, "share.index=2", "share.count=3"))
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
        time.sleep(0.05)
    _, stderr = plain.communicate()
    assert plain.returncode == 0, stderr
    assert len(workers) == 2
    assert f"{len(expected) * SHARD_ROWS} of {NUM_ROWS} rows are done already" in stderr
    assert finished.items() <= stamps(tmp_path).items()
    assert_same(tmp_path, undisturbed)
