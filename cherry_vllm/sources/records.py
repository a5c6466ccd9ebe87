"""Records to rows: each record is read by itself, so a bad one costs only itself."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from cherry_vllm.conversation import Message, choose_answers, frame_messages
from cherry_vllm.errors import UserError
from cherry_vllm.options import Turns
from cherry_vllm.schema import REASON, DropReason
from cherry_vllm.sources.fields import REQUIRED, Chooser, Columns, find_field, missing_field
from cherry_vllm.sources.findings import Findings
from cherry_vllm.sources.shapes import Shaped, shape_record
from cherry_vllm.sources.values import UnreadableError

BATCH_RECORDS = 1000
MAX_NAMES_KEPT = 100

# A record's text, messages, tools and drop reason.
Line = tuple[str, list[Message] | None, str | None, str | None]


class RawRecord(NamedTuple):
    """One record's text and fields, or ``fault``, the reason why there are no fields."""

    text: str
    fields: Any = None
    fault: str | None = None


def frames_of(
    records: Iterable[RawRecord], file: Path, columns: Columns, turns: Turns, findings: Findings
) -> Iterator[pl.DataFrame]:
    """Yields frames of record (the text, untouched), messages, tools and drop_reason.

    Raises:
        UserError: no record can be read as a row.
    """
    reader = _Reader(file, columns, turns, findings)
    remaining = iter(records)
    while batch := [reader.read(record) for record in islice(remaining, BATCH_RECORDS)]:
        yield _frame(batch)
    reader.conclude()


class _Reader:
    """Reads one file's records, and remembers what to report about all of them."""

    def __init__(self, file: Path, columns: Columns, turns: Turns, findings: Findings) -> None:
        self._file, self._columns, self._turns, self._findings = file, columns, turns, findings
        self._chooser = Chooser(columns)
        self._names: dict[str, Any] = {}  # of all fields, each with its last value
        self._first: RawRecord | None = None
        self._first_fault = ""
        self._num_rows = self._num_faults = 0

    def read(self, record: RawRecord) -> Line:
        """A record as a line of the frame."""
        text, fields, fault = record
        shaped = None
        if fault is None:
            try:
                shaped = self._shape(fields)
            except UnreadableError as error:
                fault = str(error)
            except RecursionError:
                fault = "nested too deeply"
        if fault is not None:
            self._note_fault(record, fault)
        self._num_rows += 1
        if shaped is None:
            return text, None, None, DropReason.MALFORMED.value
        messages = choose_answers(shaped.messages, self._turns)
        return text, messages, shaped.tools, shaped.reason and shaped.reason.value

    def conclude(self) -> None:
        """Raises a UserError if no record was a row: then a column name or the format is wrong."""
        if self._first is not None and self._num_faults == self._num_rows:
            raise UserError(f"{self._file}: {self._describe_none(self._first)}")
        self._findings.file_read(self._file, self._num_rows, self._names)

    def _shape(self, fields: Any) -> Shaped:
        if not isinstance(fields, dict):
            raise UnreadableError("not a JSON object")
        if len(self._names) < MAX_NAMES_KEPT:
            self._names |= fields
        chosen = self._chooser.choose(fields)
        if not chosen.is_whole:
            raise UnreadableError(missing_field(self._columns, fields) or "a field is missing")
        self._findings.chosen(chosen, fields)
        shaped = shape_record(fields, chosen.names)
        if shaped.numbers or shaped.unread or shaped.unscored:
            self._findings.shaped(shaped)
        return shaped

    def _note_fault(self, record: RawRecord, fault: str) -> None:
        if self._first is None:
            self._first, self._first_fault = record, fault
        self._num_faults += 1
        self._findings.malformed(self._file, self._num_rows, fault)

    def _describe_none(self, first: RawRecord) -> str:
        wrapper = describe_wrapper(first.fields, self._columns)
        missing = missing_field(self._columns, self._names) if self._names else None
        fault = f"row 0: {self._first_fault}"
        if "its bytes are not" not in fault:
            fault += ", and no row is usable; check data.format and data.columns"
        return wrapper or missing or fault


def describe_wrapper(fields: Any, columns: Columns) -> str | None:
    """An error for an object that is not a record but holds records, else None."""
    if not isinstance(fields, dict):
        return None
    chosen = columns.choose(fields)
    if {*REQUIRED} <= chosen.names.keys() and all(
        isinstance(fields.get(name), dict) for key, name in chosen.names.items() if key in REQUIRED
    ):
        return (
            "one object of columns, as pandas writes by default; write records, as in "
            "frame.to_json(path, orient='records', lines=True)"
        )
    counts = {name: count for name, value in fields.items() if (count := _count(value, columns))}
    if counts:
        held = " and ".join(f"'{name}', {count} records" for name, count in counts.items())
        return f"one object with {held}; read them with data.field={next(iter(counts))}"
    if count := _count(list(fields.values()), columns):
        return f"one object of {count} records by key; read them with data.field=."
    return None


def _count(value: Any, columns: Columns) -> int:
    """The number of records in a list or in an object of records by key; 0 if it is neither."""
    items = list(value.values()) if isinstance(value, dict) else value
    if not (isinstance(items, list) and all(isinstance(item, dict) for item in items)):
        return 0
    return len(items) if any(_is_record(item, columns) for item in items) else 0


def _is_record(fields: dict[str, Any], columns: Columns) -> bool:
    chosen = columns.choose(fields)
    values = [find_field(fields, name) for name in chosen.names.values()]
    return chosen.is_whole and not any(isinstance(value, dict) for value in values)


def _frame(lines: list[Line]) -> pl.DataFrame:
    records, messages, tools, reasons = zip(*lines, strict=True)
    columns = {
        "record": pl.Series(records, dtype=pl.String),
        "messages": frame_messages(messages),
        "tools": pl.Series(tools, dtype=pl.String),
        "drop_reason": pl.Series(reasons, dtype=REASON),
    }
    return pl.DataFrame(columns)
