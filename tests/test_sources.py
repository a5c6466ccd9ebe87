"""Reading instruction data: bad rows are counted drops, bad files are one clear line."""

import csv
import datetime
import gzip
import io
import json
import logging
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from backports import zstd
from polars.testing import assert_frame_equal

from cherry_vllm.errors import UserError
from cherry_vllm.options import DataFormat
from cherry_vllm.schema import ROWS
from cherry_vllm.sources import Columns, find_files, read_rows, records

REPOSITORY = Path(__file__).parents[1]
ALPACA = Columns("instruction", "input", "output")
QUESTION_ANSWER = Columns("question", None, "answer")
FIELDS = ["instruction", "input", "answer"]

FIRST = {"instruction": "first?", "input": "", "output": "first"}
LAST = {"instruction": "last?", "input": "", "output": "last"}

LONG = "x" * 100_000
TOO_DEEP = "[" * 100_000 + "]" * 100_000
TOO_MANY_DIGITS = "9" * 5_000

# What each format can hold, and easily gets wrong.
SAMPLES = [
    {"instruction": "Name a colour.", "input": "", "output": "Blue."},
    {"instruction": "Translate.", "input": "good morning", "output": "Доброе утро 🌅👩‍👩‍👧"},
    {"instruction": 'Quote "this", please', "input": "a,b;c\td", "output": 'He said "no", twice'},
    {"instruction": "Two\nlines", "input": "\n", "output": "one\r\ntwo\n"},
    {"instruction": "  spaces  ", "input": " ", "output": " kept "},
    {"instruction": "separators", "input": "\u2028", "output": "a\u2028b\u0085c"},
    {"instruction": "NUL \x00 too", "input": "", "output": "a\x00b"},
    {"instruction": "42", "input": "null", "output": "true"},
    {"instruction": LONG, "input": LONG, "output": LONG},
    {"instruction": "Name a colour.", "input": "", "output": "Blue."},
]


def rows_of(*files, data_format=DataFormat.auto, columns=ALPACA, refusals=(), batch_rows=100):
    frames = read_rows(
        files, data_format=data_format, columns=columns, refusals=refusals, batch_rows=batch_rows
    )
    return pl.concat(list(frames))


@pytest.mark.parametrize(
    ("max_rows", "heights"), [(1, [1]), (5, [5]), (7, [5, 2]), (99, [5, 5, 2])]
)
def test_only_the_first_rows_are_read_if_so_asked(tmp_path, max_rows, heights):
    frames = list(
        read_rows(
            shards_of_twelve_rows(tmp_path),
            data_format=DataFormat.auto,
            columns=ALPACA,
            refusals=[],
            max_rows=max_rows,
            batch_rows=5,
        )
    )
    assert [frame.height for frame in frames] == heights
    assert pl.concat(frames)["row"].to_list() == list(range(sum(heights)))


def complaint_about(*files, **options):
    with pytest.raises(UserError) as caught:
        rows_of(*files, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def compressed(content, name):
    if name.endswith(".gz"):
        return gzip.compress(content)
    if name.endswith(".zst"):
        return zstd.compress(content)
    return content


def encoded(samples, name):
    """The samples as the bytes of a file of this name."""
    plain = name.removesuffix(".gz").removesuffix(".zst")
    if plain.endswith(".json"):
        content = json.dumps(samples).encode()
    elif plain.endswith((".jsonl", ".ndjson")):
        content = "".join(f"{json.dumps(sample)}\n" for sample in samples).encode()
    elif plain.endswith(".csv"):
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(samples[0]))
        writer.writeheader()
        writer.writerows(samples)
        content = text.getvalue().encode()
    else:
        buffer = io.BytesIO()
        pl.DataFrame(samples).write_parquet(buffer)
        content = buffer.getvalue()
    return compressed(content, name)


def file_of(folder, name, samples):
    return file_with(folder, name, encoded(samples, name))


