"""Records as Parquet: every value survives, or one line says which column cannot hold it."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cherry_vllm.errors import UserError
from cherry_vllm.selection.parquet import write_parquet


def written(folder: Path, *records: str) -> list[dict[str, Any]]:
    write_parquet(records, folder / "file.parquet", folder / "out.parquet")
    return pl.read_parquet(folder / "file.parquet").to_dicts()


@pytest.mark.parametrize(
    "values",
    [
        [1, -(2**63), 2**63 - 1, None],
        [0, 2**64 - 1],
        [9007199254740993, 9007199254740992],
        [0.1, 1e300, -0.0, 5e-324, None],
        [True, False, None],
        ["2024-01-01", "2024-01-01T00:00:00Z", "1", "true", "null", ""],
        ["\x00", "\u2028", "Grüße 🌅"],
        [None, None],
        [[], ["x", None], None],
        [{"b": [{"c": 1}]}, None],
        [[{"b": 1}], [{"b": None}]],
    ],
)
def test_a_value_survives_to_the_digit(tmp_path: Path, values: list[Any]) -> None:
    records = [{"a": value} for value in values]
    found = written(tmp_path, *map(json.dumps, records))
    assert [repr(line) for line in found] == [repr(record) for record in records]


@pytest.mark.parametrize(
    ("records", "fault"),
    [
        (['{"id": 1}', '{"id": "a"}'], "column 'id' holds whole numbers and text"),
        (
            ['{"id": 9007199254740993}', '{"id": 0.5}'],
            "decimals and 9007199254740993, not a 64-bit float",
        ),
        (['{"id": 1' + "0" * 400 + "}", '{"id": 0.5}'], "column 'id' holds decimals and 10"),
        (['{"id": 18446744073709551616}'], "18446744073709551616, beyond 64 bits"),
        (['{"id": -1}', '{"id": 18446744073709551615}'], "beyond 64 bits"),
        (['{"a": NaN}'], "column 'a' holds the number NaN"),
        (['{"a": -Infinity}', '{"a": "x"}'], "column 'a' holds the number -Infinity"),
        (['{"a": 1e400}'], "column 'a' holds the number 1e400"),
        (['{"a": 0.12345678901234567890}'], "the number 0.12345678901234567890"),
        (['{"a": {}}'], "column 'a' holds objects without fields"),
        (['{"a": true}', '{"a": 1}'], "true or false and whole numbers"),
        (['{"a": {"b": 1}}', '{"a": [1]}'], "lists and objects"),
        (['{"a": "x"}', '{"a": ["x"]}'], "text and lists"),
        (['{"a": [{"b": 1}, {"b": "x"}]}'], r"column 'a\[\].b' holds whole numbers and text"),
        (['{"m": {"s": {"x": 1}}}', '{"m": {"s": {"x": "1"}}}'], "column 'm.s.x'"),
        ([r'{"a": "\ud800"}'], "column 'a' contains a lone surrogate"),
        ([r'{"\ud800": 1}'], "lone surrogate"),
    ],
)
def test_what_a_column_would_change_is_refused_by_its_name(
    tmp_path: Path, records: list[str], fault: str
) -> None:
    with pytest.raises(UserError, match=f"out.parquet: .*{fault}.*choose a .jsonl output") as error:
        written(tmp_path, *records)
    assert "\n" not in str(error.value)
    assert len(str(error.value).removeprefix(str(tmp_path))) < 500


def test_whole_numbers_among_decimals_are_written_as_decimals_and_a_line_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = written(tmp_path, '{"m": {"s": 4}}', '{"m": {"s": 4.5}}')
    assert found == [{"m": {"s": 4.0}}, {"m": {"s": 4.5}}]
    assert "column 'm.s' holds whole numbers and decimals" in caplog.text
    caplog.clear()
    written(tmp_path, '{"s": 4.0}', '{"s": 4.5}')
    assert caplog.text == ""


def test_a_field_that_a_record_lacks_is_null(tmp_path: Path) -> None:
    found = written(tmp_path, *['{"a": "x"}'] * 3, '{"late": [{"b": 1}]}', '{"late": [{"c": 2}]}')
    assert found[0] == {"a": "x", "late": None}
    assert found[3] == {"a": None, "late": [{"b": 1, "c": None}]}


def test_any_name_of_a_field_is_kept(tmp_path: Path) -> None:
    record = {"": 1, "a.b": {"": 2}, "A": 3, "a": 4, " ": 5, "\n": 6, "__index_level_0__": 7}
    assert written(tmp_path, json.dumps(record)) == [record]


def test_of_a_key_held_twice_the_value_that_was_scored_is_written(tmp_path: Path) -> None:
    assert written(tmp_path, '{"a": "red", "a": "blue"}') == [{"a": "blue"}]


def test_numbers_written_otherwise_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_parquet(['{"a": 88.40}', '{"a": 1.5}'], tmp_path / "x", tmp_path / "x.parquet")
    assert "1 numbers such as 88.40 are kept as numbers" in caplog.text


def test_keys_in_several_orders_do_not_fit(tmp_path: Path) -> None:
    rows = ['{"a": {"x": 1, "y": 2}}', '{"a": {"y": 2, "x": 1}}']
    with pytest.raises(UserError, match=r"keys come in several orders.*jsonl"):
        write_parquet(rows, tmp_path / "x", tmp_path / "x.parquet")


def test_fields_that_become_null_are_told_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = ['{"a": 1, "m": [{"x": 1, "y": null}, {"x": 2}]}', '{"m": [], "b": null}']
    written(tmp_path, *records)
    assert "3 fields that some records or objects lack are null there, such as 'a'" in caplog.text
    caplog.clear()
    written(tmp_path, '{"a": null}', '{"a": 1}')
    assert caplog.text == ""
