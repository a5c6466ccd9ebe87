"""Files that survive a kill: atomic writes, shards, one run at a time."""

import errno
import os
import resource
import signal
import subprocess
import sys

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from cherry_vllm.errors import UserError
from cherry_vllm.store.files import atomic_path, fingerprint, read_json, write_json
from cherry_vllm.store.locks import exclusive
from cherry_vllm.store.shards import Shards

SETTINGS = {"model": "m", "max_length": 512, "prompt": {"marker": "x", "chat": False}}
FRAME = pl.DataFrame({"row": range(100), "text": [f"row {i}" for i in range(100)]})

# Says what came of it, then holds the folder until its input ends.
HOLDER = """
import sys
from pathlib import Path
from cherry_vllm.errors import UserError
from cherry_vllm.store.locks import exclusive
try:
    with exclusive(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
except UserError as error:
    print(f"refused: {error}", flush=True)
"""


def write_half(target, failure):
    with atomic_path(target) as path:
        path.write_text("half")
        raise failure


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


# --- atomic writes -----------------------------------------------------------------------------


def test_a_file_appears_when_the_block_succeeds_and_not_before(tmp_path):
    target = tmp_path / "new" / "folder" / "scores.parquet"
    with atomic_path(target) as path:
        path.write_text("new")
        assert path.parent == target.parent
        assert path.suffix == ".parquet"
        assert not target.exists()
    assert target.read_text() == "new"
    assert names_in(target.parent) == ["scores.parquet"]


def test_a_file_is_replaced_only_when_the_block_succeeds(tmp_path):
    target = tmp_path / "scores.parquet"
    target.write_text("old")
    with atomic_path(target) as path:
        path.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("before", [None, "old"])
def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path, failure, before):
    target = tmp_path / "scores.parquet"
    if before:
        target.write_text(before)
    with pytest.raises(failure):
        write_half(target, failure)
    assert names_in(tmp_path) == (["scores.parquet"] if before else [])
    assert not before or target.read_text() == before


def test_a_block_that_writes_nothing_leaves_what_was_there(tmp_path):
    target = tmp_path / "scores.parquet"
    target.write_text("old")
    with pytest.raises(FileNotFoundError), atomic_path(target):
        pass
    assert target.read_text() == "old"


def test_a_full_disk_is_told_as_such_by_every_writer(tmp_path):
    lines = pl.LazyFrame({"a": range(100_000)})
    writers = {
        "sunk.parquet": lines.sink_parquet,
        "written.parquet": lines.collect().write_parquet,
        "written.jsonl": lines.collect().write_ndjson,
        "bytes.bin": lambda path: path.write_bytes(bytes(100_000)),
    }
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        for name, write in writers.items():
            with pytest.raises(OSError, match="File too large") as full:
                write_to(tmp_path / name, write)
            assert full.value.errno == errno.EFBIG
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names_in(tmp_path) == []


def write_to(target, write):
    with atomic_path(target) as path:
        write(path)


def test_json_round_trips(tmp_path):
    value = {"text": 'é🌅 "quoted"\n', "nested": {"list": [1, 2.5, None, True]}}
    write_json(tmp_path / "facts.json", value)
    assert read_json(tmp_path / "facts.json") == value
    assert "é🌅" in (tmp_path / "facts.json").read_text(encoding="utf-8")


# --- fingerprints ------------------------------------------------------------------------------


def test_a_fingerprint_does_not_depend_on_the_order_of_keys():
    reordered = {"prompt": {"chat": False, "marker": "x"}, "max_length": 512, "model": "m"}
    assert list(reordered) != list(SETTINGS)
    assert fingerprint(reordered) == fingerprint(SETTINGS)
    assert set(fingerprint(SETTINGS)) <= set("0123456789abcdef")
    assert len(fingerprint(SETTINGS)) == 16


@pytest.mark.parametrize(
    "other",
    [
        {**SETTINGS, "max_length": 513},
        {**SETTINGS, "max_length": "512"},
        {**SETTINGS, "extra": None},
        {**SETTINGS, "prompt": {"marker": "y", "chat": False}},
        {**SETTINGS, "prompt": {"marker": "x", "chat": None}},
        {"model": "m", "max_length": 512},
        {},
    ],
)
def test_another_setting_has_another_fingerprint(other):
    assert fingerprint(other) != fingerprint(SETTINGS)


def test_the_order_of_a_list_counts():
    assert fingerprint({"files": ["a", "b"]}) != fingerprint({"files": ["b", "a"]})


# --- shards ------------------------------------------------------------------------------------


def test_a_written_shard_is_done_and_reads_back(tmp_path):
    shards = Shards(tmp_path, SETTINGS)
    assert not shards.is_done(0)
    shards.write(0, FRAME)
    assert shards.is_done(0)
    assert not shards.is_done(1)
    assert shards.num_rows(0) == 100
    assert_frame_equal(shards.read(0), FRAME)
    assert names_in(shards.folder) == ["part-00000.done", "part-00000.parquet"]


def test_a_shard_without_its_marker_is_not_done(tmp_path):
    shards = Shards(tmp_path, SETTINGS)
    shards.write(0, FRAME)
    shards.path(0).with_suffix(".done").unlink()
    assert not shards.is_done(0)


def test_a_marker_without_its_shard_is_not_done(tmp_path):
    shards = Shards(tmp_path, SETTINGS)
    shards.write(0, FRAME)
    shards.path(0).unlink()
    assert not shards.is_done(0)


