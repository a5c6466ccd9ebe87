"""Faults injected into the real command line: nothing is lost, and nothing scored twice."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event

import polars as pl
import pytest
from transformers import AutoTokenizer

from cherry_vllm.errors import UserError
from cherry_vllm.options import DataFormat
from cherry_vllm.sources import Columns
from cherry_vllm.sources.shards import read_row_shards
from cherry_vllm.store.shards import Shards
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

FAULTS = Path(__file__).parent / "faults"


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


def test_kill_9_at_twenty_random_points(
    data: Path, tiny: Path, cli: Cli, undisturbed: Path, tmp_path: Path
) -> None:
    generator, run_dir = random.Random(0), tmp_path / "run"
    finished: dict[str, int] = {}
    num_workers = 0
    for attempt in range(20):
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
    assert num_workers >= 4
    assert 4 <= len(finished) < NUM_SHARDS, "the run ended before the kills did"
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


@pytest.mark.parametrize(("number", "num_shards"), [(signal.SIGTERM, 5), (signal.SIGINT, 0)])
def test_a_signal_ends_the_run_with_one_line_that_says_how_to_go_on(
    *, data: Path, tiny: Path, tmp_path: Path, number: signal.Signals, num_shards: int
) -> None:
    run_dir = tmp_path / "run"
    before = signal.signal(number, signal.SIG_DFL)  # what a job in the background starts ignores it
    process = start(*command(data, tiny, run_dir, "shard_rows=1"))
    signal.signal(number, before)
    while process.poll() is None and not (workers := children(process.pid)):
        time.sleep(0.01)
    wait_for_shards(process, run_dir, num_shards)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    last = stderr.splitlines()[-1]
    assert last == f"cherry-vllm: stopped by {number.name}; the same command resumes"
    assert "Traceback" not in stderr
    assert leftovers(run_dir) == []
    assert_gone(workers)
    assert num_shards <= len(stamps(run_dir)) < NUM_ROWS


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
    found = f"row {DEADLY_ROW}: the engine died on it, alone, twice; dropped as engine_failed"
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


def test_an_engine_that_dies_while_it_loads_is_no_rows_fault(
    data: Path, tiny: Path, cli: Cli, faulty: Callable[[str], None], tmp_path: Path
) -> None:
    faulty("load")
    done = cli(*command(data, tiny, tmp_path / "run"))
    assert_refused(done, "the model cannot be loaded", "SIGKILL", "want of memory")
    assert stamps(tmp_path / "run") == {}


def test_vllms_process_killed_under_its_parent_by_a_row_of_its_own(
    checkpoint: Path, cli: Cli, faulty: Callable[[str], None], tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [plain_answer(0), f"{DEADLY} {plain_answer(1)}"])
    faulty("kill")
    # Shards of one row, because an engine takes long to start.
    more = ("engine=vllm_eager", "shard_rows=1")
    done = cli(*command(data, checkpoint, tmp_path / "run", *more))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the engine was killed by SIGKILL") == 2
    assert "row 1: the engine died on it, alone, twice" in done.stderr
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
    assert f"{NUM_ROWS - 2 * SHARD_ROWS}/{NUM_ROWS}" in done.stderr  # where progress began
    assert (logprobs / "part-00016.done").stat().st_mtime_ns == whole
    assert_same(run_dir, undisturbed)
    for shard in (undisturbed / "rows").glob("*/*.parquet"):
        assert (rows / shard.name).read_bytes() == shard.read_bytes()


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_changed_input_is_refused(data: Path, tiny: Path, cli: Cli, tmp_path: Path) -> None:
    run_dir, changed = tmp_path / "run", tmp_path / "rows.jsonl"
    shutil.copy(data, changed)
    process = start(*command(changed, tiny, run_dir))
    while process.poll() is None and not list(run_dir.glob("logprobs/*/settings.json")):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    changed.write_text(data.read_text() + '{"instruction": "One more.", "output": "Yes."}\n')
    refused = cli(*command(changed, tiny, run_dir))
    assert_refused(refused, str(changed), "changed since this run began", "run_dir")
    assert len(list(run_dir.glob("logprobs/*"))) == 1
    assert stamps(run_dir) == {}
    shutil.copy(data, changed)
    again = start(*command(changed, tiny, run_dir))
    wait_for_shards(again, run_dir, 1)
    again.kill()
    again.communicate()
    assert stamps(run_dir)


def test_an_input_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    changing = write_rows(tmp_path / "rows.jsonl", ["one"] * 5000)
    is_over = Event()

    def change() -> None:
        while not is_over.wait(0.001):
            os.utime(changing)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(change)
        try:
            with pytest.raises(UserError, match="changed while it was read"):
                read(tmp_path, changing)
        finally:
            is_over.set()
    assert list(tmp_path.glob("rows/*/complete.json")) == []
    assert read(tmp_path, changing).summary["num_rows"] == 5000


def read(run_dir: Path, file: Path) -> Shards:
    columns = Columns("instruction", "input", "output")
    return read_row_shards(
        run_dir, [file], data_format=DataFormat.auto, columns=columns, refusals=[], shard_rows=100
    )
