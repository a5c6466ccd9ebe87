"""JSON and JSON Lines, however the records follow each other."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cherry_vllm.options import DataFormat
from cherry_vllm.sources import Layout, json_values
from tests.sources.samples import (
    FIRST,
    LAST,
    SAMPLES,
    TOO_DEEP,
    TOO_MANY_DIGITS,
    array_around,
    check_neighbours,
    complaint_about,
    compressed,
    encoded,
    file_with,
    lines_around,
    rows_of,
    with_field,
)


@pytest.mark.parametrize("blank", [b"", b"   ", b"\t\r", b"\n\n\n"])
def test_blank_lines_are_not_rows(tmp_path: Path, blank: bytes) -> None:
    content = blank + b"\n" + lines_around(blank) + blank
    rows = rows_of(file_with(tmp_path, "data.jsonl", content))
    assert rows["row"].to_list() == [0, 1]
    assert rows["answer"].to_list() == ["first", "last"]
    assert rows["drop_reason"].null_count() == 2


def test_the_last_line_needs_no_line_break_and_crlf_is_one(tmp_path: Path) -> None:
    content = lines_around(json.dumps(FIRST).encode()).rstrip().replace(b"\n", b"\r\n")
    rows = rows_of(file_with(tmp_path, "data.jsonl", content))
    check_neighbours(rows)


def test_a_json_file_may_hold_json_lines(tmp_path: Path) -> None:
    path = file_with(tmp_path, "d.json", b"\n " + lines_around(b"42"))
    rows = rows_of(path)
    check_neighbours(rows)
    assert rows["drop_reason"][1] == "malformed"


ELEMENTS = [FIRST, 1234567, {"instruction": "i" * 300, "output": "ö🌅" * 50}, "text", None, LAST]


@pytest.mark.parametrize("read_chars", [1, 2, 7, 64, 500, 2**20])
@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_is_read_through_a_buffer_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_chars: int, indent: int | None
) -> None:
    monkeypatch.setattr(json_values, "READ_CHARS", read_chars)
    text = json.dumps(ELEMENTS, indent=indent, ensure_ascii=False)
    rows = rows_of(file_with(tmp_path, "d.json", text.encode()), batch_rows=2)
    assert [json.loads(record) for record in rows["record"]] == ELEMENTS
    malformed = [reason == "malformed" for reason in rows["drop_reason"]]
    assert malformed == [False, True, False, True, True, False]


@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
def test_a_pretty_printed_array_gives_one_line_records(tmp_path: Path, line_break: str) -> None:
    text = json.dumps(SAMPLES, indent=4).replace("\n", line_break) + line_break
    rows = rows_of(file_with(tmp_path, "d.json", text.encode()))
    assert [json.loads(record) for record in rows["record"]] == SAMPLES
    assert not rows["record"].str.contains("[\r\n]").any()


@pytest.mark.parametrize("read_chars", [5, 2**20])
def test_an_array_cut_off_anywhere_is_a_user_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_chars: int
) -> None:
    monkeypatch.setattr(json_values, "READ_CHARS", read_chars)
    content = encoded([FIRST, LAST], "d.json")
    for size in range(1, len(content)):
        path = file_with(tmp_path, "d.json", content[:size])
        assert str(path) in complaint_about(path), content[:size]


@pytest.mark.parametrize("row", [0, 1, 4])
@pytest.mark.parametrize("fault", ['{"instruction": }', "{'a': 1}", "nul", '{"a": "b\nc"}', "x"])
def test_an_error_in_an_array_names_file_and_row(tmp_path: Path, row: int, fault: str) -> None:
    elements = [json.dumps(FIRST)] * 5
    elements[row] = fault
    path = file_with(tmp_path, "d.json", f"[{', '.join(elements)}]".encode())
    assert f"{path}: row {row}: " in complaint_about(path, batch_rows=2)


@pytest.mark.parametrize("value", [TOO_DEEP, TOO_MANY_DIGITS], ids=["deep", "5000-digits"])
def test_an_array_element_that_cannot_be_decoded_names_file_and_row(
    tmp_path: Path, value: Any
) -> None:
    path = file_with(tmp_path, "d.json", array_around(with_field("x", value)))
    assert f"{path}: row 1: " in complaint_about(path)


def test_an_array_element_without_end_is_not_read_to_the_end_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_values, "READ_CHARS", 100)
    monkeypatch.setattr(json_values, "MAX_VALUE_CHARS", 1000)
    content = array_around(b'{"instruction": "i", "output": "' + b"o" * 5_000 + b'"}')
    path = file_with(tmp_path, "d.json", content)
    assert f"{path}: row 1: " in complaint_about(path)


@pytest.mark.parametrize("rest", ["garbage", '[{"instruction": "i", "output": "o"}]', '{"a": 1}'])
def test_content_behind_an_array_is_not_silently_lost(tmp_path: Path, rest: str) -> None:
    path = file_with(tmp_path, "d.json", encoded([FIRST, LAST], "d.json") + f"\n{rest}\n".encode())
    assert str(path) in complaint_about(path)


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("data_format", [DataFormat.auto, DataFormat.json, DataFormat.jsonl])
def test_an_object_at_the_top_is_a_user_error(
    tmp_path: Path, indent: int | None, data_format: DataFormat
) -> None:
    text = json.dumps({"version": 1, "data": [FIRST, LAST]}, indent=indent)
    path = file_with(tmp_path, "d.json", text.encode())
    assert str(path) in complaint_about(path, layout=Layout(data_format))


@pytest.mark.parametrize("content", [b'"text"', b"42", b"instruction,output\na,b\n", b"\x00\x01"])
def test_a_json_file_without_an_array_is_a_user_error(tmp_path: Path, content: bytes) -> None:
    path = file_with(tmp_path, "d.json", content)
    assert str(path) in complaint_about(path)


@pytest.mark.parametrize("content", [b"42\nnull\n", b"instruction,output\na,b\n"])
def test_json_lines_without_one_usable_row_are_a_user_error(tmp_path: Path, content: bytes) -> None:
    path = file_with(tmp_path, "d.jsonl", content)
    message = complaint_about(path)
    assert f"{path}: row 0: " in message
    assert "data.format" in message


# --- objects that follow each other ------------------------------------------------------------


@pytest.mark.parametrize("between", ["\n", ",\n", " ", "\n\ufeff", ""])
@pytest.mark.parametrize(("name", "indent"), [("d.json", 2), ("d.jsonl", 4), ("d.json", None)])
def test_objects_are_read_whatever_the_line_breaks(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    between: str,
    name: str,
    indent: int | None,
) -> None:
    monkeypatch.setattr(json_values, "READ_CHARS", 300)
    texts = [json.dumps(sample, indent=indent, ensure_ascii=False) for sample in SAMPLES]
    rows = rows_of(file_with(tmp_path, name, between.join(texts).encode()))
    assert [json.loads(record) for record in rows["record"]] == SAMPLES
    assert rows["drop_reason"].null_count() == len(SAMPLES)


def test_one_object_in_each_file_is_one_row(tmp_path: Path) -> None:
    files = [
        file_with(tmp_path, f"{place}.json", json.dumps(sample, indent=2).encode())
        for place, sample in enumerate(SAMPLES)
    ]
    assert [json.loads(record) for record in rows_of(*files)["record"]] == SAMPLES


@pytest.mark.parametrize("name", ["d.jsonl", "d.json"])
def test_a_comma_behind_a_line_is_no_fault(tmp_path: Path, name: str) -> None:
    content = "".join(f"{json.dumps(sample)},\n" for sample in SAMPLES).encode()
    rows = rows_of(file_with(tmp_path, name, content))
    assert [json.loads(record) for record in rows["record"]] == SAMPLES


def test_a_first_line_that_is_cut_off_costs_only_itself(tmp_path: Path) -> None:
    whole = json.dumps(LAST)
    for size in range(1, len(whole)):
        path = file_with(tmp_path, "d.jsonl", f"{whole[:size]}\n{whole}\n{whole}\n".encode())
        rows = rows_of(path)
        assert rows["drop_reason"].to_list() == ["malformed", None, None], whole[:size]


@pytest.mark.parametrize("name", ["d.jsonl", "d.json"])
def test_an_array_in_a_file_of_json_lines_is_read(tmp_path: Path, name: str) -> None:
    for indent in (None, 2):
        path = file_with(tmp_path, name, json.dumps([FIRST, LAST], indent=indent).encode())
        assert rows_of(path)["answer"].to_list() == ["first", "last"]


def test_a_byte_order_mark_within_a_file_costs_no_row(tmp_path: Path) -> None:
    line = json.dumps(FIRST).encode()
    rows = rows_of(file_with(tmp_path, "d.jsonl", b"\n\xef\xbb\xbf".join([line] * 3)))
    assert rows["drop_reason"].to_list() == [None] * 3


# --- an object around the records --------------------------------------------------------------


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    ("content", "line"),
    [
        (
            {"version": 1, "data": [FIRST, LAST]},
            "one object with 'data', 2 records; read them with data.field=data",
        ),
        (
            {"train": [FIRST, LAST], "test": [LAST]},
            "with 'train', 2 records and 'test', 1 records; read",
        ),
        ({"a": FIRST, "b": LAST}, "one object of 2 records by key; read them with data.field=."),
        ({"data": {"a": FIRST, "b": LAST}}, "'data', 2 records; read them with data.field=data"),
        ({key: {"0": key, "1": key} for key in FIRST}, "one object of columns, as pandas writes"),
    ],
)
def test_an_object_around_the_records_is_named(
    tmp_path: Path, content: dict[str, Any], line: str, indent: int | None
) -> None:
    path = file_with(tmp_path, "d.json", json.dumps(content, indent=indent).encode())
    message = complaint_about(path)
    assert message.startswith(f"{path}: one object")
    assert line.format("data.field") in message


@pytest.mark.parametrize("read_chars", [1, 7, 2**20])
@pytest.mark.parametrize(
    ("content", "field"),
    [
        ({"version": 1, "data": [FIRST, LAST], "more": [[1], {"a": 2}, "x"]}, "data"),
        ({"data": {"test": [LAST], "train": [FIRST, LAST]}}, "data.train"),
        ({"v1.0": [FIRST, LAST]}, "v1.0"),
        ({"v1.0": {"a.b": {"x": FIRST, "y": LAST}}}, "v1.0.a.b"),
        ({"a": FIRST, "b": LAST}, "."),
        ([FIRST, LAST], "."),
    ],
)
def test_the_records_within_an_object_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, field: str, read_chars: int
) -> None:
    monkeypatch.setattr(json_values, "READ_CHARS", read_chars)
    for name, indent in (("d.json", None), ("d.json", 2), ("d.jsonl.gz", None)):
        text = compressed(json.dumps(content, indent=indent).encode(), name)
        rows = rows_of(file_with(tmp_path, name, text), layout=Layout(field=field))
        assert [json.loads(record) for record in rows["record"]] == [FIRST, LAST]


@pytest.mark.parametrize(
    ("content", "field", "fault"),
    [
        ('{"a": [], "b": 1}', "data", "data.field=data: no such field (found: a, b)"),
        ('{"data": 7}', "data", "data.field=data: leads to neither a list nor an object"),
        ('{"data": [{}]}', "data.x", "data.field=data.x: leads to neither a list nor an object"),
        ('{"data": [], "data": []}', "data", "data.field=data: occurs twice"),
        ('{"data": [{"a": 1}', "data", "broken JSON"),
        ('{"data": [{"a": 1}]', "data", "broken JSON"),
        ('{"data" [{"a": 1}]}', "data", "broken JSON"),
        ('{"data": [{"a": 1}, "more": 2', "data", "broken JSON"),
        ('{"data": []}', "data", "no rows"),
    ],
)
def test_a_field_without_records_is_a_user_error(
    tmp_path: Path, content: str, field: str, fault: str
) -> None:
    path = file_with(tmp_path, "d.json", content.encode())
    message = complaint_about(path, layout=Layout(field=field))
    assert str(path) in message
    assert fault in message


# --- keys that occur twice ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ('"output": "Red.", "output": "Blue."', "output"),
        ('"output": "Red.", "id": 1, "id": 2', "id"),
        ('"output": "Red.", "meta": {"a": 1, "a": 2}', "a"),
    ],
)
@pytest.mark.parametrize("around", [lines_around, array_around])
def test_a_key_with_two_values_is_malformed_and_named(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    fields: str,
    key: str,
    around: Callable[[bytes], bytes],
) -> None:
    content = around(f'{{"instruction": "i", {fields}}}'.encode())
    rows = rows_of(file_with(tmp_path, "d.json", content))
    check_neighbours(rows)
    assert rows["drop_reason"][1] == "malformed"
    assert f"row 1 dropped as malformed: key '{key}' occurs twice" in caplog.text


def test_a_key_twice_with_one_value_is_kept(tmp_path: Path) -> None:
    line = b'{"instruction": "i", "output": "Red.", "output": "Red."}'
    rows = rows_of(file_with(tmp_path, "d.jsonl", lines_around(line)))
    assert rows["drop_reason"].to_list() == [None] * 3


def test_records_on_lines_within_an_object_are_not_taken_for_lines(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    line = '{"instruction": "i", "output": "o"}'
    path.write_text('{"train": [\n' + f"{line},\n{line}" + '\n],\n"test": [\n' + line + "\n]}\n")
    assert "read them with data.field=train" in complaint_about(path)


def test_a_run_of_spaces_takes_no_time(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text(json.dumps([{"instruction": "a" + " " * 200_000, "output": "b"}]))
    started = time.perf_counter()
    assert rows_of(path)["drop_reason"].to_list() == [None]
    assert time.perf_counter() - started < 5