@pytest.mark.parametrize("lost", [1, 100])
def test_a_truncated_shard_is_not_done(tmp_path, lost):
    shards = Shards(tmp_path, SETTINGS)
    shards.write(0, FRAME)
    os.truncate(shards.path(0), shards.path(0).stat().st_size - lost)
    assert not shards.is_done(0)


@pytest.mark.parametrize("content", ["", "{", '{"rows": 100}', "\x00\x00"])
def test_a_shard_with_a_broken_marker_is_not_done(tmp_path, content):
    shards = Shards(tmp_path, SETTINGS)
    shards.write(0, FRAME)
    shards.path(0).with_suffix(".done").write_text(content)
    assert not shards.is_done(0)


def test_a_failed_rewrite_leaves_the_shard_not_done_and_no_rest(tmp_path):
    shards = Shards(tmp_path, SETTINGS)
    shards.write(0, FRAME)
    with pytest.raises(pl.exceptions.ComputeError):
        shards.write(0, pl.DataFrame({"unwritable": [object()]}))
    assert not shards.is_done(0)
    assert names_in(shards.folder) == ["part-00000.parquet"]
    shards.write(0, FRAME[:50])
    assert shards.is_done(0)
    assert shards.num_rows(0) == 50


def test_other_settings_have_another_folder_and_see_no_shard(tmp_path):
    shards, others = Shards(tmp_path, SETTINGS), Shards(tmp_path, {**SETTINGS, "max_length": 1024})
    shards.write(0, FRAME)
    shards.close(1)
    assert others.folder != shards.folder
    assert not others.is_done(0)
    assert not others.is_complete()
    assert Shards(tmp_path, dict(reversed(SETTINGS.items()))).is_complete()


def test_a_folder_is_complete_once_closed(tmp_path):
    shards = Shards(tmp_path, SETTINGS)
    assert not shards.is_complete()
    shards.write(0, FRAME[:60])
    shards.write(1, FRAME[60:])
    assert not shards.is_complete()
    shards.close(2, num_rows=100)
    assert shards.is_complete()
    assert shards.num_shards == 2
    assert shards.summary == {"num_shards": 2, "num_rows": 100, "settings": SETTINGS}
    assert_frame_equal(shards.scan().collect(), FRAME)


def test_a_shard_with_a_flipped_bit_is_not_done_and_the_log_says_so(tmp_path, caplog):
    shards = Shards(tmp_path, SETTINGS)
    for index in range(3):
        shards.write(index, FRAME)
    content = bytearray(shards.path(1).read_bytes())
    content[len(content) // 2] ^= 1
    shards.path(1).write_bytes(content)
    assert shards.missing(range(4)) == [1, 3]
    assert [record.getMessage() for record in caplog.records] == [
        f"{shards.path(1)}: damaged, since it is not what was written; it is made again"
    ]


def test_what_a_killed_writer_left_is_discarded(tmp_path):
    shards = Shards(tmp_path, SETTINGS)
    shards.write(0, FRAME)
    for name in (".part-00001.77.tmp.parquet", ".part-00001.77.tmp.done", ".part-00002.7.tmp.done"):
        (shards.folder / name).write_text("half")
    shards.discard(1)
    assert names_in(shards.folder) == [
        ".part-00002.7.tmp.done",
        "part-00000.done",
        "part-00000.parquet",
    ]


@pytest.mark.parametrize("harm", ["truncated", "no data", "no marker"])
@pytest.mark.parametrize("index", [0, 2])
def test_a_closed_folder_with_a_harmed_shard_is_not_complete(tmp_path, harm, index):
    shards = Shards(tmp_path, SETTINGS)
    for part in range(3):
        shards.write(part, FRAME)
    shards.close(3)
    path = shards.path(index)
    if harm == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    else:
        (path if harm == "no data" else path.with_suffix(".done")).unlink()
    assert not shards.is_complete()
    shards.write(index, FRAME)
    assert shards.is_complete()


def test_more_than_ten_shards_are_scanned_in_order(tmp_path):
    shards = Shards(tmp_path, SETTINGS)
    for index in reversed(range(12)):
        shards.write(index, pl.DataFrame({"row": [index]}))
    shards.close(12)
    assert shards.scan().collect()["row"].to_list() == list(range(12))


# --- one run at a time -------------------------------------------------------------------------


def start_holder(folder):
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path):
    run_dir = tmp_path / "run"
    with start_holder(run_dir) as first:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="in use by another run") as refused, exclusive(run_dir):
            pytest.fail("two processes hold the folder")
        assert str(run_dir) in str(refused.value)
        assert f"process {first.pid} on" in str(refused.value)
        first.send_signal(signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL
    with exclusive(run_dir), start_holder(run_dir) as second:
        answer = second.communicate()[0]
        assert answer.startswith("refused: ")
        assert f"process {os.getpid()} on" in answer


def test_a_folder_is_free_after_a_run_that_failed(tmp_path):
    with pytest.raises(ValueError, match="a fault"), exclusive(tmp_path):
        raise ValueError("a fault")
    with start_holder(tmp_path) as next_run:
        assert next_run.communicate()[0] == "held\n"


def test_two_folders_are_held_at_once(tmp_path):
    with exclusive(tmp_path / "a"), start_holder(tmp_path / "b") as other:
        assert other.communicate()[0] == "held\n"
