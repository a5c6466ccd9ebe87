"""A table and its summary: never written over an input or over a file that is not ours."""

import json
from pathlib import Path

import polars as pl
import pytest

from cherry_vllm.errors import UserError
from cherry_vllm.evaluation.result_files import ResultFiles
from cherry_vllm.store.hashes import file_sha256

TABLE = pl.DataFrame({"verdict": ["win"]})


@pytest.fixture
def results(tmp_path: Path) -> ResultFiles:
    return ResultFiles(tmp_path / "verdicts.parquet", tmp_path / "judge.json")


def test_what_a_run_wrote_the_next_run_replaces(results: ResultFiles) -> None:
    for seed in (1, 2):
        results.check([])
        results.write(TABLE, {"settings": {"seed": seed}}, origin="x")
        assert results.read_summary() == json.loads(results.summary.read_text())
        assert json.loads(results.summary.read_text())["settings"] == {"seed": seed}
        assert json.loads(results.summary.read_text())["sha256"] == file_sha256(results.table)
    assert pl.read_parquet_metadata(results.table)["origin"] == "x"


@pytest.mark.parametrize("name", ["verdicts.parquet", "judge.json"])
@pytest.mark.parametrize("content", ["my notes", "{}", "[]", '{"version": 1, "settings": {}}'])
def test_a_file_of_the_users_is_refused_before_the_work_and_stays(
    results: ResultFiles, name: str, content: str
) -> None:
    file = results.table.with_name(name)
    file.write_text(content)
    with pytest.raises(UserError, match=f"{name}: exists and is not what cherry-vllm wrote"):
        results.check([])
    assert file.read_text() == content


def test_a_table_that_the_user_changed_is_refused(results: ResultFiles) -> None:
    results.write(TABLE, {"settings": {}})
    TABLE.with_columns(note=pl.lit("mine")).write_parquet(results.table)
    with pytest.raises(UserError, match="is not what cherry-vllm wrote"):
        results.check([])


def test_notes_in_a_summary_stay(results: ResultFiles) -> None:
    results.write(TABLE, {"settings": {}})
    noted = {**json.loads(results.summary.read_text()), "my note": "the judge is strict"}
    results.summary.write_text(json.dumps(noted))
    with pytest.raises(UserError, match=r"judge\.json: exists and is not what cherry-vllm wrote"):
        results.check([])
    assert json.loads(results.summary.read_text()) == noted


def test_an_input_is_not_an_output(results: ResultFiles) -> None:
    results.write(TABLE, {"settings": {}})
    link = results.table.with_name("link.parquet")
    link.symlink_to(results.table)
    for path in (results.table, results.summary, link):
        with pytest.raises(UserError, match="is an input and would be replaced"):
            results.check([path])
