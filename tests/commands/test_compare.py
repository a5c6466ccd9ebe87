"""Two selections side by side, and what cannot be compared."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cherry_vllm.commands.compare import compare_selections
from cherry_vllm.commands.job import Job
from cherry_vllm.commands.select import select
from cherry_vllm.config import compose
from cherry_vllm.errors import UserError
from cherry_vllm.selection.choice import Choice
from cherry_vllm.selection.run import select_records
from cherry_vllm.store.scores import open_scores
from tests.made_up import embed, score, write_embeddings


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Scored rows, of which two strategies chose five each."""
    score(tmp_path)
    for name, rank in (("high", "ifd"), ("low", "-abs(ifd - 0.7)")):
        choice = Choice(strategy=name, rank=rank, count=5)
        select_records(tmp_path, tmp_path / f"{name}.json", choice)
    return tmp_path


def compare(run_dir: Path, first: str, second: str, *more: str) -> None:
    given = (f"compare.first={run_dir / first}", f"compare.second={run_dir / second}")
    config = compose(f"run_dir={run_dir}", *given, *more)
    compare_selections(config, Job(run_dir, is_sweep=False))


def rows_of(file: Path) -> set[int]:
    """The rows whose records a selection holds."""
    held = {json.dumps(record) for record in json.loads(file.read_text())}
    rows = pl.scan_parquet(f"{file.parent}/rows/*/*.parquet").select("row", "record").collect()
    return {row for row, text in rows.iter_rows() if json.dumps(json.loads(text)) in held}


def test_counts_quartiles_and_strata_are_those_of_the_rows(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare(run_dir, "high.json", "low.json", "compare.output=c.json", "select.strata='row % 2'")
    facts = json.loads((run_dir / "c.json").read_text())
    scores = open_scores(run_dir).frame
    high, low = (rows_of(run_dir / f"{name}.json") for name in ("high", "low"))
    groups = {"only_first": high - low, "both": high & low, "only_second": low - high}
    assert facts["num_rows"] == {name: len(rows) for name, rows in groups.items()}
    assert facts["jaccard"] == pytest.approx(len(high & low) / len(high | low))
    for name, rows in groups.items():
        ifd = scores.filter(pl.col("row").is_in(list(rows)))["ifd"]
        expected = [ifd.quantile(q, "linear") for q in (0.25, 0.5, 0.75)]
        assert facts["quartiles"]["ifd"][name] == pytest.approx(expected)
    usable = scores.filter(pl.col("drop_reason").is_null())["row"].to_list()
    for odd, label in enumerate(("0", "1")):
        assert facts["strata"][label] == {
            name: sum(row % 2 == odd for row in rows)
            for name, rows in (("pool", usable), ("first", high), ("second", low))
        }
    shown = capsys.readouterr().out
    assert f"both    {len(high & low)} rows" in shown
    assert shown.count("only first:") == shown.count("only second:") == 1
    examples = [
        int(line.split("row ")[1].split(":")[0]) for line in shown.splitlines() if "  row " in line
    ]
    assert set(examples) <= high ^ low


def test_strata_may_come_from_a_joined_table(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = {"row": range(26), "quality": ["good", "bad"] * 13, "ifd": 0.5, "instruction": "Q"}
    pl.DataFrame(columns).write_parquet(run_dir / "q.parquet")
    joined = (f"select.join=['{run_dir / 'q.parquet'}']", "select.strata=[quality]")
    compare(run_dir, "high.json", "low.json", *joined)
    shown = capsys.readouterr().out
    assert "good" in shown
    assert "bad" in shown


def test_the_strata_are_the_clusters_that_a_selection_was_made_with(run_dir: Path) -> None:
    rows = open_scores(run_dir).rows_fingerprint
    write_embeddings(run_dir / "embeddings", embed(range(19)), rows)
    job = Job(run_dir, is_sweep=False)
    words = ("select=balanced", "select.num_clusters=3", "select.count=6", "seed=5")
    select(compose(f"run_dir={run_dir}", *words, "select.output=balanced.json"), job)
    shares = json.loads((run_dir / "balanced.json.meta.json").read_text())["shares"]
    compare(run_dir, "high.json", "balanced.json", "compare.output=c.json")
    found = json.loads((run_dir / "c.json").read_text())["strata"]
    assert {name: (held["pool"], held["second"]) for name, held in found.items()} == {
        name: (held["pool"], held["selected"]) for name, held in shares.items()
    }


@pytest.mark.parametrize(
    "edit",
    [
        {"rows": "one two"},
        {"rows": 5},
        {"rows": "0-4 25-26"},
        {"strategy": None, "num_selected": 3},
        {"num_answer_tokens": None},
        {"bins": "x"},
        {"strata": 5},
    ],
)
def test_an_edited_mark_is_refused_in_one_line(run_dir: Path, edit: dict[str, Any]) -> None:
    mark = json.loads((run_dir / "low.json.meta.json").read_text())
    (run_dir / "edited.meta.json").write_text(json.dumps(mark | edit))
    with pytest.raises(UserError, match=r"edited\.meta\.json: not what .* or edited"):
        compare(run_dir, "edited.meta.json", "high.json")


def test_the_mark_alone_will_do_and_a_folder_too(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    select_records(run_dir, run_dir / "folder", Choice(rank="ifd", count=5))
    (run_dir / "low.json").unlink()
    compare(run_dir, "folder", "low.json.meta.json", "compare.num_examples=0")
    shown = capsys.readouterr().out
    assert "stratum" not in shown
    assert "only first:" not in shown


@pytest.mark.slow
def test_what_is_no_selection_of_these_scores_is_refused_in_one_line(run_dir: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json: no such file"):
        compare(run_dir, "high.json", "none.json")
    (run_dir / "mine.json").write_text("[]")
    with pytest.raises(UserError, match=r"mine\.json: not what `cherry-vllm select` wrote"):
        compare(run_dir, "mine.json", "high.json")
    with pytest.raises(UserError, match=r"no column nosuch"):
        compare(run_dir, "low.json", "high.json", "select.strata=nosuch")
    score(run_dir, first=0.2)
    with pytest.raises(UserError, match=r"high\.json: chosen by other scores than those in"):
        compare(run_dir, "high.json", "low.json")
    with pytest.raises(UserError, match="give two selections"):
        compare_selections(compose(f"run_dir={run_dir}"), Job(run_dir, is_sweep=False))
