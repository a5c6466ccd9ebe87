"""Records to rows: a bad one is a counted drop, and its neighbours stay."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cherry_vllm.sources import Columns
from tests.sources.samples import (
    ALPACA,
    FIELDS,
    FIRST,
    LAST,
    LONG,
    QUESTION_ANSWER,
    TOO_DEEP,
    TOO_MANY_DIGITS,
    array_around,
    check_neighbours,
    complaint_about,
    encoded,
    file_of,
    file_with,
    lines_around,
    rows_of,
    with_field,
)

WRONG_TYPES = {"list": '["x", "y"]', "dict": '{"a": 1}', "messages": '[{"content": "no role"}]'}


# Values of JSON, so that they may stand in an array as well.
DROPPED_VALUES = [
    *(
        pytest.param(with_field(name, value), "malformed", id=f"{name}-is-{kind}")
        for name in ("instruction", "input", "output")
        for kind, value in WRONG_TYPES.items()
    ),
    pytest.param(with_field("instruction", "null"), "malformed", id="instruction-is-null"),
    pytest.param(b'{"input": "", "output": "o"}', "malformed", id="no-instruction"),
    pytest.param(b'{"instruction": "i", "input": ""}', "malformed", id="no-output"),
    pytest.param(b"{}", "malformed", id="no-field-at-all"),
    pytest.param(b"42", "malformed", id="a-number"),
    pytest.param(b'"text"', "malformed", id="a-string"),
    pytest.param(b"null", "malformed", id="null"),
    pytest.param(b'["i", "", "o"]', "malformed", id="a-list"),
    pytest.param(with_field("instruction", '"\\ud800"'), "malformed", id="surrogate-instruction"),
    pytest.param(with_field("input", '"a\\udfffb"'), "malformed", id="surrogate-input"),
    pytest.param(with_field("output", '"a\\ud800"'), "malformed", id="surrogate-answer"),
    pytest.param(with_field("output", '"a\\ude00\\ud83d"'), "malformed", id="swapped-surrogates"),
    pytest.param(b'{"instruction": "i", "output": "\xff"}', "malformed", id="not-utf8"),
    pytest.param(b'{"instruction": "i", "output": "\xed\xa0\x80"}', "malformed", id="cesu8"),
    pytest.param(
        b'{"instruction": "i", "output": "o", "x": "\xff"}', "malformed", id="not-utf8-elsewhere"
    ),
    pytest.param(with_field("output", "null"), "empty_answer", id="answer-is-null"),
    pytest.param(with_field("output", '""'), "empty_answer", id="answer-is-empty"),
    pytest.param(with_field("output", '" \\n\\t "'), "empty_answer", id="answer-is-blank"),
    pytest.param(with_field("output", '"\\u00a0\\u3000"'), "empty_answer", id="unicode-blank"),
]


# Not JSON, or beyond what can be decoded.
DROPPED_LINES = [
    pytest.param(b'{"instruction": "i", "output": "o"', "malformed", id="cut-off"),
    pytest.param(b"instruction: i", "malformed", id="not-json"),
    pytest.param(b"{'instruction': 'i', 'output': 'o'}", "malformed", id="python-quotes"),
    pytest.param(b'{"instruction": "i", "output": "o"}}', "malformed", id="one-brace-too-many"),
    pytest.param(b'{"instruction": "i", "output": "a\x00b"}', "malformed", id="raw-nul"),
    pytest.param(b'{"instruction": "i", "output": "a\tb"}', "malformed", id="raw-tab"),
    pytest.param(b"[" * 100_000, "malformed", id="deep-and-open"),
    pytest.param(with_field("x", TOO_DEEP), "malformed", id="deep"),
    pytest.param(with_field("x", TOO_MANY_DIGITS), "malformed", id="5000-digits"),
]


KEPT_VALUES = [
    pytest.param(b'{"instruction": "i", "output": "o"}', id="no-input"),
    pytest.param(with_field("input", "null"), id="input-is-null"),
    pytest.param(with_field("instruction", '""'), id="instruction-is-empty"),
    pytest.param(with_field("instruction", f'"{LONG}"'), id="long-instruction"),
    pytest.param(with_field("input", f'"{LONG}"'), id="long-input"),
    pytest.param(with_field("output", f'"{LONG}"'), id="long-answer"),
    pytest.param(with_field("output", '"🌅👩‍👩‍👧 ok"'), id="emoji"),
    pytest.param(with_field("output", '"\\ud83c\\udf05"'), id="escaped-emoji"),
    pytest.param(with_field("instruction", '"a\\u0000b"'), id="nul-in-instruction"),
    pytest.param(with_field("output", '"a\\u0000b"'), id="nul-in-answer"),
    pytest.param(with_field("x", '"\\ud800"'), id="surrogate-elsewhere"),
    pytest.param(with_field("x", "-Infinity"), id="infinity-elsewhere"),
    pytest.param(with_field("x", '{"deep": [1, {"er": null}]}'), id="nested-elsewhere"),
    pytest.param(json.dumps(FIRST).encode(), id="duplicate-row"),
]


@pytest.mark.parametrize(("line", "reason"), [*DROPPED_VALUES, *DROPPED_LINES])
def test_a_bad_line_costs_only_itself(tmp_path: Path, line: bytes, reason: str) -> None:
    rows = rows_of(file_with(tmp_path, "data.jsonl", lines_around(line)))
    check_neighbours(rows)
    assert rows["drop_reason"][1] == reason


@pytest.mark.parametrize(("element", "reason"), DROPPED_VALUES)
def test_a_bad_array_element_costs_only_itself(tmp_path: Path, element: bytes, reason: str) -> None:
    rows = rows_of(file_with(tmp_path, "data.json", array_around(element)))
    check_neighbours(rows)
    assert rows["drop_reason"][1] == reason


@pytest.mark.parametrize("value", KEPT_VALUES)
@pytest.mark.parametrize(("name", "around"), [("d.jsonl", lines_around), ("d.json", array_around)])
def test_an_odd_but_sound_record_is_kept(
    tmp_path: Path, value: Any, name: str, around: Callable[[bytes], bytes]
) -> None:
    rows = rows_of(file_with(tmp_path, name, around(value)))
    check_neighbours(rows)
    fields, row = json.loads(value), rows.row(1, named=True)
    assert row["drop_reason"] is None
    assert row["instruction"] == fields["instruction"]
    assert row["input"] == (fields.get("input") or "")
    assert row["answer"] == fields["output"]
    assert json.loads(row["record"]) == fields


@pytest.mark.parametrize(("name", "around"), [("d.jsonl", lines_around), ("d.json", array_around)])
def test_nan_in_another_field_is_kept(
    tmp_path: Path, name: str, around: Callable[[bytes], bytes]
) -> None:
    rows = rows_of(file_with(tmp_path, name, around(with_field("x", "NaN"))))
    check_neighbours(rows)
    assert rows["drop_reason"][1] is None
    assert '"x": NaN' in rows["record"][1]


def test_the_input_type_does_not_matter_where_the_data_has_no_input_column(tmp_path: Path) -> None:
    path = file_with(tmp_path, "d.jsonl", lines_around(with_field("input", "42")))
    rows = rows_of(path, columns=replace(ALPACA, input=None))
    assert rows["drop_reason"].to_list() == [None] * 3
    assert rows["input"].to_list() == [""] * 3


@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.csv", "lines.json"])
def test_a_byte_order_mark_is_ignored(tmp_path: Path, name: str) -> None:
    content = encoded([FIRST, LAST], "d.jsonl" if name == "lines.json" else name)
    rows = rows_of(file_with(tmp_path, name, b"\xef\xbb\xbf" + content))
    assert rows["instruction"].to_list() == ["first?", "last?"]
    assert rows["drop_reason"].null_count() == 2


def test_duplicate_rows_are_all_kept(tmp_path: Path) -> None:
    rows = rows_of(file_of(tmp_path, "d.jsonl", [FIRST] * 5))
    assert rows["row"].to_list() == list(range(5))
    assert rows["drop_reason"].null_count() == 5
    assert rows["answer"].to_list() == ["first"] * 5


def test_malformed_is_named_before_empty_and_empty_before_refusal(tmp_path: Path) -> None:
    lines = [
        b'{"output": ""}',
        b'{"instruction": "i", "output": " "}',
        b'{"instruction": "i", "output": "sorry"}',
        b'{"instruction": "i", "output": "fine"}',
    ]
    rows = rows_of(file_with(tmp_path, "d.jsonl", b"\n".join(lines)), refusals=[" ", "sorry"])
    assert rows["drop_reason"].to_list() == ["malformed", "empty_answer", "refusal", None]


def test_rows_are_numbered_over_all_files_and_none_is_lost(tmp_path: Path) -> None:
    mixed = lines_around(b"42") + b"\n\n" + lines_around(b'{"instruction": "i", "output": ""}')
    files = [
        file_with(tmp_path, "b.jsonl", mixed),
        file_of(tmp_path, "a.csv", [FIRST, LAST]),
        file_with(tmp_path, "c.json", array_around(b"null")),
        file_of(tmp_path, "d.parquet", [LAST]),
    ]
    rows = rows_of(*files, batch_rows=4)
    assert rows["row"].to_list() == list(range(6 + 2 + 3 + 1))
    dropped = rows.drop_nulls("drop_reason").select("row", pl.col("drop_reason").cast(pl.String))
    assert dropped.rows() == [(1, "malformed"), (4, "empty_answer"), (9, "malformed")]
    kept = rows.filter(pl.col("drop_reason").is_null())["answer"].to_list()
    assert kept == ["first", "last"] * 4 + ["last"]


def test_malformed_rows_are_shown_up_to_three_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = file_with(tmp_path, "d.jsonl", lines_around(b"\n".join([b"42"] * 5)))
    with caplog.at_level(logging.WARNING, logger="cherry_vllm"):
        rows_of(path, batch_rows=2)
    messages = [record.getMessage() for record in caplog.records]
    assert [message.split(": ")[1] for message in messages[:3]] == [
        "row 1 dropped as malformed",
        "row 2 dropped as malformed",
        "row 3 dropped as malformed",
    ]
    assert all(str(path) in message for message in messages[:3])
    assert messages[3] == "5 malformed rows in all"


@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.csv", "d.parquet"])
def test_other_column_names_are_mapped(tmp_path: Path, name: str) -> None:
    samples = [
        {"question": "q0", "answer": "a0", "input": "not read", "instruction": "nor this"},
        {"question": "q1", "answer": "a1", "input": "", "instruction": ""},
    ]
    rows = rows_of(file_of(tmp_path, name, samples), columns=QUESTION_ANSWER)
    assert rows.select(FIELDS).rows() == [("q0", "", "a0"), ("q1", "", "a1")]
    assert [json.loads(record) for record in rows["record"]] == samples


@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.csv", "d.parquet"])
def test_the_input_column_is_mapped(tmp_path: Path, name: str) -> None:
    path = file_of(tmp_path, name, [{"q": "q0", "context": "c0", "a": "a0"}])
    rows = rows_of(path, columns=Columns("q", "context", "a"))
    assert rows.select(FIELDS).rows() == [("q0", "c0", "a0")]


@pytest.mark.parametrize("field", ["instruction", "output"])
@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.jsonl.gz", "d.csv", "d.parquet"])
def test_a_missing_column_is_a_user_error(tmp_path: Path, name: str, field: str) -> None:
    sample = {"instruction": "i", "input": "n", "output": "o", "category": "c"}
    del sample[field]
    path = file_of(tmp_path, name, [sample] * 3)
    message = complaint_about(path)
    assert str(path) in message
    assert f"'{field}'" in message
    assert ", ".join(sample) in message
    assert f"data.columns.{field}=" in message


def test_a_column_missing_in_a_later_file_is_a_user_error(tmp_path: Path) -> None:
    good = file_of(tmp_path, "good.jsonl", [FIRST])
    bad = file_of(tmp_path, "bad.jsonl", [{"question": "q", "answer": "a"}])
    assert f"{bad}: no field 'instruction'" in complaint_about(good, bad)


def test_a_json_record_keeps_every_field_to_the_letter(tmp_path: Path) -> None:
    lines = [
        '{"id": 1e2, "output": "o", "instruction": "i", "tags": ["a", {"b": null}], "ok": true}',
        '{"instruction":"é\\u00e9","output":"o","n":12345678901234567890123,"instruction_2":""}',
        '{"instruction": "i", "output": 42, "why": "malformed, and still whole"}',
    ]
    rows = rows_of(file_with(tmp_path, "d.jsonl", "\n".join(lines).encode()))
    assert rows["record"].to_list() == lines
    array = file_with(tmp_path, "d.json", f"[{', '.join(lines)}]".encode())
    assert rows_of(array)["record"].to_list() == lines


# --- numbers and missing values ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("42", "42"),
        ("-7", "-7"),
        ("3.50", "3.50"),
        ("1e3", "1e3"),
        ("true", "true"),
        ("false", "false"),
        ("Infinity", "Infinity"),
    ],
)
@pytest.mark.parametrize("field", ["instruction", "input", "output"])
def test_a_number_is_read_as_its_text(tmp_path: Path, field: str, value: str, text: str) -> None:
    rows = rows_of(file_with(tmp_path, "d.jsonl", lines_around(with_field(field, value))))
    check_neighbours(rows)
    assert rows["drop_reason"][1] is None
    assert rows["answer" if field == "output" else field][1] == text


def test_nan_is_a_missing_value(tmp_path: Path) -> None:
    lines = [with_field(field, "NaN") for field in ("input", "output", "instruction")]
    rows = rows_of(file_with(tmp_path, "d.jsonl", b"\n".join(lines)))
    assert rows["drop_reason"].to_list() == [None, "empty_answer", "malformed"]
    assert rows["input"][0] == ""


@pytest.mark.parametrize("name", ["d.json", "d.jsonl"])
def test_sound_rows_behind_any_number_of_bad_ones_are_kept(tmp_path: Path, name: str) -> None:
    samples = [{"instruction": "i", "output": {"no": "text"}}] * 2_100 + [FIRST] * 3
    rows = rows_of(file_of(tmp_path, name, samples), batch_rows=5_000)
    assert rows["drop_reason"].to_list() == ["malformed"] * 2_100 + [None] * 3
