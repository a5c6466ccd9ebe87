"""JSON and JSON Lines: each record stands for itself, and a bad one costs only itself.

Polars' JSON readers turn 42 and ["x"] into text and fail a whole file for one bad line, so the
records are decoded one by one, a batch at a time.
"""

import io
import json
import logging
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import polars as pl

from cherry_vllm.errors import UserError
from cherry_vllm.options import DataFormat
from cherry_vllm.sources.columns import Columns, check_required
from cherry_vllm.sources.files import READ_ERRORS, open_bytes, unreadable

log = logging.getLogger(__name__)

BATCH_RECORDS = 1000
MAX_FAULTS_SHOWN = 3
MAX_ELEMENT_CHARS = 64 * 2**20  # an array element longer than this is taken for a broken file
READ_CHARS = 2**20
LINE_BREAK = re.compile(r"\s*[\r\n]\s*")


class Record(NamedTuple):
    """One record's text and fields, or ``fault``: why it is not a row."""

    text: str
    instruction: str | None = None
    input: str = ""
    answer: str | None = None
    fault: str | None = None


def read_records(file: Path, data_format: DataFormat, columns: Columns) -> Iterator[pl.DataFrame]:
    """Yields frames of record (the JSON text, untouched), instruction, input, answer, malformed.

    Raises:
        UserError: the file is not readable, or none of its first records has the fields.
    """
    num_faults = first_row = 0
    try:
        with open_bytes(file) as stream:
            texts = _lines(stream) if data_format is DataFormat.jsonl else _elements(stream, file)
            while records := [_decode(text, columns) for text in islice(texts, BATCH_RECORDS)]:
                faults = [(row, r.fault) for row, r in enumerate(records, first_row) if r.fault]
                if first_row == 0 and len(faults) == len(records):
                    raise _no_record(file, records, columns)
                for row, fault in faults[: max(0, MAX_FAULTS_SHOWN - num_faults)]:
                    log.warning("%s: row %d dropped as malformed: %s", file, row, fault)
                num_faults += len(faults)
                first_row += len(records)
                yield _frame(records)
    except READ_ERRORS as error:
        raise unreadable(file, error) from None
    if num_faults > MAX_FAULTS_SHOWN:
        log.warning("%s: %d malformed rows in all", file, num_faults)


def _lines(stream: IO[bytes]) -> Iterator[str]:
    """The lines of a JSON Lines file, blank ones left out."""
    for number, line in enumerate(stream):
        content = (line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line).strip()
        if content:
            # A byte that is not UTF-8 becomes a lone surrogate, which no text holds: _decode
            # sees it.
            yield content.decode("utf-8", errors="surrogateescape")


def _elements(stream: IO[bytes], file: Path) -> Iterator[str]:
    """The elements of a JSON array, without holding the array in memory."""
    reader = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape")
    decoder = json.JSONDecoder()
    buffer, start, row = reader.read(READ_CHARS).lstrip(), 1, 0
    if not buffer.startswith("["):
        raise UserError(f"{file}: not a JSON array; for one record per line set data.format=jsonl")
    exhausted = False
    while True:
        while start < len(buffer) and buffer[start] in " \t\r\n,":
            start += 1
        if buffer.startswith("]", start):
            _check_nothing_follows(file, buffer[start + 1 :], reader)
            return
        try:
            _, end = decoder.raw_decode(buffer, start)
            # A number that ends where the buffer does may go on behind it.
            is_whole = end < len(buffer) or exhausted
        except (ValueError, RecursionError) as error:
            if exhausted or len(buffer) - start > MAX_ELEMENT_CHARS:
                raise UserError(
                    f"{file}: row {row}: broken JSON ({error}); mend the file, or convert it "
                    "to JSON Lines, where one bad row costs only itself"
                ) from None
            is_whole = False
        if is_whole:
            # One line per record; no JSON string holds a line break of its own.
            yield LINE_BREAK.sub(" ", buffer[start:end])
            start, row = end, row + 1
        else:
            # Reading as much again as is held keeps the work linear in an element's length.
            more = reader.read(max(READ_CHARS, len(buffer) - start))
            exhausted = not more
            buffer, start = buffer[start:] + more, 0


def _check_nothing_follows(file: Path, rest: str, reader: IO[str]) -> None:
    while not rest.strip():
        rest = reader.read(READ_CHARS)
        if not rest:
            return
    raise UserError(f"{file}: more content after the array's end; put each array in its own file")


def _decode(text: str, columns: Columns) -> Record:
    """A record's three fields, or what is wrong with it."""
    safe_text = text.encode("utf-8", errors="replace").decode()
    if safe_text != text:
        return Record(safe_text, fault="its bytes are not UTF-8")
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Record(text, fault=f"broken JSON ({error})")
    fault = _find_fault(fields, columns)
    if fault:
        return Record(text, fault=fault)
    extra = fields.get(columns.input) if columns.input else None
    return Record(text, fields[columns.instruction], extra or "", fields[columns.output])


def _find_fault(fields: Any, columns: Columns) -> str | None:
    """Why the decoded JSON is not a row: the answer and the input may be null, and only they."""
    if not isinstance(fields, dict):
        return "not a JSON object"
    for field, name in columns._asdict().items():
        if name is None or (field == "input" and name not in fields):
            continue
        if name not in fields:
            return f"no field '{name}'"
        value = fields[name]
        if value is None and field != "instruction":
            continue
        if not isinstance(value, str):
            return f"field '{name}' is {type(value).__name__}, not text"
        if any("\ud800" <= char <= "\udfff" for char in value):
            return f"field '{name}' holds a lone surrogate, which is no text"
    return None


def _no_record(file: Path, records: list[Record], columns: Columns) -> UserError:
    """A field that no record has is a wrong name, not a file of malformed rows."""
    names: dict[str, None] = {}
    for record in records:
        try:
            fields = json.loads(record.text)
        except (ValueError, RecursionError):
            continue
        names.update(dict.fromkeys(fields if isinstance(fields, dict) else ()))
    if names:
        check_required(file, columns, list(names))
    return UserError(
        f"{file}: row 0: {records[0].fault}, and none of the first {len(records)} rows is usable; "
        "check data.format and data.columns"
    )


def _frame(records: list[Record]) -> pl.DataFrame:
    columns = {
        name: pl.Series([getattr(record, name) for record in records], dtype=pl.String)
        for name in ("text", "instruction", "input", "answer")
    }
    malformed = pl.Series([record.fault is not None for record in records])
    return pl.DataFrame(columns).rename({"text": "record"}).with_columns(malformed=malformed)
