"""Parquet and Arrow."""

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cherry_vllm.options import DataFormat
from cherry_vllm.selection.parquet import write_parquet
from cherry_vllm.sources import Layout
from tests.sources.samples import (
    AUTO,
    FIELDS,
    FIRST,
    LAST,
    check_neighbours,
    complaint_about,
    encoded,
    file_of,
    file_with,
    rows_of,
)


def test_a_null_instruction_in_parquet_is_malformed(tmp_path: Path) -> None:
    samples: list[dict[str, Any]] = [FIRST, {**LAST, "instruction": None}, LAST]
    rows = rows_of(file_of(tmp_path, "d.parquet", samples))
    check_neighbours(rows)
    assert rows["drop_reason"][1] == "malformed"


@pytest.mark.parametrize("kind", ["categorical", "enum"])
def test_categories_in_parquet_are_text(tmp_path: Path, kind: str) -> None:
    dtype = pl.Categorical if kind == "categorical" else pl.Enum(["first", "last"])
    pl.DataFrame([FIRST, LAST]).cast({"output": dtype}).write_parquet(tmp_path / "d.parquet")
    rows = rows_of(tmp_path / "d.parquet")
    assert rows["answer"].to_list() == ["first", "last"]


@pytest.mark.parametrize("field", ["instruction", "input", "output"])
def test_a_parquet_column_that_is_not_text_is_a_user_error(tmp_path: Path, field: str) -> None:
    path = file_of(tmp_path, "d.parquet", [{**FIRST, field: ["x", "y"]}])
    message = complaint_about(path)
    assert f"{path}: row 0: field '{field}' is a list, not text, and no row is usable" in message
    assert "data.columns" in message


