"""Faults injected into the real command line: nothing is lost, and nothing scored twice."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import polars as pl
import pytest
from transformers import AutoTokenizer

from tests.conftest import Cli, children, start
from tests.runs import (
    DEADLY,
    DEADLY_ROW,
    NUM_ROWS,
    NUM_SHARDS,
    SHARD_ROWS,
    assert_gone,
    assert_refused,
    assert_same,
    command,
    leftovers,
    plain_answer,
    stamps,
    wait_for_shards,
    write_rows,
)

pytestmark = [pytest.mark.engine, pytest.mark.process]

FAULTS = Path(__file__).parents[1] / "faults"


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> Callable[[str], None]:
    """Makes the engines of the test's processes die on deadly rows."""

    def arm(fault: str) -> None:
        token = AutoTokenizer.from_pretrained(tiny)(DEADLY)["input_ids"][0]
        monkeypatch.setenv("FAULT_TOKEN", str(token))
        monkeypatch.setenv("FAULT", fault)
        monkeypatch.setenv("PYTHONPATH", f"{FAULTS}:{os.environ.get('PYTHONPATH', '')}")

    return arm


# --- kills ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_kills", [3, pytest.param(20, marks=pytest.mark.exhaustive)])
def test_kill_9_at_random_points_loses_no_finished_shard(
    *, num_kills: int, data: Path, tiny: Path, cli: Cli, undisturbed: Path, tmp_path: Path
) -> None:
    generator, run_dir = random.Random(0), tmp_path / "run"
    finished: dict[str, int] = {}
    num_workers = 0
    for attempt in range(num_kills):
        process = start(*command(data, tiny, run_dir))
        if attempt % 5:  # wherever it is: importing, reading, loading
            time.sleep(generator.uniform(0, 4))
        else:  # among the shards, which come fast once the model is loaded
            wait_for_shards(process, run_dir, len(finished) + 1)
            time.sleep(generator.uniform(0, 0.02))
        workers = children(process.pid)
        process.kill()
        process.communicate()
        assert_gone(workers)
        num_workers += len(workers)
        now = stamps(run_dir)
        assert finished.items() <= now.items(), "a finished shard was scored again"
        finished = now
    assert num_workers >= 1
    assert 1 <= len(finished) < NUM_SHARDS, "the run ended before the kills did"
    done = cli(*command(data, tiny, run_dir))
    assert done.returncode == 0, done.stderr
    assert finished.items() <= stamps(run_dir).items()
    assert_same(run_dir, undisturbed)


