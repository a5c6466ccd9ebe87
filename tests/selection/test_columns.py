"""Columns from records, messages and tables, made only if an expression names them."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cherry_vllm.conversation import ASSISTANT, USER, Message, frame_messages, single_turn
from cherry_vllm.errors import UserError
from cherry_vllm.schema import ROWS
from cherry_vllm.selection.columns import Sources, read_texts
from cherry_vllm.store.shards import Shards

RECORDS: list[dict[str, Any]] = [
    {"id": 2**60 + 1, "hash": str(2**128 - 1), "loss": "NaN"}
    | {"source": "a", "stars": 4, "meta": {"lang": "en", "id's": "x"}, "ok": True, "zip": "007"},
    {"id": str(2**60 + 2), "hash": "1", "loss": 1.5}
    | {"source": "it's", "stars": 2.5, "meta": {"lang": None}, "ok": False, "zip": "08"},
    {"id": 2**60, "hash": "2", "loss": "2"}
    | {"source": 'say "hi"\u00e9', "stars": "3", "meta": {}, "ok": True, "zip": "x"},
    {"stars": None},
]


def rows_of(records: list[dict[str, Any]], conversations: Any = None) -> pl.LazyFrame:
    said = conversations or [single_turn("Q", "", "A").messages] * len(records)
    columns = {
        "row": range(len(records)),
        "record": [json.dumps(record) for record in records],
        "messages": frame_messages(said),
        "tools": None,
        "drop_reason": None,
    }
    return pl.DataFrame(columns, schema=ROWS).lazy()


def field(name: str) -> list[Any]:
    return read_texts(rows_of(RECORDS), [f"record.{name}"])[f"record.{name}"].to_list()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("source", ["a", "it's", 'say "hi"\u00e9', None]),
        ("stars", [4.0, 2.5, 3.0, None]),
        ("meta.lang", ["en", None, None, None]),
        ("meta.id's", ["x", None, None, None]),
        ("ok", [True, False, True, None]),
        ("zip", ["007", "08", "x", None]),
        ("nosuch", [None] * 4),
        ("id", [2**60 + 1, 2**60 + 2, 2**60, None]),
        ("hash", ["340282366920938463463374607431768211455", "1", "2", None]),
        ("loss", [None, 1.5, 2.0, None]),
        ("source.deeper", [None] * 4),
    ],
)
def test_a_field_is_typed_by_all_its_values(name: str, expected: list[Any]) -> None:
    assert field(name) == expected


def test_the_instruction_is_all_that_precedes_the_last_answer() -> None:
    talk = [Message(USER, "Q"), Message(ASSISTANT, "A", "", is_answer=True)]
    more = [Message(USER, "Q"), Message(ASSISTANT, "B", "", is_answer=True)]
    longer = [*talk, Message(USER, "R"), Message(ASSISTANT, "C", "", is_answer=True)]
    other = [*more, Message(USER, "R"), Message(ASSISTANT, "C", "", is_answer=True)]
    with_input = list(single_turn("Q", "x", "A").messages)
    said = [talk, more, longer, other, with_input, [Message(USER, "Q")], talk]
    found = read_texts(rows_of([{}] * 7, said), ["instruction"])["instruction"].to_list()
    assert found[0] == found[1] == found[6]
    assert len({found[row] for row in (0, 2, 3, 4)}) == 4
    assert "Q" in found[0]
    assert "A" not in found[0]


SCORES = pl.DataFrame({"row": [0, 1, 2, 3], "ifd": [0.1, 0.2, 0.3, 0.4]})


def write(path: Path, frame: pl.DataFrame, **metadata: str) -> Path:
    frame.write_parquet(path, metadata=metadata)
    return path


def sources(*tables: Path, **more: Any) -> Sources:
    return Sources(rows=rows_of(RECORDS), num_rows=4, tables=tables, **more)


def test_columns_of_tables_join_by_row_whatever_their_order(tmp_path: Path) -> None:
    table = write(tmp_path / "a.parquet", pl.DataFrame({"row": [3, 0], "reward": [1, 2]}))
    found = sources(table).add(SCORES, ["reward", "ifd", "record.source", "nosuch"])
    assert found.columns == ["row", "ifd", "record.source", "reward"]
    assert found["reward"].to_list() == [2, None, None, 1]
    assert found["row"].to_list() == [0, 1, 2, 3]


def test_nan_in_a_table_is_null(tmp_path: Path) -> None:
    """Polars holds NaN to be above every number, so a condition would be met."""
    frame = pl.DataFrame({"row": [0, 1], "reward": [float("nan"), 1.0]})
    found = sources(write(tmp_path / "a.parquet", frame)).add(SCORES, ["reward"])
    assert found["reward"].to_list() == [None, 1.0, None, None]


def test_what_no_expression_names_is_not_read(tmp_path: Path) -> None:
    table = write(tmp_path / "a.parquet", pl.DataFrame({"row": [9, 9], "reward": [1, 2]}))

    def find_clusters(_embeddings: Shards) -> pl.DataFrame:
        raise AssertionError("nobody asked")

    asked = sources(table, find_clusters=find_clusters, ratings=tmp_path / "none.parquet")
    assert asked.add(SCORES, ["ifd"]).equals(SCORES)
    assert asked.used == {}
    assert asked.known == ["reward", "cluster", "rating", "instruction", "record.NAME"]


def test_ratings_and_clusters_come_from_their_own_places(tmp_path: Path) -> None:
    ratings = write(tmp_path / "r.parquet", pl.DataFrame({"row": [1], "rating": [5.0]}))
    clusters = pl.DataFrame({"row": [2], "cluster": [7]})
    embeddings = Shards(tmp_path / "embeddings", {})
    asked = sources(
        ratings=ratings,
        find_clusters=lambda _embeddings: clusters,
        find_embeddings=lambda _user: embeddings,
    )
    found = asked.add(SCORES, ["rating", "cluster"])
    assert found["rating"].to_list() == [None, 5.0, None, None]
    assert found["cluster"].to_list() == [None, None, 7, None]
    assert asked.used == {"rating": ratings, "embeddings": embeddings.folder / "complete.json"}


@pytest.mark.parametrize("name", ["record.sorce", "record.meta.nosuch", "record."])
def test_a_field_that_no_record_has_costs_one_line_with_those_that_are_there(name: str) -> None:
    words = "no record has a value there; the first one has the fields id, hash, loss, source"
    with pytest.raises(UserError, match=words) as error:
        sources().add(SCORES, ["ifd", "record.source", name])
    assert str(error.value).startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("frame", "metadata", "words"),
    [
        (None, {}, "no such file; check select.join"),
        (pl.DataFrame({"row": ["1"], "x": [1]}), {}, "no column row of whole numbers"),
        (pl.DataFrame({"x": [1]}), {}, "no column row of whole numbers"),
        (pl.DataFrame({"row": [1, 1], "x": [1, 2]}), {}, "row 1; each row may occur once"),
        (pl.DataFrame({"row": [None, 1], "x": [1, 2]}), {}, "row None; each row may"),
        (pl.DataFrame({"row": [4], "x": [1]}), {}, "row 4; each row may occur once, from 0 to 3"),
        (pl.DataFrame({"row": [-1], "x": [1]}), {}, "row -1; each row may"),
        (pl.DataFrame({"row": [1], "x": [1]}), {"origin": "other"}, "about other data than this"),
    ],
)
def test_a_table_that_does_not_fit_costs_one_line(
    tmp_path: Path, frame: pl.DataFrame | None, metadata: dict[str, str], words: str
) -> None:
    table = tmp_path / "a.parquet"
    if frame is not None:
        write(table, frame, **metadata)
    with pytest.raises(UserError, match=words) as error:
        sources(table, origin="mine").add(SCORES, ["x"])
    assert str(error.value).startswith(f"{table}: ")
    assert "\n" not in str(error.value)


def test_a_name_in_two_tables_is_refused_only_if_it_is_used(tmp_path: Path) -> None:
    frame = pl.DataFrame({"row": [1], "x": [1], "reason": [2]})
    one = write(tmp_path / "one.parquet", frame)
    two = write(tmp_path / "two.parquet", frame.rename({"x": "y"}))
    found = sources(one, two).add(SCORES, ["x", "y"])
    assert found.columns == ["row", "ifd", "x", "y"]
    with pytest.raises(UserError, match=r"both .*one\.parquet and .*two\.parquet have a column re"):
        sources(one, two).add(SCORES, ["reason"])
    assert sources(one, two).find_unambiguous(SCORES.columns) == ["x", "y"]
    (tmp_path / "text.parquet").write_text("row,x", encoding="utf-8")
    with pytest.raises(UserError, match="not a Parquet file, or damaged"):
        sources(tmp_path / "text.parquet").add(SCORES, ["x"])


@pytest.mark.parametrize(
    "name", ["ifd", "instruction", "record.stars", "rank_value", "rating_reason"]
)
def test_a_name_that_something_else_has_too_is_refused_only_if_it_is_used(
    tmp_path: Path, name: str
) -> None:
    table = write(tmp_path / "a.parquet", pl.DataFrame({"row": [1], "x": [1], name: [2]}))
    assert sources(table).add(SCORES, ["x"])["x"].to_list() == [None, 1, None, None]
    assert sources(table).find_unambiguous(SCORES.columns) == ["x"]
    with pytest.raises(UserError, match=rf"a\.parquet has a column {name}, and so have the scores"):
        sources(table).add(SCORES, ["x", name])


def test_a_damaged_table_costs_one_line(tmp_path: Path) -> None:
    frame = pl.DataFrame({"row": range(4), "x": ["a", "b", "c", "d"]})
    table = write(tmp_path / "a.parquet", frame)
    content = table.read_bytes()
    for place in range(4, len(content) - 8, 7):
        flipped = bytes([content[place] ^ 16])
        table.write_bytes(content[:place] + flipped + content[place + 1 :])
        with suppress(UserError):
            assert sources(table).add(SCORES, ["x"]).height == 4