def file_with(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    return path


def lines_around(line):
    return b"\n".join([json.dumps(FIRST).encode(), line, json.dumps(LAST).encode(), b""])


def array_around(element):
    return b"[" + b",".join([json.dumps(FIRST).encode(), element, json.dumps(LAST).encode()]) + b"]"


def check_neighbours(rows):
    assert rows["row"].to_list() == [0, 1, 2]
    assert rows.schema == pl.Schema(ROWS)
    for position, sample in ((0, FIRST), (2, LAST)):
        row = rows.row(position, named=True)
        assert row["drop_reason"] is None
        assert (row["instruction"], row["answer"]) == (sample["instruction"], sample["output"])
        assert json.loads(row["record"]) == sample


# --- one bad row among good ones -------------------------------------------------------------

WRONG_TYPES = {"int": "42", "float": "1.5", "list": '["x"]', "dict": '{"a": 1}', "bool": "true"}


def with_field(name, value):
    fields = {"instruction": '"i"', "input": '"n"', "output": '"o"', name: value}
    return ("{" + ", ".join(f'"{key}": {value}' for key, value in fields.items()) + "}").encode()


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
def test_a_bad_line_costs_only_itself(tmp_path, line, reason):
    rows = rows_of(file_with(tmp_path, "data.jsonl", lines_around(line)))
    check_neighbours(rows)
    assert rows["drop_reason"][1] == reason


@pytest.mark.parametrize(("element", "reason"), DROPPED_VALUES)
def test_a_bad_array_element_costs_only_itself(tmp_path, element, reason):
    rows = rows_of(file_with(tmp_path, "data.json", array_around(element)))
    check_neighbours(rows)
    assert rows["drop_reason"][1] == reason


@pytest.mark.parametrize("value", KEPT_VALUES)
@pytest.mark.parametrize(("name", "around"), [("d.jsonl", lines_around), ("d.json", array_around)])
def test_an_odd_but_sound_record_is_kept(tmp_path, value, name, around):
    rows = rows_of(file_with(tmp_path, name, around(value)))
    check_neighbours(rows)
    fields, row = json.loads(value), rows.row(1, named=True)
    assert row["drop_reason"] is None
    assert row["instruction"] == fields["instruction"]
    assert row["input"] == (fields.get("input") or "")
    assert row["answer"] == fields["output"]
    assert json.loads(row["record"]) == fields


@pytest.mark.parametrize(("name", "around"), [("d.jsonl", lines_around), ("d.json", array_around)])
def test_nan_in_another_field_is_kept(tmp_path, name, around):
    rows = rows_of(file_with(tmp_path, name, around(with_field("x", "NaN"))))
    check_neighbours(rows)
    assert rows["drop_reason"][1] is None
    assert '"x": NaN' in rows["record"][1]


def test_the_input_type_does_not_matter_where_the_data_has_no_input_column(tmp_path):
    path = file_with(tmp_path, "d.jsonl", lines_around(with_field("input", "42")))
    rows = rows_of(path, columns=ALPACA._replace(input=None))
    assert rows["drop_reason"].to_list() == [None] * 3
    assert rows["input"].to_list() == [""] * 3


@pytest.mark.parametrize("blank", [b"", b"   ", b"\t\r", b"\n\n\n"])
def test_blank_lines_are_not_rows(tmp_path, blank):
    content = blank + b"\n" + lines_around(blank) + blank
    rows = rows_of(file_with(tmp_path, "data.jsonl", content))
    assert rows["row"].to_list() == [0, 1]
    assert rows["answer"].to_list() == ["first", "last"]
    assert rows["drop_reason"].null_count() == 2


def test_the_last_line_needs_no_line_break_and_crlf_is_one(tmp_path):
    content = lines_around(json.dumps(FIRST).encode()).rstrip().replace(b"\n", b"\r\n")
    rows = rows_of(file_with(tmp_path, "data.jsonl", content))
    check_neighbours(rows)


@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.csv", "lines.json"])
def test_a_byte_order_mark_is_ignored(tmp_path, name):
    content = encoded([FIRST, LAST], "d.jsonl" if name == "lines.json" else name)
    rows = rows_of(file_with(tmp_path, name, b"\xef\xbb\xbf" + content))
    assert rows["instruction"].to_list() == ["first?", "last?"]
    assert rows["drop_reason"].null_count() == 2


def test_duplicate_rows_are_all_kept(tmp_path):
    rows = rows_of(file_of(tmp_path, "d.jsonl", [FIRST] * 5))
    assert rows["row"].to_list() == list(range(5))
    assert rows["drop_reason"].null_count() == 5
    assert rows["answer"].to_list() == ["first"] * 5


def test_malformed_is_named_before_empty_and_empty_before_refusal(tmp_path):
    lines = [
        b'{"output": ""}',
        b'{"instruction": "i", "output": " "}',
        b'{"instruction": "i", "output": "sorry"}',
        b'{"instruction": "i", "output": "fine"}',
    ]
    rows = rows_of(file_with(tmp_path, "d.jsonl", b"\n".join(lines)), refusals=[" ", "sorry"])
    assert rows["drop_reason"].to_list() == ["malformed", "empty_answer", "refusal", None]


def test_rows_are_numbered_over_all_files_and_none_is_lost(tmp_path):
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


def test_malformed_rows_are_shown_up_to_three_and_counted(tmp_path, caplog):
    path = file_with(tmp_path, "d.jsonl", lines_around(b"\n".join([b"42"] * 5)))
    with caplog.at_level(logging.WARNING, logger="cherry_vllm"):
        rows_of(path, batch_rows=2)
    messages = [record.getMessage() for record in caplog.records]
    assert [message.split(": ")[1] for message in messages] == [
        "row 1 dropped as malformed",
        "row 2 dropped as malformed",
        "row 3 dropped as malformed",
        "5 malformed rows in all",
    ]
    assert all(str(path) in message for message in messages)


# --- the same data in every format -----------------------------------------------------------

ALL_NAMES = [
    "d.json",
    "d.json.gz",
    "d.json.zst",
    "d.jsonl",
    "d.jsonl.gz",
    "d.jsonl.zst",
    "d.ndjson",
    "d.csv",
    "d.csv.gz",
    "d.csv.zst",
    "d.parquet",
    "d.pq",
    "dotted.v1.0.jsonl.gz",
    "UPPER.JSONL",
]


@pytest.mark.parametrize("name", ALL_NAMES)
@pytest.mark.parametrize("batch_rows", [3, 1000])
def test_every_format_gives_the_same_rows(tmp_path, name, batch_rows):
    path = tmp_path / name
    path.write_bytes(encoded(SAMPLES, name.lower()))
    rows = rows_of(path, batch_rows=batch_rows)
    expected = pl.DataFrame(SAMPLES).rename({"output": "answer"})
    assert_frame_equal(rows.select(FIELDS), expected)
    assert rows["row"].to_list() == list(range(len(SAMPLES)))
    assert rows["drop_reason"].null_count() == len(SAMPLES)
    assert [json.loads(record) for record in rows["record"]] == SAMPLES


@pytest.mark.parametrize("name", ["d.json", "d.jsonl.zst", "d.csv", "d.parquet"])
def test_the_input_column_is_optional(tmp_path, name):
    samples = [{"instruction": "i", "output": "o"}, {"instruction": "j", "output": "p"}]
    rows = rows_of(file_of(tmp_path, name, samples))
    assert rows.select(FIELDS).rows() == [("i", "", "o"), ("j", "", "p")]
    assert rows["drop_reason"].null_count() == 2


@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.csv", "d.parquet"])
def test_null_answers_are_dropped_and_null_inputs_are_not(tmp_path, name):
    samples = [
        {"instruction": "i", "input": None, "output": "o"},
        {"instruction": "j", "input": "n", "output": None},
        {"instruction": "k", "input": "n", "output": "  "},
    ]
    rows = rows_of(file_of(tmp_path, name, samples))
    assert rows["drop_reason"].to_list() == [None, "empty_answer", "empty_answer"]
    assert rows["input"].to_list() == ["", "n", "n"]


def test_a_null_instruction_in_parquet_is_malformed(tmp_path):
    samples = [FIRST, {**LAST, "instruction": None}, LAST]
    rows = rows_of(file_of(tmp_path, "d.parquet", samples))
    check_neighbours(rows)
    assert rows["drop_reason"][1] == "malformed"


@pytest.mark.parametrize("kind", ["categorical", "enum"])
def test_categories_in_parquet_are_text(tmp_path, kind):
    dtype = pl.Categorical if kind == "categorical" else pl.Enum(["first", "last"])
    pl.DataFrame([FIRST, LAST]).cast({"output": dtype}).write_parquet(tmp_path / "d.parquet")
    rows = rows_of(tmp_path / "d.parquet")
    assert rows["answer"].to_list() == ["first", "last"]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.csv"])
def test_all_members_of_a_compressed_file_are_read(tmp_path, name, suffix):
    samples = [{"instruction": f"{i}?", "output": str(i)} for i in range(100)]
    content = encoded(samples, name)
    half = len(content) // 2
    members = [compressed(part, suffix) for part in (content[:half], content[half:])]
    rows = rows_of(file_with(tmp_path, name + suffix, b"".join(members)))
    assert rows["answer"].to_list() == [str(i) for i in range(100)]


@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.csv", "d.parquet"])
def test_the_named_format_goes_before_the_suffix(tmp_path, name):
    path = file_with(tmp_path, "data.txt", encoded([FIRST, LAST], name))
    data_format = DataFormat(name.removeprefix("d."))
    assert rows_of(path, data_format=data_format)["answer"].to_list() == ["first", "last"]


@pytest.mark.parametrize("name", ["data", "data.txt", "data.gz", "data.xlsx"])
def test_an_unknown_suffix_is_a_user_error(tmp_path, name):
    path = file_with(tmp_path, name, b"content")
    message = complaint_about(path)
    assert str(path) in message
    assert "data.format" in message


def test_a_json_file_may_hold_json_lines(tmp_path):
    path = file_with(tmp_path, "d.json", b"\n " + lines_around(b"42"))
    rows = rows_of(path)
    check_neighbours(rows)
    assert rows["drop_reason"][1] == "malformed"


# --- columns -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.csv", "d.parquet"])
def test_other_column_names_are_mapped(tmp_path, name):
    samples = [
        {"question": "q0", "answer": "a0", "input": "not read", "instruction": "nor this"},
        {"question": "q1", "answer": "a1", "input": "", "instruction": ""},
    ]
    rows = rows_of(file_of(tmp_path, name, samples), columns=QUESTION_ANSWER)
    assert rows.select(FIELDS).rows() == [("q0", "", "a0"), ("q1", "", "a1")]
    assert [json.loads(record) for record in rows["record"]] == samples


@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.csv", "d.parquet"])
def test_the_input_column_is_mapped(tmp_path, name):
    path = file_of(tmp_path, name, [{"q": "q0", "context": "c0", "a": "a0"}])
    rows = rows_of(path, columns=Columns("q", "context", "a"))
    assert rows.select(FIELDS).rows() == [("q0", "c0", "a0")]


@pytest.mark.parametrize("field", ["instruction", "output"])
@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.jsonl.gz", "d.csv", "d.parquet"])
def test_a_missing_column_is_a_user_error(tmp_path, name, field):
    sample = {"instruction": "i", "input": "n", "output": "o", "category": "c"}
    del sample[field]
    path = file_of(tmp_path, name, [sample] * 3)
    message = complaint_about(path)
    assert str(path) in message
    assert f"'{field}'" in message
    assert ", ".join(sample) in message
    assert f"data.columns.{field}=" in message


def test_a_column_missing_in_a_later_file_is_a_user_error(tmp_path):
    good = file_of(tmp_path, "good.jsonl", [FIRST])
    bad = file_of(tmp_path, "bad.jsonl", [{"question": "q", "answer": "a"}])
    assert f"{bad}: no field 'instruction'" in complaint_about(good, bad)


@pytest.mark.parametrize("field", ["instruction", "input", "output"])
def test_a_parquet_column_that_is_not_text_is_a_user_error(tmp_path, field):
    path = file_of(tmp_path, "d.parquet", [{**FIRST, field: 42}])
    message = complaint_about(path)
    assert f"{path}: column '{field}' is Int64, not text" in message
    assert f"data.columns.{field}=" in message


# --- JSON arrays, read in pieces ---------------------------------------------------------------

ELEMENTS = [FIRST, 1234567, {"instruction": "i" * 300, "output": "ö🌅" * 50}, "text", None, LAST]


@pytest.mark.parametrize("read_chars", [1, 2, 7, 64, 500, 2**20])
@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_is_read_through_a_buffer_of_any_size(tmp_path, monkeypatch, read_chars, indent):
    monkeypatch.setattr(records, "READ_CHARS", read_chars)
    text = json.dumps(ELEMENTS, indent=indent, ensure_ascii=False)
    rows = rows_of(file_with(tmp_path, "d.json", text.encode()), batch_rows=2)
    assert [json.loads(record) for record in rows["record"]] == ELEMENTS
    malformed = [reason == "malformed" for reason in rows["drop_reason"]]
    assert malformed == [False, True, False, True, True, False]


@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
def test_a_pretty_printed_array_gives_one_line_records(tmp_path, line_break):
    text = json.dumps(SAMPLES, indent=4).replace("\n", line_break) + line_break
    rows = rows_of(file_with(tmp_path, "d.json", text.encode()))
    assert [json.loads(record) for record in rows["record"]] == SAMPLES
    assert not rows["record"].str.contains("[\r\n]").any()


@pytest.mark.parametrize("read_chars", [5, 2**20])
def test_an_array_cut_off_anywhere_is_a_user_error(tmp_path, monkeypatch, read_chars):
    monkeypatch.setattr(records, "READ_CHARS", read_chars)
    content = encoded([FIRST, LAST], "d.json")
    for size in range(1, len(content)):
        path = file_with(tmp_path, "d.json", content[:size])
        assert str(path) in complaint_about(path), content[:size]


@pytest.mark.parametrize("row", [0, 1, 4])
@pytest.mark.parametrize("fault", ['{"instruction": }', "{'a': 1}", "nul", '{"a": "b\nc"}', "x"])
def test_an_error_in_an_array_names_file_and_row(tmp_path, row, fault):
    elements = [json.dumps(FIRST)] * 5
    elements[row] = fault
    path = file_with(tmp_path, "d.json", f"[{', '.join(elements)}]".encode())
    assert f"{path}: row {row}: " in complaint_about(path, batch_rows=2)


@pytest.mark.parametrize("value", [TOO_DEEP, TOO_MANY_DIGITS], ids=["deep", "5000-digits"])
def test_an_array_element_that_cannot_be_decoded_names_file_and_row(tmp_path, value):
    path = file_with(tmp_path, "d.json", array_around(with_field("x", value)))
    assert f"{path}: row 1: " in complaint_about(path)


def test_an_array_element_without_end_is_not_read_to_the_end_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "READ_CHARS", 100)
    monkeypatch.setattr(records, "MAX_ELEMENT_CHARS", 1000)
    content = array_around(b'{"instruction": "i", "output": "' + b"o" * 5_000 + b'"}')
    path = file_with(tmp_path, "d.json", content)
    assert f"{path}: row 1: " in complaint_about(path)