def test_an_engine_that_is_killed_or_hangs_is_started_again(
    data: Path, tiny: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    process = start(*command(data, tiny, run_dir, "executor.timeout_s=3"))
    for count, number in ((5, signal.SIGKILL), (20, signal.SIGSTOP)):
        wait_for_shards(process, run_dir, count)
        (worker,) = children(process.pid)
        os.kill(worker, number)
        finished = stamps(run_dir)
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert stderr.count("the engine was killed by SIGKILL") == 1
    assert stderr.count("the engine gave no sign of life for 3 s") == 1
    assert_gone([worker])
    assert finished.items() <= stamps(run_dir).items()
    assert_same(run_dir, undisturbed)


# --- rows that kill ------------------------------------------------------------------------------


def test_a_row_on_which_the_engine_dies_is_found_and_the_rest_scored(
    *,
    data: Path,
    tiny: Path,
    cli: Cli,
    undisturbed: Path,
    faulty: Callable[[str], None],
    tmp_path: Path,
) -> None:
    faulty("row")
    done = cli(*command(data, tiny, tmp_path))
    assert done.returncode == 0, done.stderr
    found = f"row {DEADLY_ROW}: the engine died twice on this row alone; dropped as engine_failed"
    assert done.stderr.count(found) == 1
    assert "Traceback" not in done.stderr
    (failures,) = tmp_path.glob("logprobs/*/failures.log")
    assert failures.read_text().count("killed by SIGKILL") == 3  # the shard twice, one half
    assert failures.read_text().count("RuntimeError: CUDA error: an illegal") >= 2
    scores, sound = (pl.read_parquet(run / "scores.parquet") for run in (tmp_path, undisturbed))
    assert scores.row(DEADLY_ROW)[-1] == "engine_failed"
    assert set(scores.row(DEADLY_ROW)[1:-1]) == {None}
    rest = pl.col("row") != DEADLY_ROW
    scores, sound = scores.filter(rest), sound.filter(rest)
    exact = ["row", "num_answer_tokens", "truncated", "drop_reason"]
    assert scores.select(exact).equals(sound.select(exact))
    # The rest of that shard was scored in parts, so in other batches.
    assert scores["ifd"].to_list() == pytest.approx(sound["ifd"].to_list(), abs=1e-6)
    differing = scores.filter(scores["ifd"] != sound["ifd"])["row"].to_list()
    assert set(differing) <= set(range(DEADLY_ROW - 1, DEADLY_ROW + 3))
    manifest = json.loads((tmp_path / "score.json").read_text())
    assert manifest["outcomes"]["engine_failed"] == 1
    assert sum(manifest["outcomes"].values()) == NUM_ROWS
    assert "executor.retry_failed=true" in done.stdout
    # On another day the engine does not die on it.
    faulty("none")
    finished = stamps(tmp_path)
    again = cli(*command(data, tiny, tmp_path, "executor.retry_failed=true"))
    assert again.returncode == 0, again.stderr
    changed = {name for name, stamp in stamps(tmp_path).items() if finished[name] != stamp}
    assert changed == {f"part-{DEADLY_ROW // SHARD_ROWS:05d}.done"}
    assert "executor.retry_failed" not in again.stdout
    assert_same(tmp_path, undisturbed)


def test_an_engine_that_dies_while_it_loads_is_no_rows_fault(
    data: Path, tiny: Path, cli: Cli, faulty: Callable[[str], None], tmp_path: Path
) -> None:
    faulty("load")
    done = cli(*command(data, tiny, tmp_path / "run"))
    assert_refused(done, "the model cannot be loaded", "SIGKILL", "memory ran out")
    assert stamps(tmp_path / "run") == {}


def test_vllms_process_killed_under_its_parent_by_a_row_of_its_own(
    tiny_for_vllm: Path, cli: Cli, faulty: Callable[[str], None], tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [plain_answer(0), f"{DEADLY} {plain_answer(1)}"])
    faulty("kill")
    # Shards of one row, because an engine takes long to start.
    more = ("engine=vllm_fused_eager", "shard_rows=1")
    done = cli(*command(data, tiny_for_vllm, tmp_path / "run", *more))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the engine was killed by SIGKILL") == 2
    assert "row 1: the engine died twice on this row alone" in done.stderr
    scores = pl.read_parquet(tmp_path / "run" / "scores.parquet")
    assert scores["ifd"].is_null().to_list() == [False, True]
    assert scores["drop_reason"][1] == "engine_failed"


# --- disks and files -----------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(path: Path) -> None:
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(512))


def test_a_full_disk_costs_one_line_and_nothing_else(
    data: Path, tiny: Path, cli: Cli, undisturbed: Path, small_disk: Path
) -> None:
    run_dir, filler = small_disk / "run", small_disk / "filler"
    process = start(*command(data, tiny, run_dir))
    wait_for_shards(process, run_dir, 5)
    fill(filler)
    stdout, stderr = process.communicate()
    done = subprocess.CompletedProcess([], process.returncode, stdout, stderr)
    assert_refused(done, "No space left", "run_dir")
    assert leftovers(run_dir) == []
    finished = stamps(run_dir)
    assert 5 <= len(finished) < NUM_SHARDS
    filler.unlink()
    again = cli(*command(data, tiny, run_dir))
    assert again.returncode == 0, again.stderr
    assert finished.items() <= stamps(run_dir).items()
    assert_same(run_dir, undisturbed)


def test_what_is_damaged_is_found_and_made_again(
    data: Path, tiny: Path, cli: Cli, undisturbed: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(undisturbed, run_dir)
    (logprobs,), (rows,) = run_dir.glob("logprobs/*"), run_dir.glob("rows/*")
    os.truncate(logprobs / "part-00003.parquet", 1000)
    flip_a_bit(logprobs / "part-00017.parquet")
    flip_a_bit(rows / "part-00020.parquet")
    flip_a_bit(run_dir / "scores.parquet")
    whole = (logprobs / "part-00016.done").stat().st_mtime_ns
    done = cli(*command(data, tiny, run_dir))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(": damaged, since") == 3
    for shard in (logprobs / "part-00003", logprobs / "part-00017", rows / "part-00020"):
        assert f"{shard}.parquet: damaged, since" in done.stderr
    assert f"{NUM_ROWS - 2 * SHARD_ROWS} of {NUM_ROWS} rows are done already" in done.stderr
    assert (logprobs / "part-00016.done").stat().st_mtime_ns == whole
    assert_same(run_dir, undisturbed)
    for shard in (undisturbed / "rows").glob("*/*.parquet"):
        assert (rows / shard.name).read_bytes() == shard.read_bytes()


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
