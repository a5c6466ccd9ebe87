"""`cherry-vllm select` on scores that are made up: what it writes, prints and hands on."""

import json
from pathlib import Path

import polars as pl
import pytest

from cherry_vllm.commands.inputs import Job, Outcome, find_input
from cherry_vllm.commands.select import select
from cherry_vllm.config import compose
from cherry_vllm.errors import UserError
from cherry_vllm.schema import DropReason
from cherry_vllm.store.files import file_sha256
from tests.made_up import SHIPPED, score


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    score(tmp_path / "run")
    return tmp_path / "run"


def run(run_dir: Path, *overrides: str, is_sweep: bool = False) -> Outcome:
    config = compose(f"run_dir='{run_dir}'", *overrides)
    return select(config, Job(run_dir, is_sweep, "cherry-vllm select x=1"))


def test_the_rows_and_what_was_chosen_are_handed_on(run_dir: Path) -> None:
    outcome = run(run_dir, "select.count=3")
    assert outcome.artifact == run_dir / "cherry.json"
    assert outcome.facts == {"num_selected": 3, "num_answer_tokens": 3}


def test_jobs_of_a_sweep_never_write_one_output(run_dir: Path) -> None:
    for output in (str(run_dir.parent / "one.json"), "../one.json"):
        with pytest.raises(UserError, match="in a sweep give only a name"):
            run(run_dir, "select.count=3", f"select.output={output}", is_sweep=True)
    for _ in range(2):
        run(run_dir, "select.count=3", is_sweep=True)
    with pytest.raises(UserError, match="holds another selection, which this sweep would replace"):
        run(run_dir, "select.count=4", is_sweep=True)
    assert len(json.loads((run_dir / "cherry.json").read_text())) == 3


def test_training_finds_the_rows_of_a_data_set_folder(run_dir: Path) -> None:
    for count in (2, 3):
        data = run(run_dir, f"select.count={count}", "select.output=again/").artifact
        assert pl.read_parquet(data).height == count
    assert find_input(compose(f"data.path={run_dir}/again/data/*.parquet")) == [data]


def test_the_terminal_shows_the_counts_and_the_ends_of_the_scale(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(run_dir, "select.count=3", "select.num_examples=1")
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in shown[-6:-1] if "row" in line] == [
        ["1.000", "row"],
        ["0.100", "row"],
    ]
    assert shown[-1] == f"cherry: 3 rows in {run_dir / 'cherry.json'}"
    run(run_dir, "select.count=3", is_sweep=True)
    assert "highest IFD" not in capsys.readouterr().out


def test_the_reasons_of_rows_without_a_rating_are_shown(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = pl.DataFrame(
        {"row": [0, 1, 2], "rating": [5.0, 4.6, None], "reason": [None, None, "\x1b[31mfailed"]}
    )
    frame.write_parquet(run_dir / "ratings.parquet")
    outcome = run(run_dir, "select=rating", "select.fraction=null")
    assert outcome.facts["num_selected"] == 2
    shown = capsys.readouterr().out
    assert "rows without a rating" in shown
    assert r"\x1b[31mfailed" in shown
    assert "\x1b" not in shown


def test_a_name_with_control_characters_is_shown_and_not_acted_on(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strange = run_dir.rename(run_dir.with_name("run\x1b[31m\u202e"))
    run(strange, "select.count=3")
    shown = capsys.readouterr().out
    assert r"run\x1b[31m\u202e" in shown
    assert all(line.isprintable() for line in shown.splitlines())


def test_the_card_says_where_every_row_went_and_how_it_was_made(run_dir: Path) -> None:
    data = run(run_dir, "select.count=5", "select.output=cherry", "select.order=ifd").artifact
    text = (run_dir / "cherry" / "README.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    table = {key: value for key, *values in rows for value in values}
    assert table[SHIPPED.name] == f"SHA-256 {file_sha256(SHIPPED)}"
    assert table["model"].startswith("made_up (fingerprint ")
    assert (table["strategy"], table["order"], table["fraction"]) == ("cherry", "ifd", "0.1")
    assert table["count"] == table["selected"] == "5"
    manifest = json.loads((run_dir / "score.json").read_text(encoding="utf-8"))
    dropped = {reason.value: table.get(f"dropped: {reason.value}", "0") for reason in DropReason}
    assert {name: int(number) for name, number in dropped.items()} == {
        name: number for name, number in manifest["outcomes"].items() if name != "usable"
    }
    kept = int(table["selected"]) + int(table["usable, not selected"])
    assert kept + sum(map(int, dropped.values())) == int(table["rows read"]) == 26
    assert "### Response:" in table["prompt"]
    assert "```bash\ncherry-vllm select x=1\n```" in text
    assert data.name in text


def test_a_run_folder_for_the_scores_of_another_keeps_its_own_files(
    run_dir: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for output in ("ratings.parquet", f"{run_dir}/rows/new"):
        overrides = (f"scores_dir={run_dir}", "select.count=1", f"select.output={output}")
        with pytest.raises(UserError, match="a name that the run keeps for its own files"):
            run(own, *overrides)
