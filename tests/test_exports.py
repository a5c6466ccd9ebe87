"""Data set folders: what loaders read, what the card says, and what a folder may replace."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from cherry_vllm.commands.inputs import Job, find_input
from cherry_vllm.commands.score import score
from cherry_vllm.commands.select import select
from cherry_vllm.config import compose
from cherry_vllm.errors import UserError
from cherry_vllm.schema import DropReason
from cherry_vllm.selection.export import DATA
from cherry_vllm.store.files import atomic_folder, file_sha256
from cherry_vllm.store.scores import open_scores, write_scores
from tests.conftest import ROWS, Cli

LOAD = """
import json, sys, datasets
rows = datasets.load_dataset(sys.argv[1], cache_dir=sys.argv[2])
print(json.dumps({split: [dict(row) for row in rows[split]] for split in rows}))
"""


@pytest.fixture(scope="module")
def run_dir(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped rows, scored by two random layers."""
    folder = tmp_path_factory.mktemp("exports") / "run"
    run(score, folder, f"data.path={ROWS}", f"model.path={tiny}", "max_length=128")
    return folder


def run(stage: Any, run_dir: Path, *overrides: str) -> Path:
    config = compose(f"run_dir={run_dir}", "engine=hf", *overrides)
    job = Job(run_dir, is_sweep=False, command="cherry-vllm select x=1")
    return Path(stage(config, job).artifact)


@pytest.fixture(scope="module")
def folder(run_dir: Path) -> Path:
    """A data set folder, and the same rows as JSON beside it."""
    run(select, run_dir, "select.count=5", "select.output=cherry/", "select.order=ifd")
    run(select, run_dir, "select.count=5", "select.order=ifd")
    return run_dir / "cherry"


@pytest.fixture(scope="module")
def expected(folder: Path) -> Any:
    return json.loads((folder.parent / "cherry.json").read_text(encoding="utf-8"))


def test_a_folder_holds_the_rows_and_a_card_and_nothing_else(folder: Path, expected: Any) -> None:
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {"README.md", "data/train-00000-of-00001.parquet"}
    assert pl.read_parquet(folder / "data").to_dicts() == expected
    assert len(expected) == 5


def test_pyarrow_reads_it(folder: Path, expected: Any) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert parquet.read_table(folder / "data").to_pylist() == expected


def test_datasets_reads_the_folder_by_its_name(folder: Path, expected: Any, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder), str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"train": expected}


def test_the_card_says_where_every_row_went_and_how_it_was_made(
    run_dir: Path, folder: Path, tiny: Path
) -> None:
    _, header, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    configs = yaml.safe_load(header)["configs"]
    (files,) = configs[0]["data_files"]
    assert files["split"] == "train"
    assert list(folder.glob(files["path"])) == [folder / DATA]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    table = {key: value for key, *values in rows for value in values}
    assert table[ROWS.name] == f"SHA-256 {file_sha256(ROWS)}"
    assert table["model"].startswith(f"{tiny.name} (fingerprint ")
    assert (table["strategy"], table["order"], table["fraction"]) == ("cherry", "ifd", "0.1")
    assert table["count"] == table["selected"] == "5"
    manifest = json.loads((run_dir / "score.json").read_text())
    dropped = {reason.value: table.get(f"dropped: {reason.value}", "0") for reason in DropReason}
    assert {name: int(number) for name, number in dropped.items()} == {
        name: number for name, number in manifest["outcomes"].items() if name != "usable"
    }
    kept = int(table["selected"]) + int(table["usable, not selected"])
    assert kept + sum(map(int, dropped.values())) == int(table["rows read"]) == 26
    assert "### Response:" in table["prompt"]
    assert {"polars", "torch", "cherry-vllm"} <= set(table)
    assert "```bash\ncherry-vllm select x=1\n```" in text


def test_a_second_selection_replaces_the_folder_and_training_finds_its_rows(run_dir: Path) -> None:
    for count in (2, 3):
        data = run(select, run_dir, f"select.count={count}", "select.output=again")
        assert data == run_dir / "again" / DATA
        assert pl.read_parquet(data).height == count
    assert not list(run_dir.glob(".again*"))
    files = find_input(compose(f"data.path={run_dir}/again/data/*.parquet"))
    assert files == [data]


@pytest.mark.parametrize("output", ["rows", ".", "own", "own/kept.d/../file"])
def test_nothing_else_is_ever_replaced(run_dir: Path, output: str) -> None:
    (run_dir / "own" / "kept.d").mkdir(parents=True, exist_ok=True)
    (run_dir / "own" / "file").write_text("mine")
    before = sorted(run_dir.rglob("*"))
    with pytest.raises(UserError, match="there is something else"):
        run(select, run_dir, "select.count=2", f"select.output={output}")
    assert sorted(run_dir.rglob("*")) == before
    assert (run_dir / "own" / "file").read_text() == "mine"


def test_rows_that_fit_in_no_columns_cost_one_line_and_the_old_folder_stays(
    tiny: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data.jsonl"
    row = {"instruction": "Name a fruit.", "output": "Cherry pie is not a fruit."}
    data.write_text(json.dumps(row | {"extra": {"b": 1}}) + "\n" + json.dumps(row | {"extra": [1]}))
    run_dir = tmp_path / "run"
    run(score, run_dir, f"data.path={data}", f"model.path={tiny}", "select.count=1")
    scores = pl.read_parquet(run_dir / "scores.parquet")
    usable = scores.with_columns(drop_reason=pl.lit(None, scores.schema["drop_reason"]), ifd=0.5)
    found = open_scores(run_dir)
    write_scores(run_dir, usable, found.rows_folder, found.manifest)
    run(select, run_dir, "select.count=1", "select.output=cherry")
    with pytest.raises(UserError, match=r"do not fit in columns.*jsonl") as error:
        run(select, run_dir, "select.count=2", "select.output=cherry")
    assert "\n" not in str(error.value)
    assert pl.read_parquet(run_dir / "cherry" / DATA).height == 1
    assert not list(run_dir.glob(".cherry*"))


def test_a_folder_is_whole_or_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    for content in ("old", "new"):
        with atomic_folder(target) as folder:
            (folder / "file").write_text(content)
        assert (target / "file").read_text() == content
    with pytest.raises(FileNotFoundError), atomic_folder(target) as folder:
        (folder / "file").rename(folder / "torn")
    assert (target / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_the_command_line_is_in_the_card(cli: Cli, run_dir: Path) -> None:
    words = ("select.count=2", "select.output=typed", "select.num_examples=0")
    done = cli("select", f"run_dir={run_dir}", *words)
    assert done.returncode == 0, done.stderr
    card = (run_dir / "typed" / "README.md").read_text()
    assert f"cherry-vllm select run_dir={run_dir} {' '.join(words)}\n" in card
