"""A record's fields to a row: each record is read by itself, so a bad one costs only itself."""

import json
import math
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from cherry_vllm.errors import UserError
from cherry_vllm.sources.columns import CONVERT, Columns, missing_field
from cherry_vllm.sources.findings import Findings
from cherry_vllm.sources.formats import NOT_UTF8

BATCH_RECORDS = 1000
MAX_NAMES_KEPT = 100
ENCODER = json.JSONEncoder(ensure_ascii=False)


class Number(str):
    """A number in JSON, exactly as it was written."""

    __slots__ = ()


class RawRecord(NamedTuple):
    """One record's text and fields, or ``fault``, the reason why there are no fields."""

    text: str
    fields: Any = None
    fault: str | None = None


class Record(NamedTuple):
    """One record as a row, or ``fault``, the reason why it is not a row."""

    text: str
    instruction: str | None = None
    input: str = ""
    answer: str | None = None
    fault: str | None = None


def frames_of(
    records: Iterable[RawRecord], file: Path, columns: Columns, findings: Findings
) -> Iterator[pl.DataFrame]:
    """Yields frames of record (the text, untouched), instruction, input, answer, malformed.

    Raises:
        UserError: no record can be read as a row.
    """
    reader = _Reader(file, columns, findings)
    remaining = iter(records)
    while batch := [reader.read(record) for record in islice(remaining, BATCH_RECORDS)]:
        yield _frame(batch)
    reader.conclude()


class _Reader:
    """Reads one file's records, and remembers what to report about all of them."""

    def __init__(self, file: Path, columns: Columns, findings: Findings) -> None:
        self._file, self._columns, self._findings = file, columns, findings
        self._named, self._unread = columns.names(), columns.unread_context()
        self._names: dict[str, None] = {}
        self._first: RawRecord | None = None
        self._first_fault = ""
        self._num_rows = self._num_faults = 0
        self._has_input = False

    def read(self, record: RawRecord) -> Record:
        made = self._make(record)
        if made.fault is not None:
            if self._first is None:
                self._first, self._first_fault = record, made.fault
            self._num_faults += 1
            self._findings.malformed(self._file, self._num_rows, made.fault)
        self._num_rows += 1
        return made

    def conclude(self) -> None:
        """Raises a UserError if no record was a row: then a column name or the format is wrong."""
        if self._first is not None and self._num_faults == self._num_rows:
            raise UserError(f"{self._file}: {self._describe_none(self._first)}")
        self._findings.file_read(self._file, self._num_rows, self._names, has_input=self._has_input)

    def _describe_none(self, first: RawRecord) -> str:
        wrapper = describe_wrapper(first.fields, self._columns)
        missing = missing_field(self._columns, self._names) if self._names else None
        fault = f"row 0: {self._first_fault}"
        if not self._first_fault.endswith((CONVERT, NOT_UTF8)):
            fault += ", and no row is usable; check data.format and data.columns"
        return wrapper or missing or fault

    def _make(self, record: RawRecord) -> Record:
        text, fields, fault = record
        if fault is None and not isinstance(fields, dict):
            fault = "not a JSON object"
        if fault is not None:
            return Record(text, fault=fault)
        if len(self._names) < MAX_NAMES_KEPT:
            self._names |= dict.fromkeys(fields)
        self._has_input |= self._columns.input in fields
        for name in self._unread:
            if name in fields and _holds_something(fields[name]):
                self._findings.unread_context(name)
        values, fault = self._texts(fields)
        if fault is not None:
            return Record(text, fault=fault)
        answer, extra = values["output"], values.get("input")
        return Record(text, values["instruction"], extra or "", answer)

    def _texts(self, fields: dict[str, Any]) -> tuple[dict[str, str | None], str | None]:
        """The fields that are read, or the reason why not; only answer and input may be null."""
        texts: dict[str, str | None] = {}
        for key, name in self._named.items():
            if name not in fields:
                if key == "input":
                    continue
                return {}, f"no field '{name}'"
            value = fields[name]
            if isinstance(value, bool | int | float | Number):
                value = str(value).lower() if isinstance(value, bool) else str(value)
                self._findings.number(name)
            if value is None:
                if key == "instruction":
                    return {}, f"field '{name}' is null"
            elif not isinstance(value, str):
                return {}, f"field '{name}' is {_kind(value)}"
            elif not is_utf8(value):
                return {}, f"field '{name}' contains a lone surrogate, which is not valid text"
            texts[key] = value
        return texts, None


def _kind(value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return f"a list of messages; {CONVERT}"
    return f"{'a list' if isinstance(value, list) else 'an object'}, not text"


def _holds_something(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, float) and math.isnan(value):
        return False
    return bool(value)


def describe_wrapper(fields: Any, columns: Columns) -> str | None:
    """An error for an object that is not a record but holds records, else None."""
    if not isinstance(fields, dict):
        return None
    lists = {
        name: len(value)
        for name, value in fields.items()
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value)
    }
    wanted = {columns.instruction, columns.output}
    if wanted <= fields.keys() and all(isinstance(fields[name], dict) for name in wanted):
        return (
            "one object of columns, as pandas writes by default; write records, as in "
            "frame.to_json(path, orient='records', lines=True)"
        )
    if wanted & fields.keys():
        return None
    items = [item for name in lists for item in fields[name]]
    if any(wanted <= item.keys() for item in items):
        held = " and ".join(f"'{name}', a list of {count} records" for name, count in lists.items())
        name = next(iter(lists))
        return f"one object with {held}; put a list alone in a file, as in jq '.{name}' FILE > NEW"
    objects = [value for value in fields.values() if isinstance(value, dict)]
    if any(all(isinstance(value.get(name), str) for name in wanted) for value in objects):
        return (
            f"one object of {len(objects)} records by key; put them in a list, as in "
            "jq '[.[]]' FILE > NEW"
        )
    return None


def _frame(records: list[Record]) -> pl.DataFrame:
    columns = {
        name: pl.Series([getattr(record, name) for record in records], dtype=pl.String)
        for name in ("text", "instruction", "input", "answer")
    }
    malformed = pl.Series([record.fault is not None for record in records])
    return pl.DataFrame(columns).rename({"text": "record"}).with_columns(malformed=malformed)


def is_utf8(text: str) -> bool:
    """Whether a text has no lone surrogates, which stand for bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_text(fields: dict[str, str]) -> str:
    """Fields as one line of JSON."""
    return ENCODER.encode(fields)
