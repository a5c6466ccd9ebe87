"""Files to row shards: what is on record of the files, and what is told again."""

from pathlib import Path
from typing import Any

import pytest

from cherry_vllm.sources import Columns, find_files, row_shards
from cherry_vllm.sources.row_shards import read_row_shards
from cherry_vllm.store.shards import Shards
from tests.conftest import ROWS
from tests.sources.samples import ALPACA, FIRST, file_of


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_shards, "isolate", lambda function, *arguments: function(*arguments))


def read(run_dir: Path, *patterns: str, **changes: Any) -> Shards:
    settings: dict[str, Any] = {"columns": ALPACA, "refusals": [], "shard_rows": 2} | changes
    files = find_files(patterns)
    return read_row_shards(run_dir, files, **settings)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_relative_paths_are_recorded_with_their_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_of(tmp_path, "d.jsonl", [FIRST])
    monkeypatch.chdir(tmp_path)
    assert read(tmp_path / "run", "d.jsonl").summary["files"] == [str(tmp_path / "d.jsonl")]


def test_what_was_odd_about_rows_is_told_again_when_they_are_not_read_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = file_of(tmp_path, "d.jsonl", [FIRST | {"system": "Be kind."}] * 3)
    rows = read(tmp_path / "run", str(path))
    (line,) = rows.summary["warnings"]
    assert "3 of 3 rows have a field 'system' that is not read" in line
    assert caplog.text.count(line) == 1
    written = rows.path(0).stat().st_mtime_ns
    read(tmp_path / "run", str(path))
    assert caplog.text.count(line) == 2
    assert rows.path(0).stat().st_mtime_ns == written


def test_what_was_read_is_not_read_again_and_what_was_cut_short_is(tmp_path: Path) -> None:
    run_dir, shipped = tmp_path / "run", str(ROWS)
    rows = read(run_dir, shipped, shard_rows=5)
    assert rows.num_shards == 6
    whole = contents(rows.folder)
    stamps = {path: path.stat().st_mtime_ns for path in rows.folder.glob("[!.]*")}
    assert read(run_dir, shipped, shard_rows=5).folder == rows.folder
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    for damage in ("complete.json", "part-00003.done", "part-00002.parquet"):
        (rows.folder / damage).write_bytes(b"")
        if damage == "complete.json":
            (rows.folder / damage).unlink()
        assert contents(read(run_dir, shipped, shard_rows=5).folder) == whole


@pytest.mark.parametrize(
    "change",
    [{"shard_rows": 6}, {"refusals": ["sky"]}, {"columns": Columns("instruction", None, "output")}],
)
def test_a_changed_setting_reads_into_another_folder(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    first = read(tmp_path / "run", str(ROWS))
    before = contents(first.folder)
    assert read(tmp_path / "run", str(ROWS), **change).folder != first.folder
    assert contents(first.folder) == before
