"""CSV to records: quotes are doubled within quoted fields, and each row has a field per column."""

import csv
import io
import sys
from collections.abc import Iterator
from pathlib import Path

from cherry_vllm.errors import UserError
from cherry_vllm.sources.formats import NOT_UTF8, open_bytes, read_head
from cherry_vllm.sources.records import RawRecord, as_text

BOM = "\ufeff"


def read_csv_records(file: Path) -> Iterator[RawRecord]:
    """The records of a CSV file with a header.

    A repeated header (of files that were joined) and a row with too few fields are malformed.

    Raises:
        UserError: the file cannot be read as CSV: a field might end up in the wrong column.
        READ_ERRORS: the file is damaged.
    """
    read_head(file)  # to refuse other encodings
    csv.field_size_limit(sys.maxsize)
    with open_bytes(file) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        rows = csv.reader(text, strict=True)
        header: list[str] = []
        try:
            for row in rows:
                if not row:
                    continue
                if header:
                    yield _record(file, header, row, rows.line_num)
                else:
                    header = _check_header(file, row)
        except csv.Error as error:
            raise UserError(
                f"{file}: not readable as csv (line {rows.line_num}: {error}); a quote in a "
                'quoted field must be doubled, as in "say ""hi"""'
            ) from None
        except UnicodeDecodeError:
            raise UserError(f"{file}: not readable as csv: {NOT_UTF8}") from None


def _check_header(file: Path, names: list[str]) -> list[str]:
    named = [name for name in names if name]
    twice = next((name for name in named if named.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{file}: two columns are called '{twice}'; rename one")
    return [name or f"column_{number}" for number, name in enumerate(names, 1)]


def _record(file: Path, header: list[str], row: list[str], line: int) -> RawRecord:
    if len(row) > len(header):
        raise UserError(
            f"{file}: not readable as csv (line {line}: {len(row)} fields, but {len(header)} "
            'columns); a field with a comma or a quote must be quoted, as in "say ""hi"""'
        )
    fields = dict(zip(header, row, strict=False))
    text = as_text(fields)
    if len(row) < len(header):
        return RawRecord(text, fault=f"{len(row)} fields, but {len(header)} columns")
    if [row[0].removeprefix(BOM), *row[1:]] == header:
        return RawRecord(text, fault="the header again")
    return RawRecord(text, fields)
