"""CSV: no field is ever read into a wrong column."""

import csv
import io
import json
from pathlib import Path
from typing import Literal

import pytest

from cherry_vllm.sources import Layout
from tests.sources.samples import FIELDS, complaint_about, file_with, rows_of


def test_a_csv_row_with_too_many_fields_is_a_user_error(tmp_path: Path) -> None:
    path = file_with(tmp_path, "d.csv", b"instruction,input,output\na,b,c\nd,e,f,g\nh,i,j\n")
    assert f"{path}: not readable as csv" in complaint_about(path)


def test_a_csv_row_with_too_few_fields_is_dropped(tmp_path: Path) -> None:
    path = file_with(tmp_path, "d.csv", b"instruction,input,output\na,b,c\nd\nh,i,j\n")
    rows = rows_of(path)
    assert rows["row"].to_list() == [0, 1, 2]
    assert rows["drop_reason"].to_list() == [None, "malformed", None]
    assert rows["answer"].to_list() == ["c", None, "j"]


@pytest.mark.parametrize("bad", ["é".encode("latin-1"), b'"open'])
def test_a_csv_that_cannot_be_decoded_is_a_user_error(tmp_path: Path, bad: bytes) -> None:
    path = file_with(tmp_path, "d.csv", b"instruction,output\na,b\nc," + bad + b"\n")
    assert f"{path}: not readable as csv" in complaint_about(path)


def test_a_csv_record_holds_text(tmp_path: Path) -> None:
    path = file_with(tmp_path, "d.csv", b'id,instruction,output,note\n007,i,o,\n1e3,j,"p,q",x\n')
    assert [json.loads(record) for record in rows_of(path)["record"]] == [
        {"id": "007", "instruction": "i", "output": "o", "note": ""},
        {"id": "1e3", "instruction": "j", "output": "p,q", "note": "x"},
    ]


@pytest.mark.parametrize(
    "row",
    [
        b'"He said \\"hi\\", twice",,a',
        b'"a",,"b \\"c\\""',
        b'"a \\"b, c\\" d",,e',
        b'"a" b,,c',
    ],
)
def test_quotes_that_are_not_doubled_are_refused_by_line(tmp_path: Path, row: bytes) -> None:
    content = b"instruction,input,output\na,b,c\n" + row + b"\nd,e,f\n"
    path = file_with(tmp_path, "d.csv", content)
    message = complaint_about(path)
    assert f"{path}: not readable as csv (line 3" in message
    assert 'as in "say ""hi"""' in message


def test_doubled_quotes_and_backslashes_are_text(tmp_path: Path) -> None:
    content = b'instruction,input,output\n"say ""hi"", \\n",C:\\,"D:\\"\n5" pipe,a "b" c,x\n'
    rows = rows_of(file_with(tmp_path, "d.csv", content))
    assert rows.select(FIELDS).rows() == [
        ('say "hi", \\n', "C:\\", "D:\\"),
        ('5" pipe', 'a "b" c', "x"),
    ]


def test_the_null_of_databases_is_a_missing_value(tmp_path: Path) -> None:
    content = b"instruction,input,output\na,\\N,\\Name\nb,NULL,\\N\n"
    rows = rows_of(file_with(tmp_path, "d.csv", content))
    assert rows.select(FIELDS).rows() == [("a", "", "\\Name"), ("b", "NULL", "")]
    assert rows["drop_reason"].to_list() == [None, "empty_answer"]


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_a_header_met_again_is_malformed(tmp_path: Path, bom: bytes) -> None:
    part = b"instruction,input,output\na,b,c\n"
    rows = rows_of(file_with(tmp_path, "d.csv", part + bom + part))
    assert rows["drop_reason"].to_list() == [None, "malformed", None]
    assert rows["answer"].to_list() == ["c", None, "c"]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = file_with(tmp_path, "d.csv", b"instruction,output,output\na,b,c\n")
    assert f"{path}: two columns are called 'output'" in complaint_about(path)


def test_columns_without_a_name_are_kept(tmp_path: Path) -> None:
    rows = rows_of(file_with(tmp_path, "d.csv", b",instruction,output,\n0,a,b,x\n"))
    fields = {"column_1": "0", "instruction": "a", "output": "b", "column_4": "x"}
    assert json.loads(rows["record"][0]) == fields


ROW = {"instruction": "a,b", "input": "c;d", "output": "e\tf|g"}


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", ":"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_a_delimiter_is_found_in_the_header_or_named(
    tmp_path: Path, delimiter: str, quoting: Literal[0, 1]
) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(ROW), delimiter=delimiter, quoting=quoting)
    writer.writeheader()
    writer.writerow(ROW)
    path = file_with(tmp_path, "d.csv", text.getvalue().encode())
    named = Layout(delimiter="tab" if delimiter == "\t" else delimiter)
    for layout in (named,) if delimiter == ":" else (named, Layout()):
        assert [json.loads(record) for record in rows_of(path, layout=layout)["record"]] == [ROW]
    if delimiter == "\t":
        tsv = path.rename(tmp_path / "D.TSV")
        assert [json.loads(record) for record in rows_of(tsv)["record"]] == [ROW]


def test_a_header_that_several_delimiters_split_is_read_with_commas(tmp_path: Path) -> None:
    path = file_with(tmp_path, "d.csv", b"instruction;input,output\na;b,c\n")
    assert "no field 'instruction' (found: instruction;input, output)" in complaint_about(path)
    path = file_with(tmp_path, "d.csv", b"instruction,output,a;b\na,b,c;d\n")
    assert rows_of(path)["answer"].to_list() == ["b"]


@pytest.mark.parametrize("again", [",instruction,output", '\ufeff,"instruction","output"'])
def test_a_header_without_a_name_is_known_again(tmp_path: Path, again: str) -> None:
    path = tmp_path / "d.csv"
    path.write_text(f",instruction,output\n0,a,b\n{again}\n1,c,d\n", encoding="utf-8")
    assert rows_of(path)["drop_reason"].to_list() == [None, "malformed", None]


@pytest.mark.parametrize("declaration", [b"sep=;\r\n", b'"sep=;"\n', b"\xef\xbb\xbfsep=;\n"])
def test_a_first_line_as_excel_writes_it_names_the_delimiter(
    tmp_path: Path, declaration: bytes
) -> None:
    path = file_with(tmp_path, "d.csv", declaration + b"instruction;output\na, b;c\nd;e\n")
    rows = rows_of(path)
    assert rows["instruction"].to_list() == ["a, b", "d"]
    assert rows["answer"].to_list() == ["c", "e"]
    path.write_bytes(declaration + b"instruction;output\na;b;c\n")
    assert "line 3: 3 fields" in complaint_about(path)