@pytest.mark.parametrize("rest", ["garbage", '[{"instruction": "i", "output": "o"}]', '{"a": 1}'])
def test_content_behind_an_array_is_not_silently_lost(tmp_path, rest):
    path = file_with(tmp_path, "d.json", encoded([FIRST, LAST], "d.json") + f"\n{rest}\n".encode())
    assert str(path) in complaint_about(path)


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("data_format", [DataFormat.auto, DataFormat.json, DataFormat.jsonl])
def test_an_object_at_the_top_is_a_user_error(tmp_path, indent, data_format):
    text = json.dumps({"version": 1, "data": [FIRST, LAST]}, indent=indent)
    path = file_with(tmp_path, "d.json", text.encode())
    assert str(path) in complaint_about(path, data_format=data_format)


@pytest.mark.parametrize("content", [b'"text"', b"42", b"instruction,output\na,b\n", b"\x00\x01"])
def test_a_json_file_without_an_array_is_a_user_error(tmp_path, content):
    path = file_with(tmp_path, "d.json", content)
    assert str(path) in complaint_about(path)


# --- files that cannot be read -----------------------------------------------------------------


def find_complaint(*patterns):
    with pytest.raises(UserError) as caught:
        find_files([str(pattern) for pattern in patterns])
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_files_keep_the_order_given_and_shards_are_sorted(tmp_path):
    names = ["part-10.jsonl", "part-02.jsonl", "part-01.jsonl", "z.jsonl", "sub/part-00.jsonl"]
    (tmp_path / "sub").mkdir()
    for name in names:
        (tmp_path / name).write_text("{}")
    (tmp_path / "part-03.csv").write_text("a")
    found = find_files([str(tmp_path / "z.jsonl"), str(tmp_path / "part-*.jsonl")])
    expected = ["z.jsonl", "part-01.jsonl", "part-02.jsonl", "part-10.jsonl"]
    assert [path.name for path in found] == expected
    deep = find_files([str(tmp_path / "**/part-*.jsonl")])
    assert [path.name for path in deep][-1] == "part-00.jsonl"
    assert len(deep) == 4


