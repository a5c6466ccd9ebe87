"""`cherry-vllm select` on scores that are made up: what it writes, prints and hands on."""

import json
from pathlib import Path

import polars as pl
import pytest

from cherry_vllm.cli import main
from cherry_vllm.cli.keys import list_groups
from cherry_vllm.commands.inputs import find_input
from cherry_vllm.commands.job import Job, Outcome
from cherry_vllm.commands.select import select
from cherry_vllm.config import compose
from cherry_vllm.errors import UserError
from cherry_vllm.schema import GAINS, DropReason
from cherry_vllm.selection.chosen_rows import decode_rows
from cherry_vllm.store.hashes import file_sha256
from cherry_vllm.store.scores import changing_scores, open_scores, write_scores
from tests.made_up import SHIPPED, score, write_embeddings


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


# --- where, rank, join, strata -----------------------------------------------------------------


def chosen(run_dir: Path, *words: str) -> list[int]:
    """The rows that the command line chooses."""
    assert main(["select", f"run_dir={run_dir}", "select.num_examples=0", *words]) == 0
    mark = json.loads((run_dir / "cherry.json.meta.json").read_text(encoding="utf-8"))
    lines = SHIPPED.read_text(encoding="utf-8").splitlines()
    held = (run_dir / "cherry.json").read_text(encoding="utf-8").splitlines()[1:-1]
    rows = [lines.index(line.removesuffix(",")) for line in held]
    assert sorted(rows) == decode_rows(mark["rows"])
    assert len(rows) == mark["num_selected"] == mark["steps"]["selected"]
    return rows


def texts(field: str) -> list[str]:
    lines = SHIPPED.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)[field] for line in lines]


def test_the_command_line_takes_sql(run_dir: Path) -> None:
    # Row n has an IFD of 0.1 + n / 20; rows 0 to 18 are usable.
    assert chosen(run_dir, "select.rank=-ifd", "select.count=2") == [0, 1]
    words = ("select.where=ifd <= 0.44 and row > 2", "select.fraction=1")
    assert chosen(run_dir, *words) == [3, 4, 5, 6]
    words = ("select.where='row in (3, 5, 20)'", "select.fraction=null")
    assert chosen(run_dir, *words) == [3, 5]
    words = ("select.pool=scored", "select.rank=abs(ifd - 0.6)")
    assert chosen(run_dir, *words, "select.count=2") == [24, 25]
    words = ("select.rank=0.7 * ifd", "select.threshold=0.6")
    assert chosen(run_dir, *words, "select.fraction=null") == [16, 17, 18]


def test_fields_of_the_records_can_be_named(run_dir: Path) -> None:
    with_input = [row for row in range(19) if texts("input")[row]]
    words = ("select.where=record.input <> ''", "select.fraction=null")
    assert chosen(run_dir, *words) == with_input
    lengths = {row: len(texts("output")[row]) for row in range(19)}
    longest = sorted(lengths, key=lambda row: (-lengths[row], row))[:3]
    assert chosen(run_dir, "select.rank=length(record.output)", "select.count=3") == sorted(longest)
    words = ("select.strata=record.input = ''", "select.quota={true: 1, false: 1}")
    half = chosen(run_dir, *words, "select.count=4")
    assert sum(row in with_input for row in half) == 2


def test_tables_join_by_row_and_are_in_the_mark(run_dir: Path) -> None:
    table = run_dir / "my table.parquet"
    frame = pl.DataFrame({"row": range(26), "reward": [row % 5 for row in range(26)]})
    frame.write_parquet(table)
    words = (f"select.join={table}", "select.rank=reward", "select.count=3")
    assert chosen(run_dir, *words) == [4, 9, 14]
    mark = json.loads((run_dir / "cherry.json.meta.json").read_text(encoding="utf-8"))
    assert mark["tables"] == {str(table): file_sha256(table)}
    words = (f"select.join=['{table}']", "select.strata=[reward]", "select.quota=equal")
    assert chosen(run_dir, *words, "select.count=5") == [14, 15, 16, 17, 18]


