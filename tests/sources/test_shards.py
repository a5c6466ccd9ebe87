"""Files to row shards: what is on record of the files, and what is told again."""

from pathlib import Path
from typing import Any

import pytest

from cherry_vllm.options import DataFormat
from cherry_vllm.sources import find_files, shards
from cherry_vllm.sources.shards import read_row_shards
from cherry_vllm.store.shards import Shards
from tests.sources.samples import ALPACA, FIRST, file_of


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "isolate", lambda function, *arguments: function(*arguments))


def read(run_dir: Path, *patterns: str) -> Shards:
    settings: dict[str, Any] = {"columns": ALPACA, "refusals": [], "shard_rows": 2}
    files = find_files(patterns)
    return read_row_shards(run_dir, files, data_format=DataFormat.auto, **settings)


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