def test_shards_found_by_a_glob_are_read_in_order(tmp_path):
    for index in (2, 0, 10, 1):
        sample = {"instruction": "i", "output": str(index)}
        file_of(tmp_path, f"part-{index:03d}.jsonl.gz", [sample])
    rows = rows_of(*find_files([str(tmp_path / "*.gz")]))
    assert rows["answer"].to_list() == ["0", "1", "2", "10"]
    assert rows["row"].to_list() == [0, 1, 2, 3]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("stem", ["d[1]", "d*", "d?"])
def test_a_name_that_looks_like_a_glob_is_the_file_itself(tmp_path, stem, suffix):
    path = file_of(tmp_path, stem + suffix, [FIRST])
    file_of(tmp_path, "d1" + suffix, [LAST])
    assert find_files([str(path)]) == [path]
    assert rows_of(path)["answer"].to_list() == ["first"]


def test_an_empty_file_is_a_user_error(tmp_path):
    path = file_with(tmp_path, "d.jsonl", b"")
    assert f"{path}: the file is empty" in find_complaint(path)


def test_a_folder_is_a_user_error(tmp_path):
    message = find_complaint(tmp_path)
    assert f"{tmp_path}: a folder" in message
    assert "*.jsonl" in message


def test_a_missing_file_is_a_user_error(tmp_path):
    path = tmp_path / "missing.jsonl"
    assert f"{path}: No such file" in find_complaint(path)


