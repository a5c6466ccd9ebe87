"""Files that survive a kill: atomic writes and fingerprints."""

import errno
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cherry_vllm.store.files import (
    atomic_path,
    fingerprint,
    read_json,
    write_json,
)

SETTINGS: dict[str, Any] = {
    "model": "m",
    "max_length": 512,
    "prompt": {"marker": "x", "chat": False},
}


def write_half(target: Path, failure: type[BaseException]) -> None:
    with atomic_path(target) as path:
        path.write_text("half")
        raise failure


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- atomic writes -----------------------------------------------------------------------------


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


# --- fingerprints ------------------------------------------------------------------------------


def test_a_fingerprint_does_not_depend_on_the_order_of_keys() -> None:
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
def test_another_setting_has_another_fingerprint(other: dict[str, Any]) -> None:
    assert fingerprint(other) != fingerprint(SETTINGS)


def test_the_order_of_a_list_counts() -> None:
    assert fingerprint({"files": ["a", "b"]}) != fingerprint({"files": ["b", "a"]})