@pytest.mark.parametrize("damage", ["garbage", "cut off", "overwritten"])
def test_a_broken_parquet_file_is_a_user_error(tmp_path: Path, damage: str) -> None:
    samples = [{"instruction": f"{i}?", "output": str(i)} for i in range(1_000)]
    content = encoded(samples, "d.parquet")
    broken = {
        "garbage": b"no parquet at all",
        "cut off": content[: len(content) // 2],
        "overwritten": content[:4] + b"\xff" * 100 + content[104:],
    }[damage]
    path = file_with(tmp_path, "d.parquet", broken)
    assert f"{path}: not readable as parquet" in complaint_about(path)


def test_a_parquet_record_is_json_of_every_column(tmp_path: Path) -> None:
    table = pl.DataFrame(
        {
            "id": [1, 2],
            "instruction": ["i", "j"],
            "output": ["o", "p"],
            "blob": [b"\xff\x00", None],
            "day": [datetime.date(2024, 2, 29), None],
            "tags": [["a", "é"], []],
            "meta": [{"n": 1, "inner": {"deep": "x"}}, {"n": None, "inner": {"deep": "y"}}],
            "share": [0.5, float("nan")],
            "flag": [True, None],
        }
    )
    table.write_parquet(tmp_path / "d.parquet")
    rows = rows_of(tmp_path / "d.parquet")
    assert rows["drop_reason"].null_count() == 2
    assert json.loads(rows["record"][0]) == {
        "id": 1,
        "instruction": "i",
        "output": "o",
        "blob": "/wA=",
        "day": "2024-02-29",
        "tags": ["a", "é"],
        "meta": {"n": 1, "inner": {"deep": "x"}},
        "share": 0.5,
        "flag": True,
    }
    second = json.loads(rows["record"][1])
    assert list(second) == table.columns
    assert (second["blob"], second["day"], second["tags"]) == (None, None, [])
    assert second["meta"] == {"n": None, "inner": {"deep": "y"}}
    assert (second["share"], second["flag"]) == (None, None)


@pytest.mark.parametrize(
    "nested",
    [
        pytest.param([{"bytes": b"\xff", "path": "p"}, None], id="struct"),
        pytest.param([[b"\xff"], []], id="list"),
        pytest.param([[{"bytes": b"\xff"}], None], id="list-of-struct"),
    ],
)
def test_bytes_within_a_parquet_column_lose_no_row(tmp_path: Path, nested: list[Any]) -> None:
    table = pl.DataFrame({"instruction": ["i", "j"], "output": ["o", "p"], "image": nested})
    table.write_parquet(tmp_path / "1.parquet")
    rows = rows_of(file_of(tmp_path, "0.jsonl", [FIRST]), tmp_path / "1.parquet")
    assert rows["answer"].to_list() == ["first", "o", "p"]
    assert [set(json.loads(record)) for record in rows["record"][1:]] == [set(table.columns)] * 2


def test_numbers_in_parquet_are_read_as_their_text(tmp_path: Path) -> None:
    table = {"instruction": ["a", "b"], "input": [1.5, None], "output": [42, 7], "ok": [True, None]}
    pl.DataFrame(table).write_parquet(tmp_path / "d.parquet")
    rows = rows_of(tmp_path / "d.parquet")
    assert rows.select(FIELDS).rows() == [("a", "1.5", "42"), ("b", "", "7")]
    assert json.loads(rows["record"][0])["output"] == 42


@pytest.mark.parametrize("values", [[float("nan")] * 2, [None, None], [float("nan"), None]])
@pytest.mark.parametrize("dtype", [pl.Float64, pl.Float32])
def test_a_parquet_column_of_no_number_is_no_input(
    tmp_path: Path, values: list[Any], dtype: Any
) -> None:
    table = pl.DataFrame({"instruction": ["a", "b"], "output": ["x", "y"]})
    table = table.with_columns(input=pl.Series(values, dtype=dtype))
    table.write_parquet(tmp_path / "d.parquet")
    rows = rows_of(tmp_path / "d.parquet")
    assert rows.select(FIELDS).rows() == [("a", "", "x"), ("b", "", "y")]
    assert rows["drop_reason"].null_count() == 2


def test_bytes_in_parquet_that_are_utf8_are_text(tmp_path: Path) -> None:
    table = {
        "instruction": [b"a", "\u00e9".encode(), b"c", None],
        "output": [b"x", b"y", b"\xff", b"z"],
        "blob": [b"\xff", b"b", None, b""],
    }
    pl.DataFrame(table).write_parquet(tmp_path / "d.parquet")
    rows = rows_of(tmp_path / "d.parquet")
    assert rows["drop_reason"].to_list() == [None, None, "malformed", "malformed"]
    assert rows["instruction"].to_list() == ["a", "\u00e9", None, None]
    assert json.loads(rows["record"][1]) == {
        "instruction": "\u00e9",
        "output": "y",
        "blob": "Yg==",
    }


@pytest.mark.parametrize("name", ["d.arrow", "d.feather", "D.ARROW"])
@pytest.mark.parametrize("is_stream", [False, True])
def test_arrow_files_and_streams_are_read(tmp_path: Path, name: str, is_stream: bool) -> None:  # noqa: FBT001
    table = pl.DataFrame([FIRST, LAST])
    if is_stream:
        table.write_ipc_stream(tmp_path / name)
    else:
        table.write_ipc(tmp_path / name)
    rows = rows_of(tmp_path / name)
    check_sound(rows)
    assert rows_of(tmp_path / name, layout=Layout(DataFormat.arrow)).equals(rows)


def test_a_broken_arrow_file_is_a_user_error(tmp_path: Path) -> None:
    for content in (b"ARROW1 and no more", b"nothing of the kind"):
        path = file_with(tmp_path, "d.arrow", content)
        assert f"{path}: not readable as arrow" in complaint_about(path)


def check_sound(rows: pl.DataFrame) -> None:
    assert [json.loads(record) for record in rows["record"]] == [FIRST, LAST]
    assert rows["drop_reason"].null_count() == 2


def test_values_that_outputs_hold_in_another_type_are_told_by_their_column(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frame = pl.DataFrame(
        {
            **{name: [FIRST[name], LAST[name]] for name in FIRST},
            "day": [datetime.date(2024, 1, 1), None],
            "raw": [[b"\xff"], []],
            "loss": [0.5, float("nan")],
            "gain": [1.5, -0.0],
            "count": [2**62, 1],
        }
    )
    frame.write_parquet(tmp_path / "d.parquet")
    records = [json.loads(record) for record in rows_of(tmp_path / "d.parquet")["record"]]
    assert [record["day"] for record in records] == ["2024-01-01", None]
    assert [record["loss"] for record in records] == [0.5, None]
    assert "column 'day' is Date, which JSON lacks: it is kept as text" in caplog.text
    assert "column 'raw' is List(Binary), which JSON lacks" in caplog.text
    assert "1 rows: column 'loss' is NaN or infinite, null in outputs" in caplog.text
    assert not {"gain", "count"} & set(caplog.text.replace("'", " ").split())


@pytest.mark.parametrize("as_bytes", [False, True])
def test_messages_in_nested_columns_are_read(tmp_path: Path, *, as_bytes: bool) -> None:
    said = [("user", "Caf\u00e9?"), ("assistant", "Oui.")]
    turns = [
        {"role": who.encode(), "content": text.encode()}
        if as_bytes
        else {"role": who, "content": text}
        for who, text in said
    ]
    bad = [turns[0], {"role": b"assistant", "content": b"\xff"}] if as_bytes else turns
    frame = pl.DataFrame({"messages": [turns, bad], "image": [b"\xff", None]})
    frame.write_parquet(tmp_path / "d.parquet")
    rows = rows_of(tmp_path / "d.parquet", columns=AUTO)
    assert rows["drop_reason"].to_list() == [None, "malformed" if as_bytes else None]
    assert rows.select(FIELDS).row(0) == ("Caf\u00e9?", "", "Oui.")
    assert json.loads(rows["record"][0]) == {
        "messages": [{"role": who, "content": text} for who, text in said],
        "image": "/w==",
    }


def test_fields_that_only_other_rows_have_are_left_out_of_messages(tmp_path: Path) -> None:
    plain = {"messages": [{"role": "user", "content": "Hi."}, answer("Hello.")], "tools": None}
    records = [
        {
            "messages": [
                {"role": "user", "content": "Weather?"},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "content": "12", "tool_call_id": "x"},
                answer("12 degrees."),
            ],
            "tools": [{"type": "function", "function": {"name": "f"}}],
        }
        for call in (calling({"city": "Bern"}), calling({"days": {"from": 1, "to": 3}}))
    ] + [plain]
    source = file_of(tmp_path, "d.jsonl", records)
    write_parquet(map(json.dumps, records), tmp_path / "d.parquet", tmp_path / "d.parquet")
    from_json, from_table = (
        rows_of(path, columns=AUTO).select("messages", "tools", "drop_reason")
        for path in (source, tmp_path / "d.parquet")
    )
    assert from_table.rows() == from_json.rows()


def answer(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def calling(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "arguments": arguments}}


def test_an_infinite_number_in_a_column_that_is_read_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = [1.5, float("inf"), float("nan")]
    frame = pl.DataFrame({"instruction": ["a", "b", "c"], "output": values})
    frame.write_parquet(tmp_path / "d.parquet")
    rows = rows_of(tmp_path / "d.parquet")
    assert rows["drop_reason"].to_list() == [None, "empty_answer", "empty_answer"]
    assert "1 rows: column 'output' is NaN or infinite, null in outputs" in caplog.text


@pytest.mark.parametrize("kind", ["large", "dictionary", "view", "fixed"])
def test_every_type_of_text_is_text(tmp_path: Path, kind: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    dtypes = {
        "large": pyarrow.large_string(),
        "dictionary": pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
        "view": pyarrow.string_view(),
        "fixed": pyarrow.binary(4),
    }
    values = pyarrow.array(["abcd", "efgh"]).cast(pyarrow.string())
    column = pyarrow.array([b"abcd", b"efgh"], dtypes["fixed"]) if kind == "fixed" else values
    column = column if kind == "fixed" else column.cast(dtypes[kind])
    table = pyarrow.table({"instruction": column, "output": column})
    parquet.write_table(table, tmp_path / "d.parquet")
    assert rows_of(tmp_path / "d.parquet")["answer"].to_list() == ["abcd", "efgh"]


@pytest.mark.parametrize("value", [[1.0, float("nan")], {"x": [float("inf")]}])
def test_a_lost_number_within_a_column_is_told(
    tmp_path: Path, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"instruction": "i", "output": "o", "score": held} for held in (value, None)]
    pl.DataFrame(rows).write_parquet(tmp_path / "d.parquet")
    assert rows_of(tmp_path / "d.parquet")["drop_reason"].to_list() == [None, None]
    assert "1 rows: column 'score' is NaN or infinite, null in outputs" in caplog.text


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (datetime.date(2024, 1, 31), "2024-01-31"),
        (datetime.time(3, 4), "03:04:00"),
        (Decimal("1.50"), "1.50"),
    ],
)
def test_a_column_that_is_read_as_text_though_it_is_none_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, value: Any, read: str
) -> None:
    pl.DataFrame({**{key: [text] for key, text in FIRST.items()}, "output": [value]}).write_parquet(
        tmp_path / "d.parquet"
    )
    assert rows_of(tmp_path / "d.parquet")["answer"].to_list() == [read]
    assert "column 'output' is " in caplog.text
    assert "which JSON lacks: it is kept as text" in caplog.text


def test_objects_without_fields_are_kept(tmp_path: Path) -> None:
    frame = pl.DataFrame({key: [text] for key, text in FIRST.items()})
    meta = pl.Series("meta", [{}], pl.Struct({}))
    frame.with_columns(meta, within=pl.Series([[{}]], dtype=pl.List(pl.Struct({})))).write_ipc(
        tmp_path / "d.arrow"
    )
    (record,) = rows_of(tmp_path / "d.arrow")["record"]
    assert json.loads(record) == {**FIRST, "meta": {}, "within": [{}]}


def test_an_arrow_type_that_polars_does_not_know_is_a_user_error(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.ipc

    views = pa.array([[1]], type=pa.list_view(pa.int64()))
    table = pa.table({**{key: [text] for key, text in FIRST.items()}, "views": views})
    with pyarrow.ipc.new_file(tmp_path / "d.arrow", table.schema) as writer:
        writer.write_table(table)
    assert "not readable as arrow" in complaint_about(tmp_path / "d.arrow")