def test_a_glob_without_a_match_is_a_user_error(tmp_path):
    good = file_of(tmp_path, "d.jsonl", [FIRST])
    pattern = tmp_path / "*.parquet"
    assert f"{pattern}: no file matches" in find_complaint(good, pattern)


def test_an_empty_list_of_files_is_a_user_error():
    assert "data.path" in find_complaint()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_an_unreadable_file_is_a_user_error(tmp_path):
    path = file_of(tmp_path, "d.jsonl", [FIRST])
    path.chmod(0)
    assert f"{path}: Permission denied" in find_complaint(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.jsonl", b"\n\n  \n"),
        ("d.json", b"[]"),
        ("d.json", b"[\n]\n"),
        ("d.json", b"  \n"),
        ("d.csv", b"instruction,input,output\n"),
        ("d.jsonl.gz", gzip.compress(b"", mtime=0)),
        ("d.jsonl.zst", zstd.compress(b"")),
        ("d.json.gz", gzip.compress(b"", mtime=0)),
        ("d.csv.gz", gzip.compress(b"", mtime=0)),
    ],
)
def test_a_file_without_a_row_is_a_user_error(tmp_path, name, content):
    path = file_with(tmp_path, name, content)
    assert str(path) in complaint_about(path)


def test_one_shard_without_a_row_does_not_stop_the_others(tmp_path):
    files = [
        file_with(tmp_path, "0.json", b"[]"),
        file_of(tmp_path, "1.json", [FIRST]),
        file_with(tmp_path, "2.jsonl", b"\n"),
        file_of(tmp_path, "3.json", [LAST]),
    ]
    rows = rows_of(*files)
    assert rows.select("row", "answer").rows() == [(0, "first"), (1, "last")]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.csv"])
