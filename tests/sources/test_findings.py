"""What is odd about the rows is counted and told, or refused: nothing is left out in silence."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cherry_vllm.sources import Columns, read_rows
from tests.sources.samples import ALPACA, FIRST, complaint_about, file_of

FORMATS = ["d.json", "d.jsonl", "d.csv", "d.parquet"]
DOLLY = {"instruction": "Which city?", "context": "On the Aare.", "response": "Bern."}
ANSWERED = Columns("instruction", "input", "response")


def lines_about(*files: Path, columns: Columns = ALPACA, max_rows: int | None = None) -> list[str]:
    lines: list[str] = []
    frames = read_rows(
        files,
        columns=columns,
        refusals=[],
        batch_rows=10,
        max_rows=max_rows,
        tell=lines.append,
    )
    assert sum(frame.height for frame in frames) > 0
    return lines


@pytest.mark.parametrize("name", FORMATS)
def test_an_input_column_that_was_named_and_is_nowhere_is_a_mistake(
    tmp_path: Path, name: str
) -> None:
    path = file_of(tmp_path, name, [DOLLY] * 2)
    message = complaint_about(path, columns=Columns("instruction", "contxt", "response"))
    assert "data.columns.input=contxt: no row has a field 'contxt'" in message
    assert "found: instruction, context, response" in message


@pytest.mark.parametrize("name", FORMATS)
def test_an_input_column_by_default_that_is_nowhere_is_a_warning(tmp_path: Path, name: str) -> None:
    path = file_of(tmp_path, name, [DOLLY] * 2)
    missing, unread = lines_about(path, columns=ANSWERED)
    assert "no row has a field 'input' (found: instruction, context, response)" in missing
    assert "2 of 2 rows have a field 'context' that is not read" in unread
    assert "data.columns.input=context reads it" in unread


@pytest.mark.parametrize("name", FORMATS)
def test_an_input_column_that_is_read_is_no_finding(tmp_path: Path, name: str) -> None:
    path = file_of(tmp_path, name, [DOLLY, DOLLY | {"context": ""}])
    assert lines_about(path, columns=Columns("instruction", "context", "response")) == []
    assert lines_about(file_of(tmp_path, name, [FIRST])) == []


def test_an_input_that_some_rows_or_files_lack_is_told(tmp_path: Path) -> None:
    bare = {"instruction": "i", "output": "o"}
    assert lines_about(file_of(tmp_path, "some.jsonl", [bare, FIRST])) == []
    files = [file_of(tmp_path, "a.jsonl", [FIRST]), file_of(tmp_path, "b.jsonl", [bare])]
    (line,) = lines_about(*files)
    assert line == f"1 of the files have no field 'input' in any row; one is {files[1]}"


@pytest.mark.parametrize("name", FORMATS)
def test_rows_with_context_that_is_not_read_are_counted(tmp_path: Path, name: str) -> None:
    texts: Sequence[str | None] = ("Be kind.", "", "  ", None, "Be brief.")
    samples = [{**FIRST, "system": text} for text in texts]
    (line,) = lines_about(file_of(tmp_path, name, samples))
    assert line.startswith("2 of 5 rows have a field 'system' that is not read")


@pytest.mark.parametrize("value", [[["How is it?", "Mild."]], [{"role": "user"}]])
@pytest.mark.parametrize("name", ["d.jsonl", "d.parquet"])
def test_a_history_that_is_not_read_is_counted(tmp_path: Path, name: str, value: Any) -> None:
    histories: list[Any] = [value, [], None]
    samples = [{**FIRST, "history": history} for history in histories]
    (line,) = lines_about(file_of(tmp_path, name, samples))
    assert line.startswith("1 of 3 rows have a field 'history' that is not read")


def test_an_input_that_was_switched_off_and_is_there_is_counted(tmp_path: Path) -> None:
    path = file_of(tmp_path, "d.jsonl", [FIRST | {"input": "n"}, FIRST])
    (line,) = lines_about(path, columns=Columns("instruction", None, "output"))
    assert "1 of 2 rows have a field 'input'" in line
    assert "data.columns.input=input reads it" in line


@pytest.mark.parametrize("name", ["d.json", "d.parquet"])
def test_numbers_that_are_read_as_text_are_counted(tmp_path: Path, name: str) -> None:
    path = file_of(tmp_path, name, [FIRST | {"output": number} for number in (1, 2, None)])
    assert lines_about(path) == ["2 rows: field 'output' is a number or true/false, read as text"]


def test_only_the_rows_that_are_read_count(tmp_path: Path) -> None:
    samples = [FIRST | {"system": "Be kind."}] * 5
    for name in ("d.jsonl", "d.parquet"):
        (line,) = lines_about(file_of(tmp_path, name, samples), max_rows=3)
        assert line.startswith("3 of 3 rows")


def test_a_file_that_is_refused_tells_nothing_else(tmp_path: Path) -> None:
    path, lines = file_of(tmp_path, "d.jsonl", [{"q": "x"}] * 5), list[str]()
    frames = read_rows(
        [path],
        columns=ALPACA,
        refusals=[],
        batch_rows=10,
        tell=lines.append,
    )
    with pytest.raises(Exception, match="no field 'instruction'"):
        pl.concat(frames)
    assert lines == []


@pytest.mark.parametrize("name", ["d.jsonl", "d.parquet"])
def test_context_beside_messages_gets_advice_that_can_be_followed(
    tmp_path: Path, name: str
) -> None:
    said = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Here."}]
    record: dict[str, Any] = {"messages": said, "input": "A map.", "history": "Earlier."}
    path = file_of(tmp_path, name, [record])
    by_input, by_history = sorted(lines_about(path, columns=Columns()), reverse=True)
    assert "field 'input' that is not read" in by_input
    assert "field 'history' that is not read" in by_history
    assert by_input.endswith("put it into the request if the answers need it")
    assert by_history.endswith("put it into the request if the answers need it")
    for columns in (Columns(input="input"), Columns(history="history")):
        assert "not read beside messages; put it into the request" in complaint_about(
            path, columns=columns
        )


def test_messages_that_are_numbers_are_counted(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": 2}]},
        {"messages": [{"role": "user", "content": 1.50}, {"role": "assistant", "content": "No."}]},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
    ]
    path = file_of(tmp_path, "d.jsonl", records)
    assert lines_about(path, columns=Columns()) == [
        "2 rows: field 'messages' is a number or true/false, read as text"
    ]
