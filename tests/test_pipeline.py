"""Stages that need no model, resumed from whatever a kill may leave."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cherry_vllm.options import DataFormat
from cherry_vllm.schema import LOGPROBS
from cherry_vllm.scoring.run import aggregate
from cherry_vllm.sources import Columns
from cherry_vllm.sources.shards import read_row_shards
from cherry_vllm.store.shards import Shards
from tests.conftest import ROWS


def read(run_dir: Path, **changes: Any) -> Shards:
    settings: dict[str, Any] = {
        "data_format": DataFormat.auto,
        "columns": Columns("instruction", "input", "output"),
        "refusals": [],
        "shard_rows": 5,
    }
    return read_row_shards(run_dir, [ROWS], **(settings | changes))


def made_up_logprobs(run_dir: Path, rows: Shards, scale: float = 0.1) -> Shards:
    """Log-prob shards in which row n has an IFD of ``scale`` + n / 20."""
    logprobs = Shards(run_dir / "logprobs", {"scale": scale})
    for index in range(rows.num_shards):
        frame = rows.read(index).select(
            "row",
            conditioned_logprobs=pl.concat_list(-scale - pl.col("row") / 20),
            direct_logprobs=pl.concat_list(pl.lit(-1.0)),
            truncated=pl.lit(value=False),
            drop_reason="drop_reason",
        )
        logprobs.write(index, frame.cast(LOGPROBS))  # type: ignore[arg-type]
    logprobs.close(rows.num_shards)
    return logprobs


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_what_was_read_is_not_read_again_and_what_was_cut_short_is(tmp_path: Path) -> None:
    rows = read(tmp_path)
    assert rows.num_shards == 6
    whole = contents(rows.folder)
    stamps = {path: path.stat().st_mtime_ns for path in rows.folder.glob("[!.]*")}
    assert read(tmp_path).folder == rows.folder
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    for damage in ("complete.json", "part-00003.done", "part-00002.parquet"):
        (rows.folder / damage).write_bytes(b"")
        if damage == "complete.json":
            (rows.folder / damage).unlink()
        assert contents(read(tmp_path).folder) == whole


@pytest.mark.parametrize(
    "change",
    [{"shard_rows": 6}, {"refusals": ["sky"]}, {"columns": Columns("instruction", None, "output")}],
)
def test_a_changed_setting_reads_into_another_folder(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    first = read(tmp_path)
    before = contents(first.folder)
    assert read(tmp_path, **change).folder != first.folder
    assert contents(first.folder) == before


def test_scores_are_made_again_if_the_stage_did_not_end(tmp_path: Path) -> None:
    rows = read(tmp_path)
    logprobs = made_up_logprobs(tmp_path, rows)
    scores = aggregate(tmp_path, rows, logprobs).frame
    assert scores["ifd"].to_list() == pytest.approx([0.1 + row / 20 for row in range(26)])
    for name in ("score.json", "scores.parquet"):
        (tmp_path / name).unlink()
        (tmp_path / "score.json").unlink(missing_ok=True)
        again = aggregate(tmp_path, rows, logprobs).frame
        assert again.equals(scores)
        assert (tmp_path / name).is_file()


def test_scores_of_other_settings_are_replaced(tmp_path: Path) -> None:
    rows = read(tmp_path)
    aggregate(tmp_path, rows, made_up_logprobs(tmp_path, rows))
    replaced = aggregate(tmp_path, rows, made_up_logprobs(tmp_path, rows, scale=0.2)).frame
    assert replaced["ifd"][0] == pytest.approx(0.2)
    assert pl.read_parquet(tmp_path / "scores.parquet").equals(replaced)
