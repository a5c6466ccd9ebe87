"""Files that survive a kill."""

import errno
import os
import resource
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cherry_vllm.store import files
from cherry_vllm.store.files import (
    atomic_folder,
    atomic_path,
    read_json,
    remove_leftovers,
    write_json,
)


def write_half(target: Path, failure: type[BaseException]) -> None:
    with atomic_path(target) as path:
        path.write_text("half")
        raise failure


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_the_block_succeeds_and_not_before(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "scores.parquet"
    with atomic_path(target) as path:
        path.write_text("new")
        assert path.parent == target.parent
        assert path.suffix == ".parquet"
        assert not target.exists()
    assert target.read_text() == "new"
    assert names_in(target.parent) == ["scores.parquet"]


def test_a_file_is_replaced_only_when_the_block_succeeds(tmp_path: Path) -> None:
    target = tmp_path / "scores.parquet"
    target.write_text("old")
    with atomic_path(target) as path:
        path.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"


def test_a_file_is_on_the_disk_before_its_name_is_and_the_name_before_the_block_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        steps.append(f"sync {'folder' if name == tmp_path.name else 'file'}")
        fsync(descriptor)

    def rename(source: Path, target: Path) -> None:
        steps.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", rename)
    with atomic_path(tmp_path / "scores.parquet") as path:
        path.write_text("new")
    assert steps == ["sync file", "rename", "sync folder"]
    steps.clear()
    with atomic_folder(tmp_path / "data") as folder:
        (folder / "train.jsonl").write_text("new")
    assert steps == ["sync file", "sync file", "rename", "sync folder"]  # the new folder is one


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("before", [None, "old"])
def test_a_failure_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, failure: type[BaseException], before: str | None
) -> None:
    target = tmp_path / "scores.parquet"
    if before:
        target.write_text(before)
    with pytest.raises(failure):
        write_half(target, failure)
    assert names_in(tmp_path) == (["scores.parquet"] if before else [])
    assert not before or target.read_text() == before


def test_a_block_that_writes_nothing_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "scores.parquet"
    target.write_text("old")
    with pytest.raises(FileNotFoundError), atomic_path(target):
        pass
    assert target.read_text() == "old"


def test_a_full_disk_is_told_as_such_by_every_writer(tmp_path: Path) -> None:
    lines = pl.LazyFrame({"a": range(100_000)})
    writers: dict[str, Callable[[Path], object]] = {
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


def write_to(target: Path, write: Callable[[Path], object]) -> None:
    with atomic_path(target) as path:
        write(path)


def test_json_round_trips(tmp_path: Path) -> None:
    value = {"text": 'é🌅 "quoted"\n', "nested": {"list": [1, 2.5, None, True]}}
    write_json(tmp_path / "facts.json", value)
    assert read_json(tmp_path / "facts.json") == value
    assert "é🌅" in (tmp_path / "facts.json").read_text(encoding="utf-8")


# --- folders -----------------------------------------------------------------------------------


def write_folder(target: Path, text: str) -> None:
    with atomic_folder(target) as folder:
        (folder / "file").write_text(text)


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for text in ("old", "new"):
        write_folder(tmp_path / "folder", text)
        assert (tmp_path / "folder" / "file").read_text() == text
    assert names_in(tmp_path) == ["folder"]


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("disk", ["swaps folders", "does not"])
@pytest.mark.parametrize("step", range(3))
def test_an_interrupt_at_any_rename_of_a_folder_keeps_the_old_or_the_new(
    step: int,
    disk: str,
    interrupt: type[BaseException],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_folder(tmp_path / "folder", "old")
    if disk == "does not":
        monkeypatch.setattr(files, "_swap", lambda _first, _second: False)
    replace, calls = os.replace, 0

    def interrupted(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == step:
            raise interrupt
        replace(*arguments)

    monkeypatch.setattr(os, "replace", interrupted)
    with suppress(interrupt):
        write_folder(tmp_path / "folder", "new")
    assert names_in(tmp_path) == ["folder"]
    was_interrupted = disk == "does not" and step
    assert (tmp_path / "folder" / "file").read_text() == ("old" if was_interrupted else "new")


def test_a_folder_that_a_kill_left_under_another_name_is_put_back(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", "old")
    (tmp_path / "folder").rename(tmp_path / ".folder.node-1-0123abcd.old")
    (tmp_path / ".folder.node-1-4567abcd.tmp").mkdir()
    remove_leftovers(tmp_path / "folder")
    assert names_in(tmp_path) == ["folder"]
    assert (tmp_path / "folder" / "file").read_text() == "old"


def test_leftovers_are_known_by_their_whole_name(tmp_path: Path) -> None:
    """Those of another target, and files of the user with a similar name, stay."""
    kept = [
        ".cherry.json",
        ".cherry.node-1-0123abcd.tmp",  # of the folder `cherry`
        ".cherry.json.node-1-0123abcd.tmp.json",  # of `cherry.json.json`
        ".cherry.notes.tmp.json",
        "cherry.node-1-0123abcd.tmp.json",
    ]
    for name in [*kept, ".cherry.node-1-0123abcd.tmp.json"]:
        (tmp_path / name).write_text("")
    remove_leftovers(tmp_path / "cherry.json")
    assert names_in(tmp_path) == sorted(kept)
    remove_leftovers(tmp_path / "nowhere" / "cherry.json")