@pytest.mark.parametrize("setting", ["select.join", "select.ratings"])
def test_a_table_that_is_read_is_not_the_output(run_dir: Path, setting: str) -> None:
    words = ("select.count=3", "select.output=own.parquet")
    held = run(run_dir, *words).artifact.read_bytes()
    with pytest.raises(UserError, match=r"own\.parquet: .* reads .*; choose another sel"):
        run(run_dir, *words, f"{setting}={run_dir}/own.parquet")
    assert (run_dir / "own.parquet").read_bytes() == held


@pytest.mark.parametrize("strategy", list_groups()["select"])
def test_every_strategy_works_from_the_command_line(run_dir: Path, strategy: str) -> None:
    frame = pl.DataFrame({"row": range(26), "rating": [5.0] * 26, "cluster": [1, 2] * 13})
    columns = {name: pl.col("row") % 3 for name in ("reward", "understandability")}
    columns |= {name: pl.col("row") % 4 for name in ("naturalness", "coherence")}
    frame.with_columns(**columns).write_parquet(run_dir / "table.parquet")
    embed_rows(run_dir)
    words = (f"select={strategy}", f"select.join=[{run_dir}/table.parquet]", "select.count=4")
    assert len(chosen(run_dir, *words)) == 4


@pytest.mark.slow
def test_a_sweep_over_strategies_gives_each_its_folder(run_dir: Path) -> None:
    argv = ["select", "-m", f"run_dir={run_dir}", "select=cherry,low_ifd,random"]
    assert main([*argv, "select.fraction=0.2,0.4"]) == 0
    found = sorted(path.parent.name for path in run_dir.glob("*/cherry.json"))
    assert found == [
        f"select.fraction={fraction},select={name}"
        for fraction in ("0.2", "0.4")
        for name in ("cherry", "low_ifd", "random")
    ]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["select.rank=idf"], "select.rank=idf: no column idf; there are row, num_turns"),
        (["select.where=ifd <"], "select.where=ifd <: "),
        (
            ["select=superfilter_d"],
            ": no embeddings of these rows, which select.diversify needs; r",
        ),
        (["select.dedup=fuzzy"], "select.dedup=fuzzy"),
        (["select=balanced"], ": no embeddings of these rows, which the column cluster needs; run"),
        (
            ["select.join=no.parquet", "select.rank=x"],
            "no.parquet: no such file; check select.j",
        ),
        (
            ["select.rank=rating"],
            "ratings.parquet: no such file; run `cherry-vllm judge judge=",
        ),
        (["select.strata=[row]", "select.quota={x: 1}"], "select.quota: no stratum x; there are"),
        (["select.where=1 in (select 1)"], "select is not understood, since no tables are read"),
    ],
)
def test_what_cannot_be_chosen_costs_one_line(
    run_dir: Path, capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    assert main(["select", f"run_dir={run_dir}", *words]) == 2
    (shown,) = capsys.readouterr().err.splitlines()
    assert line in shown


def embed_rows(run_dir: Path, model: str = "", **settings: bool) -> Path:
    """Embeddings in three directions, by row; row 18 has none."""
    vectors = [[float(row % 3), 1.0] if row != 18 else None for row in range(26)]
    column = pl.Series("embedding", vectors, pl.Array(pl.Float32, 2))
    frame = pl.DataFrame({"row": range(26)}).with_columns(column)
    rows = open_scores(run_dir).rows_fingerprint
    return write_embeddings(run_dir / "embeddings", frame, rows, model, **settings).folder


def test_clusters_come_from_the_embeddings_of_the_run(run_dir: Path) -> None:
    folder = embed_rows(run_dir)
    words = ("select=balanced", "select.where=row < 18", "select.num_clusters=3")
    assert chosen(run_dir, *words, "select.count=6") == [12, 13, 14, 15, 16, 17]
    one = ["select.where='row < 18'", "select.group=cluster", "select.max_per_group=1"]
    one.append("select.fraction=null")
    assert chosen(run_dir, *one, "select.num_clusters=3") == [15, 16, 17]
    mark = json.loads((run_dir / "cherry.json.meta.json").read_text(encoding="utf-8"))
    assert mark["num_clusters"] == 3
    assert mark["tables"] == {"embeddings": file_sha256(folder / "complete.json")}
    run(run_dir, *one, "select.num_clusters=3", is_sweep=True)
    with pytest.raises(UserError, match="holds another selection"):
        run(run_dir, *one, "select.num_clusters=2", is_sweep=True)


def test_diverse_rows_come_from_the_embeddings_of_the_run(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = embed_rows(run_dir)
    words = ("select.diversify=facility_location", "select.count=3")
    assert sorted(row % 3 for row in chosen(run_dir, *words)) == [0, 1, 2]
    assert chosen(run_dir, *words, "select.candidates=1") == [15, 16, 17]
    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "dropped: no_embedding 1" in shown
    assert "with an embedding 18" in shown
    mark = json.loads((run_dir / "cherry.json.meta.json").read_text(encoding="utf-8"))
    assert mark["dropped"] == {"no_embedding": 1}
    assert mark["tables"] == {"embeddings": file_sha256(folder / "complete.json")}
    assert mark["diversify"] == "facility_location"


@pytest.mark.slow
def test_embeddings_of_several_models_need_a_name(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = embed_rows(run_dir, "one"), embed_rows(run_dir, "other")
    words = ["select", f"run_dir={run_dir}", "select.count=3", "select.diversify=k_center"]
    assert main(words) == 2
    (shown,) = capsys.readouterr().err.splitlines()
    assert "embeddings of these rows by several models" in shown
    assert one.name in shown
    assert other.name in shown
    assert main([*words, f"select.embeddings={other}"]) == 0
    frame = pl.DataFrame({"row": [0]})
    foreign = write_embeddings(tmp_path / "embeddings", frame, "other rows").folder
    (logprobs,) = (run_dir / "logprobs").iterdir()
    for folder, fault in (
        (foreign, "not the embeddings of these rows"),
        (logprobs, "not the embeddings of these rows"),
        (run_dir, "no complete"),
    ):
        assert main([*words, f"select.embeddings={folder}"]) == 2
        (shown,) = capsys.readouterr().err.splitlines()
        assert fault in shown
    embed_rows(run_dir, "one", perplexities=True)  # as they are made now, beside those of before
    assert main(words) == 0


@pytest.mark.parametrize("dedup", ["exact", "minhash"])
def test_duplicates_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dedup: str
) -> None:
    lines = SHIPPED.read_text(encoding="utf-8").splitlines()
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join([*lines[:8], *lines[:4]]), encoding="utf-8")
    run_dir = tmp_path / "run"
    score(run_dir, data)
    words = [f"select.dedup={dedup}", "select.fraction=null", "select.num_examples=0"]
    assert main(["select", f"run_dir={run_dir}", *words]) == 0
    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "dropped: duplicate 4" in shown
    mark = json.loads((run_dir / "cherry.json.meta.json").read_text(encoding="utf-8"))
    assert mark["rows"] == "4-11"  # the later ones have the higher IFD
    assert mark["dropped"] == {"duplicate": 4}
    assert mark["steps"]["dedup"] == 8


def test_the_card_counts_rows_above_one_once(run_dir: Path) -> None:
    run(run_dir, "select.pool=scored", "select.count=9", "select.output=cherry")
    text = (run_dir / "cherry" / "README.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    table = {key: value for key, *values in rows for value in values}
    # Of rows 0 to 25, rows 19 to 25 have an IFD above 1; rows 17 to 25 are selected.
    assert [table[key] for key in ("selected", "usable, not selected", "rows read")] == [
        *("9", "17", "26"),
    ]
    assert "dropped: ifd_above_one" not in table


def test_answer_tokens_are_counted_beyond_32_bits(run_dir: Path) -> None:
    held = open_scores(run_dir)
    many = held.frame.with_columns(num_answer_tokens=pl.lit(3 * 10**9, pl.UInt32))
    with changing_scores(run_dir):
        write_scores(run_dir, many, held.rows_folder, held.manifest)
    assert run(run_dir, "select.count=2").facts["num_answer_tokens"] == 6 * 10**9


def test_columns_that_an_earlier_release_left_out_are_found_for_the_choice(run_dir: Path) -> None:
    held = open_scores(run_dir)
    manifest = {key: held.manifest[key] for key in held.manifest if key != "s_ifd"}
    with changing_scores(run_dir):
        write_scores(run_dir, held.frame.drop(GAINS), held.rows_folder, manifest)
    before = (run_dir / "scores.parquet").read_bytes()
    assert chosen(run_dir, "select.rank=-nats_saved", "select.count=2") == [17, 18]
    assert (run_dir / "scores.parquet").read_bytes() == before
