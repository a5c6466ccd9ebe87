"""Globs and folders leave out what runs wrote, and nothing else."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from cherry_vllm.scoring.run import aggregate
from cherry_vllm.selection.choice import Choice
from cherry_vllm.selection.run import select_records
from cherry_vllm.sources import find_files
from cherry_vllm.store.files import write_json
from cherry_vllm.store.hashes import file_sha256
from cherry_vllm.store.marks import mark_path
from tests import made_up
from tests.sources.samples import FIRST, file_of


def test_a_glob_leaves_out_what_runs_wrote(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = file_of(tmp_path, "data.json", [FIRST])
    file_of(tmp_path, "notes.meta.json", [FIRST])
    written = [
        "cherry.json",
        "runs/a/cherry.jsonl",
        "runs/a/rows/0123456789abcdef/complete.json",
        "runs/a/models/cherry-0123456789abcdef/model/config.json",
        "runs/a/score.json",
    ]
    for name in written:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        file_of(tmp_path, name, [FIRST])
    for folder in (tmp_path, tmp_path / "runs/a"):
        (folder / ".lock").touch()
        (folder / "cherry.meta.json").write_text('{"num_selected": 1}')
    selection = tmp_path / "runs/a/cherry.jsonl"
    write_json(mark_path(selection), {"made_by": "select", "sha256": file_sha256(selection)})
    kept = [data, tmp_path / "notes.meta.json"]
    assert find_files([f"{tmp_path}/**/*.json"]) == kept
    assert find_files([f"{tmp_path}/**/*.json*"]) == kept
    assert find_files([f"{tmp_path}/*.json"]) == kept
    assert "files that cherry-vllm wrote are left out; name them in full" in caplog.text
    selections = find_files([f"{tmp_path}/runs/*/cherry.jsonl", str(tmp_path / "cherry.json")])
    assert [path.name for path in selections] == ["cherry.jsonl", "cherry.json"]


def test_a_glob_leaves_out_exported_folders_and_scores_of_another_folder(tmp_path: Path) -> None:
    run_dir, scores_dir = tmp_path / "run", tmp_path / "scores"
    data = tmp_path / "data.jsonl"
    data.write_bytes(made_up.SHIPPED.read_bytes())
    rows = made_up.write_rows(run_dir, data)
    aggregate(scores_dir, rows, made_up.write_logprobs(run_dir, rows))
    select_records(scores_dir, tmp_path / "cherry", Choice(count=2))
    shutil.rmtree(run_dir)
    assert find_files([f"{tmp_path}/**/*.*"]) == [data]
    assert len(find_files([f"{tmp_path}/cherry/**/*.parquet"])) == 1  # named in full
    mine = file_of(tmp_path / "cherry", "mine.parquet", [FIRST])
    assert find_files([f"{tmp_path}/**/*.parquet"]) == [mine]


@pytest.mark.parametrize("mark", [{"sha256": "0" * 64}, {"sha256": {"part1.json": "0" * 64}}])
def test_a_file_beside_an_unrelated_description_is_read(
    tmp_path: Path, mark: dict[str, Any]
) -> None:
    path = file_of(tmp_path, "part1.json", [FIRST])
    for name in ("part1.meta.json", "part1.json.meta.json"):
        write_json(tmp_path / name, mark)
    assert path in find_files([f"{tmp_path}/*.json"])


def test_users_files_in_a_run_folder_are_read(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / "rows").mkdir()
    path = file_of(tmp_path / "rows", "mine.jsonl", [FIRST])
    assert find_files([f"{tmp_path}/**/*.jsonl"]) == [path]