def test_what_is_not_compressed_as_its_name_says_is_a_user_error(tmp_path, name, suffix):
    path = file_with(tmp_path, name + suffix, b"this was never compressed")
    assert str(path) in complaint_about(path)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.csv"])
def test_a_cut_off_compressed_file_is_a_user_error(tmp_path, name, suffix):
    # Noise, so that whole blocks of it come before the cut.
    noise = np.random.default_rng(0)
    samples = [{"instruction": "i", "output": noise.bytes(100).hex()} for _ in range(3_000)]
    content = encoded(samples, name + suffix)
    path = file_with(tmp_path, name + suffix, content)
    assert rows_of(path, batch_rows=1_000).height == len(samples)
    path.write_bytes(content[: len(content) * 2 // 3])
    assert str(path) in complaint_about(path, batch_rows=1_000)


@pytest.mark.parametrize("name", ["d.json.gz", "d.jsonl.gz", "d.csv.gz"])
def test_a_damaged_gzip_stream_is_a_user_error(tmp_path, name):
    header = encoded([FIRST], name)[:10]
    path = file_with(tmp_path, name, header + b"\xff" * 100)
    assert str(path) in complaint_about(path)


@pytest.mark.parametrize("name", ["d.json.zst", "d.jsonl.zst", "d.csv.zst"])
def test_a_damaged_zstandard_stream_is_a_user_error(tmp_path, name):
    content = bytearray(encoded([{**FIRST, "output": LONG + str(i)} for i in range(20)], name))
    middle = len(content) // 2
    content[middle : middle + 20] = b"\xff" * 20
    path = file_with(tmp_path, name, bytes(content))
    assert str(path) in complaint_about(path)


@pytest.mark.parametrize("damage", ["garbage", "cut off", "overwritten"])
def test_a_broken_parquet_file_is_a_user_error(tmp_path, damage):
    samples = [{"instruction": f"{i}?", "output": str(i)} for i in range(1_000)]
    content = encoded(samples, "d.parquet")
    broken = {
        "garbage": b"no parquet at all",
        "cut off": content[: len(content) // 2],
        "overwritten": content[:4] + b"\xff" * 100 + content[104:],
    }[damage]
    path = file_with(tmp_path, "d.parquet", broken)
    assert f"{path}: not readable as parquet" in complaint_about(path)


def test_a_csv_row_with_too_many_fields_is_a_user_error(tmp_path):
    path = file_with(tmp_path, "d.csv", b"instruction,input,output\na,b,c\nd,e,f,g\nh,i,j\n")
    assert f"{path}: not readable as csv" in complaint_about(path)


def test_a_csv_row_with_too_few_fields_is_dropped(tmp_path):
    path = file_with(tmp_path, "d.csv", b"instruction,input,output\na,b,c\nd\nh,i,j\n")
    rows = rows_of(path)
    assert rows["row"].to_list() == [0, 1, 2]
    assert rows["drop_reason"].to_list() == [None, "empty_answer", None]
    assert rows["answer"].to_list() == ["c", "", "j"]


@pytest.mark.parametrize("bad", ["é".encode("latin-1"), b'"open'])
def test_a_csv_that_cannot_be_decoded_is_a_user_error(tmp_path, bad):
    path = file_with(tmp_path, "d.csv", b"instruction,output\na,b\nc," + bad + b"\n")
    assert f"{path}: not readable as csv" in complaint_about(path)


@pytest.mark.parametrize("content", [b"42\nnull\n", b"instruction,output\na,b\n", b"\xff\xfe{\x00"])
def test_json_lines_without_one_usable_row_are_a_user_error(tmp_path, content):
    path = file_with(tmp_path, "d.jsonl", content)
    message = complaint_about(path)
    assert f"{path}: row 0: " in message
    assert "data.format" in message


# --- batches -----------------------------------------------------------------------------------


def shards_of_twelve_rows(folder):
    samples = [{"instruction": f"{i}?", "input": "", "output": str(i)} for i in range(12)]
    samples[7]["output"] = ""
    return [
        file_of(folder, "0.jsonl", samples[:5]),
        file_of(folder, "1.parquet", samples[5:6]),
        file_of(folder, "2.csv", samples[6:10]),
        file_of(folder, "3.json", samples[10:]),
    ]


@pytest.mark.parametrize(
    ("batch_rows", "heights"),
    [
        (1, [1] * 12),
        (3, [3, 3, 3, 3]),
        (4, [4, 4, 4]),
        (5, [5, 5, 2]),
        (7, [7, 5]),
        (11, [11, 1]),
        (12, [12]),
        (13, [12]),
        (1000, [12]),
    ],
)
def test_every_batch_but_the_last_is_full_and_the_rows_do_not_depend_on_it(
    tmp_path, batch_rows, heights
):
    files = shards_of_twelve_rows(tmp_path)
    frames = list(
        read_rows(
            files, data_format=DataFormat.auto, columns=ALPACA, refusals=[], batch_rows=batch_rows
        )
    )
    assert [frame.height for frame in frames] == heights
    rows = pl.concat(frames)
    assert rows["row"].to_list() == list(range(12))
    answers = [str(i) for i in range(12)]
    answers[7] = ""
    assert rows["answer"].to_list() == answers
    assert rows["drop_reason"].to_list() == [None] * 7 + ["empty_answer"] + [None] * 4
    assert_frame_equal(rows.drop("record"), rows_of(*files, batch_rows=100).drop("record"))


@pytest.mark.parametrize("name", ["d.parquet", "d.csv", "d.jsonl"])
def test_a_table_of_many_batches_keeps_its_order(tmp_path, name):
    samples = [{"instruction": f"{i}?", "output": str(i)} for i in range(5_000)]
    rows = rows_of(file_of(tmp_path, name, samples), batch_rows=64)
    assert rows["answer"].to_list() == [str(i) for i in range(5_000)]
    assert rows["row"].to_list() == list(range(5_000))


# --- the original record -----------------------------------------------------------------------


def test_a_json_record_keeps_every_field_to_the_letter(tmp_path):
    lines = [
        '{"id": 1e2, "output": "o", "instruction": "i", "tags": ["a", {"b": null}], "ok": true}',
        '{"instruction":"é\\u00e9","output":"o","n":12345678901234567890123,"instruction_2":""}',
        '{"instruction": "i", "output": 42, "why": "malformed, and still whole"}',
    ]
    rows = rows_of(file_with(tmp_path, "d.jsonl", "\n".join(lines).encode()))
    assert rows["record"].to_list() == lines
    array = file_with(tmp_path, "d.json", f"[{', '.join(lines)}]".encode())
    assert rows_of(array)["record"].to_list() == lines


def test_a_parquet_record_is_json_of_every_column(tmp_path):
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
def test_bytes_within_a_parquet_column_lose_no_row(tmp_path, nested):
    table = pl.DataFrame({"instruction": ["i", "j"], "output": ["o", "p"], "image": nested})
    table.write_parquet(tmp_path / "1.parquet")
    rows = rows_of(file_of(tmp_path, "0.jsonl", [FIRST]), tmp_path / "1.parquet")
    assert rows["answer"].to_list() == ["first", "o", "p"]
    assert [set(json.loads(record)) for record in rows["record"][1:]] == [set(table.columns)] * 2


def test_a_csv_record_holds_text(tmp_path):
    path = file_with(tmp_path, "d.csv", b'id,instruction,output,note\n007,i,o,\n1e3,j,"p,q",x\n')
    assert [json.loads(record) for record in rows_of(path)["record"]] == [
        {"id": "007", "instruction": "i", "output": "o", "note": ""},
        {"id": "1e3", "instruction": "j", "output": "p,q", "note": "x"},
    ]


# --- the filter of refusals --------------------------------------------------------------------


def wizardlm_phrases():
    text = (REPOSITORY / "conf" / "refusals" / "wizardlm.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)["phrases"]


def refused(folder, answers, phrases, name="d.jsonl", **rest):
    samples = [{"instruction": "i", "output": answer, **rest} for answer in answers]
    rows = rows_of(file_of(folder, name, samples), refusals=phrases)
    assert rows["answer"].to_list() == answers
    assert set(rows["drop_reason"]) <= {None, "refusal"}
    return (rows["drop_reason"] == "refusal").fill_null(value=False).to_list()


@pytest.mark.parametrize("name", ["d.jsonl", "d.parquet", "d.csv"])
def test_a_phrase_is_a_substring_in_any_case(tmp_path, name):
    answers = ["As An AI", "it has an aim", "Well, as an ai, no.", "as a n ai", "ÇA NON", "fine"]
    found = refused(tmp_path, answers, ["as an AI", "ça non"], name)
    assert found == [True, True, True, False, True, False]


def test_a_phrase_is_text_and_no_pattern(tmp_path):
    answers = ["really? (yes)", "really (yes", "reall", "a.c", "abc"]
    found = refused(tmp_path, answers, ["really?", "(yes)", "a.c"])
    assert found == [True, False, False, True, False]


def test_only_the_answer_is_a_refusal(tmp_path):
    assert refused(tmp_path, ["fine"], ["sorry"], input="sorry", note="sorry") == [False]


def test_without_phrases_nothing_is_a_refusal(tmp_path):
    assert refused(tmp_path, ["I'm sorry, as an AI"], []) == [False]


@pytest.mark.parametrize(
    "answer",
    [
        "As an AI language model, I cannot",
        "Lo siento, pero no puedo",
        "LO SIENTO, PERO NO PUEDO",
        "Desculpe-me, mas a linguagem vulgar e ofensiva não é",
        "Sorry. I Cannot fulfill your request.",
        "First of all: it is not appropriate to do so.",
        "lamento no poder proporcionarte el CÓDIGO",
    ],
)
def test_the_phrases_of_the_paper_catch_refusals(tmp_path, answer):
    assert refused(tmp_path, [answer], wizardlm_phrases()) == [True]


@pytest.mark.parametrize(
    "answer",
    [
        "The capital of France is Paris.",
        "1. Eat well\n2. Sleep\n3. Exercise",
        "def add(a, b):\n    return a + b",
        "Gracias, puedo hacerlo mañana.",
    ],
)
def test_the_phrases_of_the_paper_pass_ordinary_answers(tmp_path, answer):
    assert refused(tmp_path, [answer], wizardlm_phrases()) == [False]


def test_real_refusals_are_found():
    path = REPOSITORY.parent / "shared" / "data" / "refusals_1200.jsonl"
    if not path.is_file():
        pytest.skip(f"{path.name} is not beside this checkout")
    rows = rows_of(path, refusals=wizardlm_phrases(), batch_rows=500)
    lines = path.read_text(encoding="utf-8").split("\n")
    answers = [json.loads(line)["output"] for line in lines if line]
    assert rows["answer"].to_list() == answers
    refusals = [
        row for row, text in enumerate(answers) if "as an ai language model" in text.lower()
    ]
    assert len(refusals) > 500
    assert set(rows["drop_reason"].gather(refusals)) == {"refusal"}
    assert rows["drop_reason"].null_count() > 0
