"""Stages that need no model, resumed from whatever a kill may leave."""

import json
import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cherry_vllm.errors import UserError
from cherry_vllm.evaluation.ratings import RATINGS, write
from cherry_vllm.options import DataFormat, Order, Rule, Strategy
from cherry_vllm.schema import LOGPROBS
from cherry_vllm.scoring.run import aggregate
from cherry_vllm.selection.run import select_records
from cherry_vllm.sources import Columns
from cherry_vllm.sources.shards import read_row_shards
from cherry_vllm.store.run_folder import name_data
from cherry_vllm.store.shards import Shards
from tests.conftest import ROWS

CHOICE: dict[str, Any] = {
    "strategy": Strategy.cherry,
    "fraction": 0.5,
    "count": None,
    "order": Order.ifd,
    "rule": Rule.exact,
    "seed": 0,
}


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


def test_selected_records_come_in_the_order_chosen(tmp_path: Path) -> None:
    run_dir = tmp_path / "names [1] that *look* like globs"
    rows = read(run_dir)
    aggregate(run_dir, rows, made_up_logprobs(run_dir, rows))
    scores, chosen = select_records(run_dir, tmp_path / "out.jsonl", **CHOICE)
    # IFD 0.1 + 18 / 20 is 1 and usable: rows 0 to 18, of which half, rounded down, is 9.
    assert scores["drop_reason"].null_count() == 19
    assert chosen["row"].to_list() == list(range(18, 9, -1))
    lines = ROWS.read_text(encoding="utf-8").splitlines()
    written = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert written == [lines[row] for row in range(18, 9, -1)]


# --- ratings -----------------------------------------------------------------------------------


@pytest.fixture
def scored(tmp_path: Path) -> Shards:
    rows = read(tmp_path)
    aggregate(tmp_path, rows, made_up_logprobs(tmp_path, rows))
    return rows


def select_rated(run_dir: Path, ratings: Path) -> pl.DataFrame:
    choice = CHOICE | {"strategy": Strategy.rating, "fraction": None, "order": Order.input}
    output = run_dir / "best.jsonl"
    _, chosen = select_records(run_dir, output, ratings=ratings, threshold=4.5, **choice)
    return chosen


def test_ratings_of_the_same_data_choose_and_are_written_down(
    tmp_path: Path, scored: Shards
) -> None:
    other = read(tmp_path, shard_rows=9, refusals=["sky"])  # of the same file: the same rows
    assert other.fingerprint != scored.fingerprint
    values = [float(row % 6) if row % 5 else None for row in range(26)]
    reasons = [None if row % 5 else "unparsed" for row in range(26)]
    ratings = pl.DataFrame(
        {"row": range(26), "rating": values, "reason": reasons, "request": None}, schema=RATINGS
    )
    write(
        tmp_path,
        ratings,
        threshold=4.5,
        failures={},
        origin=name_data(other.summary["settings"]),
        settings={},
    )
    chosen = select_rated(tmp_path, tmp_path / "ratings.parquet")
    usable = pl.read_parquet(tmp_path / "scores.parquet").filter(pl.col("drop_reason").is_null())
    expected = [row for row in usable["row"] if row % 5 and row % 6 == 5]
    assert chosen["row"].to_list() == expected
    assert len(expected) >= 2
    meta = json.loads((tmp_path / "best.meta.json").read_text())
    num_unrated = sum(row % 5 == 0 for row in usable["row"])
    assert meta["without_rating"] == {"unparsed": num_unrated}
    assert (meta["strategy"], meta["threshold"]) == ("rating", 4.5)


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (None, "no such file; make it with `cherry-vllm judge judge=rating`"),
        (pl.DataFrame({"row": ["1"], "rating": [5.0]}), "no ratings"),
        (pl.DataFrame({"rating": [5.0]}), "no ratings"),
        (pl.DataFrame({"row": [1, 1], "rating": [5, 4]}), "row 1, rating 5: give each row once"),
        (pl.DataFrame({"row": [1], "rating": [math.nan]}), "row 1, rating nan"),
        (pl.DataFrame({"row": [None, 1], "rating": [5, 4]}), "row None"),
    ],
)
@pytest.mark.usefixtures("scored")
def test_ratings_that_are_none_cost_one_line(
    tmp_path: Path, frame: pl.DataFrame | None, words: str
) -> None:
    file = tmp_path / "own.parquet"
    if frame is not None:
        frame.write_parquet(file)
    with pytest.raises(UserError, match=words) as error:
        select_rated(tmp_path, file)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("scored")
def test_ratings_of_ones_own_need_a_row_and_a_rating_and_other_data_is_refused(
    tmp_path: Path,
) -> None:
    own, foreign, broken = (tmp_path / f"{name}.parquet" for name in ("own", "foreign", "broken"))
    frame = pl.DataFrame({"row": [1, 2], "rating": [5, 4]})
    frame.write_parquet(own)
    assert select_rated(tmp_path, own)["row"].to_list() == [1]
    frame.write_parquet(foreign, metadata={"origin": "0123"})
    with pytest.raises(UserError, match="ratings of other data than was scored"):
        select_rated(tmp_path, foreign)
    broken.write_text("row,rating")
    with pytest.raises(UserError, match="not readable"):
        select_rated(tmp_path, broken)
