"""Shards: done only if they are, byte for byte, what was written; folders closed once."""

import os
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from cherry_vllm.runtime.versions import installed_versions
from cherry_vllm.store.shards import Shards

SETTINGS = {"model": "m", "max_length": 512, "prompt": {"marker": "x", "chat": False}}
FRAME = pl.DataFrame({"row": range(100), "text": [f"row {i}" for i in range(100)]})


def names_in(folder: Path) -> list[str]:
    """Every file but locks."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".turn")


def test_a_written_shard_is_done_and_reads_back(tmp_path: Path) -> None:
    shards = Shards(tmp_path, SETTINGS)
    assert not shards.is_done(0)
    shards.write(0, FRAME)
    assert shards.is_done(0)
    assert not shards.is_done(1)
    assert shards.num_rows(0) == 100
    assert_frame_equal(shards.read(0), FRAME)
    assert names_in(shards.folder) == ["part-00000.done", "part-00000.parquet"]


def test_a_shard_without_its_marker_is_not_done(tmp_path: Path) -> None:
    shards = Shards(tmp_path, SETTINGS)
    shards.write(0, FRAME)
    shards.path(0).with_suffix(".done").unlink()
    assert not shards.is_done(0)


def test_a_marker_without_its_shard_is_not_done(tmp_path: Path) -> None:
    shards = Shards(tmp_path, SETTINGS)
    shards.write(0, FRAME)
    shards.path(0).unlink()
    assert not shards.is_done(0)


@pytest.mark.parametrize("lost", [1, 100])
def test_a_truncated_shard_is_not_done(tmp_path: Path, lost: int) -> None:
    shards = Shards(tmp_path, SETTINGS)
    shards.write(0, FRAME)
    os.truncate(shards.path(0), shards.path(0).stat().st_size - lost)
    assert not shards.is_done(0)


@pytest.mark.parametrize("content", ["", "{", '{"rows": 100}', "\x00\x00"])
def test_a_shard_with_a_broken_marker_is_not_done(tmp_path: Path, content: str) -> None:
    shards = Shards(tmp_path, SETTINGS)
    shards.write(0, FRAME)
    shards.path(0).with_suffix(".done").write_text(content)
    assert not shards.is_done(0)


def test_a_failed_rewrite_leaves_the_shard_not_done_and_no_rest(tmp_path: Path) -> None:
    shards = Shards(tmp_path, SETTINGS)
    shards.write(0, FRAME)
    with pytest.raises(pl.exceptions.ComputeError):
        shards.write(0, pl.DataFrame({"unwritable": [object()]}))
    assert not shards.is_done(0)
    assert names_in(shards.folder) == ["part-00000.parquet"]
    shards.write(0, FRAME[:50])
    assert shards.is_done(0)
    assert shards.num_rows(0) == 50


def test_other_settings_have_another_folder_and_see_no_shard(tmp_path: Path) -> None:
    shards, others = Shards(tmp_path, SETTINGS), Shards(tmp_path, {**SETTINGS, "max_length": 1024})
    shards.write(0, FRAME)
    shards.close(1)
    assert others.folder != shards.folder
    assert not others.is_done(0)
    assert not others.is_complete()
    assert Shards(tmp_path, dict(reversed(SETTINGS.items()))).is_complete()


def test_a_folder_is_complete_once_closed(tmp_path: Path) -> None:
    shards = Shards(tmp_path, SETTINGS)
    assert not shards.is_complete()
    shards.write(0, FRAME[:60])
    shards.write(1, FRAME[60:])
    assert not shards.is_complete()
    shards.close(2, num_rows=100)
    assert shards.is_complete()
    assert shards.num_shards == 2
    assert shards.summary == {
        "num_shards": 2,
        "num_rows": 100,
        "contents": shards.summary["contents"],
        "versions": installed_versions(),
        "settings": SETTINGS,
    }
    assert_frame_equal(shards.scan().collect(), FRAME)


def test_a_shard_with_a_flipped_bit_is_not_done_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
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


def test_what_a_killed_writer_left_is_discarded(tmp_path: Path) -> None:
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
def test_a_closed_folder_with_a_harmed_shard_is_not_complete(
    tmp_path: Path, harm: str, index: int
) -> None:
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


def test_more_than_ten_shards_are_scanned_in_order(tmp_path: Path) -> None:
    shards = Shards(tmp_path, SETTINGS)
    for index in reversed(range(12)):
        shards.write(index, pl.DataFrame({"row": [index]}))
    shards.close(12)
    assert shards.scan().collect()["row"].to_list() == list(range(12))
