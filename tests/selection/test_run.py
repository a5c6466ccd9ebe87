"""A scored run to chosen rows in a file: one state is read, and nothing of anyone else is lost."""

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cherry_vllm.errors import UserError
from cherry_vllm.options import Order
from cherry_vllm.selection import run
from cherry_vllm.selection.choice import Choice
from cherry_vllm.selection.run import Extras, SelectedRows, select_records
from cherry_vllm.sources.row_shards import name_data
from cherry_vllm.store.hashes import file_sha256
from cherry_vllm.store.scores import Scores, open_scores
from tests.made_up import SHIPPED, named, score

LINES = SHIPPED.read_text(encoding="utf-8").splitlines()
HALF = Choice(fraction=0.5, order=Order.ifd)


def select(run_dir: Path, output: str, count: int = 3, **options: Any) -> SelectedRows:
    return select_records(run_dir, run_dir / output, Choice(count=count), **options)


def snapshot(folder: Path) -> dict[Path, bytes | None]:
    """All that is in a folder; locks hold nothing."""
    return {
        path: path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if not path.name.startswith(".")
    }


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A scored run of the shipped rows: rows 0 to 18 are usable."""
    score(tmp_path / "run")
    return tmp_path / "run"


def test_selected_records_come_in_the_order_chosen(tmp_path: Path) -> None:
    folder = tmp_path / "names [1] that *look* like globs"
    score(folder)
    selected = select_records(folder, tmp_path / "out.jsonl", HALF)
    # IFD 0.1 + 18 / 20 is 1 and usable: rows 0 to 18, of which half, rounded down, is 9.
    assert selected.facts["num_usable"] == 19
    written = selected.path.read_text(encoding="utf-8").splitlines()
    assert written == [LINES[row] for row in range(18, 9, -1)]
    assert selected.count == 9


def test_what_was_chosen_and_how_stands_beside_the_rows(run_dir: Path) -> None:
    selected = select(run_dir, "cherry.json")
    mark = json.loads((run_dir / "cherry.json.meta.json").read_text(encoding="utf-8"))
    assert mark == selected.facts | {"sha256": file_sha256(run_dir / "cherry.json")}
    assert Choice.from_json(mark) == Choice(count=3)
    assert (mark["made_by"], mark["num_selected"], mark["num_usable"]) == ("select", 3, 19)


def test_outputs_of_one_stem_have_marks_of_their_own(run_dir: Path) -> None:
    names = ("cherry.json", "cherry.jsonl", "cherry.parquet", "cherry")
    for count, name in enumerate(names, 1):
        select(run_dir, name, count)
    for count, name in enumerate(names, 1):
        mark = json.loads((run_dir / f"{name}.meta.json").read_text(encoding="utf-8"))
        assert mark["num_selected"] == count
        select(run_dir, name, count + 1)  # each is still known as ours


def test_a_second_selection_replaces_the_first(run_dir: Path) -> None:
    for name in ("cherry.json", "cherry"):
        for count in (2, 3):
            selected = select(run_dir, name, count)
        held = pl.read_parquet(selected.path) if name == "cherry" else pl.read_json(selected.path)
        assert held.height == 3
    assert len(list((run_dir / "cherry" / "data").iterdir())) == 1


# --- what is never replaced --------------------------------------------------------------------


def edit(path: Path) -> None:
    path.write_text(path.read_text(encoding="utf-8") + " ", encoding="utf-8")


@pytest.mark.parametrize("name", ["cherry.json", "cherry.jsonl", "cherry.parquet"])
def test_a_file_that_select_did_not_write_is_refused(run_dir: Path, name: str) -> None:
    (run_dir / name).write_text("the only copy", encoding="utf-8")
    before = snapshot(run_dir)
    with pytest.raises(UserError, match="exists and is not what cherry-vllm wrote; choose another"):
        select(run_dir, name)
    assert snapshot(run_dir) == before


def test_a_folder_that_looks_like_a_data_set_but_is_not_ours_is_refused(run_dir: Path) -> None:
    (run_dir / "cherry" / "data").mkdir(parents=True)
    (run_dir / "cherry" / "README.md").write_text("my notes", encoding="utf-8")
    (run_dir / "cherry" / "data" / "raw.jsonl").write_text("the only copy", encoding="utf-8")
    before = snapshot(run_dir)
    with pytest.raises(UserError, match="exists and is not what cherry-vllm wrote"):
        select(run_dir, "cherry")
    assert snapshot(run_dir) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: edit(folder / "README.md"),
        lambda folder: (folder / "notes.txt").touch(),
        lambda folder: (folder / "data" / "raw.jsonl").write_text("the only copy"),
        lambda folder: (folder / "empty").mkdir(),
        lambda folder: next((folder / "data").iterdir()).unlink(),
    ],
)
def test_a_folder_of_ours_that_was_edited_is_refused(
    run_dir: Path, change: Callable[[Path], Any]
) -> None:
    select(run_dir, "cherry")
    change(run_dir / "cherry")
    before = snapshot(run_dir)
    with pytest.raises(UserError, match="choose another output or move it"):
        select(run_dir, "cherry", 2)
    assert snapshot(run_dir) == before


def test_a_file_of_ours_that_was_edited_is_refused(run_dir: Path) -> None:
    select(run_dir, "cherry.json")
    edit(run_dir / "cherry.json")
    before = snapshot(run_dir)
    with pytest.raises(UserError, match="choose another output or move it"):
        select(run_dir, "cherry.json", 2)
    assert snapshot(run_dir) == before


def test_what_another_command_wrote_is_refused(run_dir: Path) -> None:
    select(run_dir, "cherry.jsonl")
    mark = run_dir / "cherry.jsonl.meta.json"
    facts = json.loads(mark.read_text(encoding="utf-8")) | {"made_by": "generate"}
    mark.write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(UserError, match="written by another command of cherry-vllm"):
        select(run_dir, "cherry.jsonl", 2)


@pytest.mark.parametrize(
    "output",
    [
        *("scores.parquet", "score.json", "rows", "rows/new.json", "logprobs/x/new", "models"),
        *("RATINGS.parquet", "pipeline.json", "verdicts.parquet", "sub/../rows/new.json"),
        *(".hidden/new.json", "link/new.json", "../run/rows/new.json", "scores/cherry.json"),
    ],
)
def test_a_run_keeps_its_own_files(run_dir: Path, output: str) -> None:
    (run_dir / "link").symlink_to(run_dir / "rows")
    (run_dir / "sub").mkdir()
    before = snapshot(run_dir)
    with pytest.raises(
        UserError, match="a name that the run keeps for its own files; choose another"
    ):
        select(run_dir, output)
    assert snapshot(run_dir) == before


@pytest.mark.parametrize("output", [".", "..", "sub", "file.json"])
def test_a_folder_in_use_and_a_link_are_refused(run_dir: Path, output: str) -> None:
    (run_dir / "sub").mkdir()
    (run_dir / "sub" / "file").write_text("mine", encoding="utf-8")
    select(run_dir, "target.json")
    (run_dir / "file.json").symlink_to(run_dir / "target.json")
    before = snapshot(run_dir)
    with pytest.raises(UserError, match="choose another"):
        select(run_dir, output)
    assert snapshot(run_dir) == before


def test_a_name_that_marks_have_is_refused(run_dir: Path) -> None:
    with pytest.raises(UserError, match="choose another name"):
        select(run_dir, "cherry.meta.json")


@pytest.mark.parametrize("name", ["cherry.csv", "cherry.json.gz", "cherry.v2", "cherry.txt"])
def test_an_unknown_suffix_is_refused_before_anything_is_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"select\.output=.*\.json, \.jsonl, \.parquet"):
        select(tmp_path, name)


# --- the data that was scored ------------------------------------------------------------------


def test_the_data_that_was_scored_is_never_the_output(tmp_path: Path) -> None:
    shutil.copy(SHIPPED, tmp_path / "cherry.jsonl")
    score(tmp_path, tmp_path / "cherry.jsonl")
    with pytest.raises(UserError, match="exists and is not what cherry-vllm wrote"):
        select(tmp_path, "cherry.jsonl")
    assert (tmp_path / "cherry.jsonl").read_bytes() == SHIPPED.read_bytes()


@pytest.mark.parametrize("output", ["first.jsonl", "first"])
@pytest.mark.parametrize("way", ["same", "relative", "link", "moved", "copied"])
def test_an_earlier_selection_that_was_scored_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, way: str
) -> None:
    folder = tmp_path / "run"
    score(folder)
    data = select(folder, output, 10).path
    if way == "relative":
        monkeypatch.chdir(folder)
        data = data.relative_to(folder)
    if way == "copied":
        data = Path(shutil.copy(data, tmp_path / data.name))
    if way == "link":
        (tmp_path / "link").symlink_to(folder)
        data = tmp_path / "link" / data.relative_to(folder)
    score(folder, data, first=0.2)
    if way == "moved":
        folder = folder.rename(tmp_path / "moved")
    before = snapshot(folder)
    with pytest.raises(UserError, match="holds data that this run scored"):
        select(folder, output)
    assert snapshot(folder) == before


def test_an_output_that_happens_to_equal_the_data_can_be_replaced(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    shutil.copy(SHIPPED, data)
    score(tmp_path / "run", data, step=0.01)
    for _ in range(2):
        select(tmp_path / "run", "cherry.jsonl", 26)
        assert (tmp_path / "run" / "cherry.jsonl").read_bytes() == data.read_bytes()


# --- one state ---------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", ["gone", "emptied", "swapped"])
def test_a_row_shard_that_is_not_what_was_read_is_refused(run_dir: Path, harm: str) -> None:
    first, second = sorted(run_dir.glob("rows/*/part-*.parquet"))[:2]
    if harm == "gone":
        first.unlink()
    else:
        first.write_bytes(b"" if harm == "emptied" else second.read_bytes())
    with pytest.raises(UserError, match=r"part-00000\.parquet: ") as error:
        select(run_dir, "cherry.jsonl")
    assert "\n" not in str(error.value)
    assert not (run_dir / "cherry.jsonl").exists()


@pytest.mark.parametrize("moment", range(2))
def test_scores_and_records_are_of_one_run_whatever_is_scored_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """The run is scored again, with other data, before or after the row shards are opened."""
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(reversed(LINES)), encoding="utf-8")
    folder = tmp_path / "run"
    made_by = score(folder).fingerprint

    def interrupt(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            found = function(*arguments)
            score(folder, other, first=0.5, step=-0.01)
            return found

        return wrapped

    if moment:
        monkeypatch.setattr(Scores, "open_rows", interrupt(Scores.open_rows))
    else:
        monkeypatch.setattr(run, "open_scores", interrupt(open_scores))
    selected = select(folder, "cherry")
    assert pl.read_parquet(selected.path)["instruction"].to_list() == [
        json.loads(line)["instruction"] for line in LINES[16:19]
    ]
    card = (folder / "cherry" / "README.md").read_text(encoding="utf-8")
    assert SHIPPED.name in card
    assert "other.jsonl" not in card
    assert (folder / "rows" / made_by).is_dir()


def test_a_scores_dir_that_is_a_link_is_followed(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    link = tmp_path / "deep" / "er" / "link"
    link.symlink_to(run_dir)
    selected = select_records(link, tmp_path / "out.jsonl", HALF)
    assert selected.count == 9


def test_a_run_folder_that_moved_is_read(run_dir: Path, tmp_path: Path) -> None:
    os.replace(run_dir, tmp_path / "elsewhere")
    assert select(tmp_path / "elsewhere", "cherry.json").count == 3


def test_rows_that_fit_in_no_columns_leave_the_old_table(tmp_path: Path) -> None:
    data, folder = tmp_path / "data.jsonl", tmp_path / "run"
    row = {"instruction": "Name a fruit.", "output": "Cherry pie is not a fruit."}
    rows = [row | {"extra": extra} for extra in ({"b": 1}, [1])]
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    score(folder, data)
    select(folder, "cherry.parquet", 1)
    before = snapshot(folder)
    with pytest.raises(UserError, match=r"column 'extra' holds lists and objects.*jsonl"):
        select(folder, "cherry.parquet", 2)
    assert snapshot(folder) == before
    select(folder, "cherry", 2)  # in a folder they are JSON Lines
    (file,) = (folder / "cherry" / "data").iterdir()
    assert [json.loads(line) for line in file.read_text().splitlines()] == rows


# --- ratings -----------------------------------------------------------------------------------


def select_rated(run_dir: Path, ratings: Path) -> SelectedRows:
    choice = named("rating", fraction=None)
    return select_records(run_dir, run_dir / "best.jsonl", choice, extras=Extras(ratings=ratings))


def chosen_rows(selected: SelectedRows) -> list[int]:
    lines = selected.path.read_text(encoding="utf-8").splitlines()
    return [LINES.index(line) for line in lines]


def test_ratings_of_the_same_data_choose_and_are_written_down(tmp_path: Path) -> None:
    rows = score(tmp_path)
    ratings = pl.DataFrame(
        {
            "row": range(26),
            "rating": [float(row % 6) if row % 5 else None for row in range(26)],
            "reason": [None if row % 5 else "unparsed" for row in range(26)],
        }
    )
    origin = name_data(rows.summary["settings"])
    ratings.write_parquet(tmp_path / "ratings.parquet", metadata={"origin": origin})
    selected = select_rated(tmp_path, tmp_path / "ratings.parquet")
    assert chosen_rows(selected) == [11, 17]
    assert selected.facts["without_rating"] == {"unparsed": 4}
    assert (selected.facts["strategy"], selected.facts["threshold"]) == ("rating", 4.5)


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (None, "no such file; run `cherry-vllm judge judge=rating` first"),
        (pl.DataFrame({"row": ["1"], "rating": [5.0]}), "no ratings"),
        (pl.DataFrame({"rating": [5.0]}), "no ratings"),
        (
            pl.DataFrame({"row": [1, 1], "rating": [5, 4]}),
            "row 1 has the rating 5; each row may occur once",
        ),
        (pl.DataFrame({"row": [1], "rating": [math.nan]}), "row 1 has the rating nan"),
        (pl.DataFrame({"row": [None, 1], "rating": [5, 4]}), "row None has"),
        (
            pl.DataFrame({"row": [2**63], "rating": [5]}, {"row": pl.UInt64, "rating": pl.Int64}),
            f"row {2**63} has",
        ),
        (pl.DataFrame({"row": [1], "rating": [5], "reason": [["no"]]}), "column reason holds List"),
        (pl.DataFrame({"row": [1], "rating": [5], "reason": [b"no"]}), "column reason holds Bin"),
    ],
)
def test_ratings_that_are_none_cost_one_line(
    run_dir: Path, frame: pl.DataFrame | None, words: str
) -> None:
    file = run_dir / "own.parquet"
    if frame is not None:
        frame.write_parquet(file)
    with pytest.raises(UserError, match=words) as error:
        select_rated(run_dir, file)
    assert "\n" not in str(error.value)


def test_ratings_of_ones_own_need_a_row_and_a_rating_and_other_data_is_refused(
    run_dir: Path,
) -> None:
    own, foreign, broken = (run_dir / f"{name}.parquet" for name in ("own", "foreign", "broken"))
    frame = pl.DataFrame({"row": [1, 2], "rating": [5, 4]})
    frame.write_parquet(own)
    assert chosen_rows(select_rated(run_dir, own)) == [1]
    frame.cast({"rating": pl.Decimal(10, 2)}).write_parquet(own)
    assert chosen_rows(select_rated(run_dir, own)) == [1]
    frame.write_parquet(foreign, metadata={"origin": "0123"})
    settings = open_scores(run_dir).open_rows().summary["settings"]
    other_answers = {**settings, "columns": {**settings["columns"], "answer": "worse"}}
    assert name_data(other_answers) != name_data(settings)
    assert name_data({**settings, "max_rows": 9}) == name_data(settings)
    with pytest.raises(UserError, match="ratings of other data than this run scored"):
        select_rated(run_dir, foreign)
    broken.write_text("row,rating", encoding="utf-8")
    with pytest.raises(UserError, match="not a Parquet file"):
        select_rated(run_dir, broken)
