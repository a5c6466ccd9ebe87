"""Shards: done only if they are, byte for byte, what was written; folders closed once."""

import os
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from cherry_vllm.errors import UserError
from cherry_vllm.runtime.versions import installed_versions
from cherry_vllm.store import shards as store
from cherry_vllm.store.shards import Shards
from tests.kills import dies_at_step

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


# --- what is read is what was written ------------------------------------------------------------


def test_rows_are_drawn_from_equal_parts_of_shards_of_any_height(tmp_path: Path) -> None:
    shards, first = Shards(tmp_path, {}), 0
    for index, height in enumerate((7, 1, 0, 12)):
        shards.write(index, pl.DataFrame({"row": range(first, first + height)}, {"row": pl.Int64}))
        first += height
    shards.close(4)
    drawn = [shards.draw(5, seed=seed)["row"].to_list() for seed in (0, 0, 1)]
    assert [row // 4 for row in drawn[0]] == list(range(5))
    assert drawn[0] == drawn[1] != drawn[2]
    assert shards.draw(20, seed=0)["row"].to_list() == list(range(20))
    assert shards.draw(99, seed=0).height == 20


@pytest.mark.parametrize("harm", ["flipped", "no data", "no marker", "another shard"])
def test_a_shard_that_is_not_what_was_written_is_never_read(tmp_path: Path, harm: str) -> None:
    shards = Shards(tmp_path, SETTINGS)
    for index in range(3):
        shards.write(index, FRAME[index * 30 : index * 30 + 30])
    shards.close(3)
    path = shards.path(1)
    if harm == "flipped":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif harm == "another shard":
        path.write_bytes(shards.path(0).read_bytes())
    else:
        (path if harm == "no data" else path.with_suffix(".done")).unlink()
    for read in (lambda: shards.read(1), shards.scan):
        with pytest.raises(UserError, match=r"part-00001\.parquet: missing or damaged") as refused:
            read()
        assert "\n" not in str(refused.value)
    assert_frame_equal(shards.read(0), FRAME[:30])


def test_a_closed_folder_is_opened_by_its_path(tmp_path: Path) -> None:
    shards = Shards(tmp_path, SETTINGS)
    with pytest.raises(UserError, match="no complete shards"):
        Shards.open(shards.folder)
    shards.write(0, FRAME)
    shards.close(1)
    assert_frame_equal(Shards.open(shards.folder).scan().collect(), FRAME)
    shards.folder.rename(tmp_path / "renamed")
    with pytest.raises(UserError, match="does not match its settings"):
        Shards.open(tmp_path / "renamed")


# --- versions ------------------------------------------------------------------------------------


def write_with(versions: dict[str, str], shards: Shards, *indices: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "installed_versions", lambda: versions)
        for index in indices:
            shards.write(index, FRAME)


def test_shards_of_one_set_of_versions_state_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards, versions = Shards(tmp_path, SETTINGS), {"torch": "2.13.0", "polars": "2.1.0"}
    write_with(versions, shards, 0, 1)
    write_with({"torch": "2.14.0"}, Shards(tmp_path, {}), 0)
    shards.close(2)
    assert shards.summary["versions"] == versions
    assert caplog.messages == []


def test_a_mixture_of_versions_is_stated_with_its_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards = Shards(tmp_path, SETTINGS)
    write_with({"torch": "2.13.0", "polars": "2.1.0"}, shards, 0, 1, 2)
    write_with({"torch": "2.14.0", "polars": "2.1.0", "peft": "0.21"}, shards, 3)
    shards.close(4)
    torch, peft = "2.13.0 (3 shards), 2.14.0 (1 shards)", "none (3 shards), 0.21 (1 shards)"
    assert shards.summary["versions"] == {"torch": torch, "polars": "2.1.0", "peft": peft}
    assert caplog.messages == [
        f"{shards.folder}: made by different versions: torch {torch}; peft {peft}"
    ]


def test_a_shard_that_is_made_again_changes_what_the_folder_says_it_holds(tmp_path: Path) -> None:
    shards = Shards(tmp_path, SETTINGS)
    shards.write(0, FRAME)
    shards.close(1)
    first = shards.summary
    shards.close(1)
    assert shards.summary == first
    shards.write(0, FRAME.reverse())
    shards.close(1)
    assert shards.summary["contents"] != first["contents"]


# --- changes of the folder -----------------------------------------------------------------------


def test_the_state_of_a_folder_changes_in_one_process_at_a_time(tmp_path: Path) -> None:
    shards, others = Shards(tmp_path, SETTINGS), Shards(tmp_path, SETTINGS)
    shards.write(0, FRAME)
    with ThreadPoolExecutor(1) as pool:
        with shards.changing():
            shards.begin()
            closing = pool.submit(others.close, 1)  # another writer, with a lock of its own
            assert wait([closing], 0.2).not_done
            assert not shards.is_closed()
        closing.result(10)
    assert shards.is_closed()


@pytest.mark.process
@pytest.mark.parametrize("change", ["begin", "close", "reopen"])
def test_a_kill_at_any_step_of_a_change_leaves_the_state_before_or_after(
    tmp_path: Path, change: str
) -> None:
    number, was_killed = 0, True
    while was_killed:
        shards = Shards(tmp_path / str(number), SETTINGS)
        shards.write(0, FRAME)
        if change == "reopen":
            shards.close(1)
        act = partial(shards.close, 1) if change == "close" else getattr(shards, change)
        was_killed = dies_at_step(number, act)
        assert shards.is_done(0)
        shards.begin()
        shards.close(1)
        assert shards.is_complete()
        assert names_in(shards.folder) == [
            "complete.json",
            "part-00000.done",
            "part-00000.parquet",
            "settings.json",
        ]
        number += 1
    assert number > 2
