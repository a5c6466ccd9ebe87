"""CSV to records: quotes are doubled within quoted fields, and each row has a field per column."""

import csv
import logging
import re
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO

from cherry_vllm.errors import UserError
from cherry_vllm.sources.formats import BOM, Encoding, Layout, find_encoding, open_text
from cherry_vllm.sources.records import RawRecord
from cherry_vllm.sources.values import as_json

NULL = r"\N"  # as databases write it
COMMA, TAB = ",", "\t"
DELIMITERS = (COMMA, ";", TAB, "|")
DECLARATION = re.compile(r'"?sep=(.)"?[\r\n]+', re.IGNORECASE)
MAX_DECLARATION = 16  # characters

log = logging.getLogger(__name__)


def read_csv_records(file: Path, layout: Layout) -> Iterator[RawRecord]:
    """The records of a CSV file with a header.

    A repeated header (of files that were joined) and a row with too few fields are malformed.

    Raises:
        UserError: the file cannot be read as CSV: a field might end up in the wrong column.
        READ_ERRORS: the file is damaged.
    """
    csv.field_size_limit(sys.maxsize)
    encoding = find_encoding(file, layout.encoding)
    try:
        declared = _declared_delimiter(file, encoding)
        delimiter = layout.delimiter and {"tab": TAB}.get(layout.delimiter, layout.delimiter)
        delimiter = delimiter or declared or _find_delimiter(file, encoding)
        with open_text(file, encoding, is_strict=True) as stream:
            yield from _records(file, stream, delimiter, num_skipped=1 if declared else 0)
    except UnicodeDecodeError:
        raise UserError(f"{file}: not readable as csv: {encoding.fault}") from None


def _records(
    file: Path, stream: IO[str], delimiter: str, *, num_skipped: int
) -> Iterator[RawRecord]:
    rows = csv.reader(stream, strict=True, delimiter=delimiter)
    header: list[str] = []
    try:
        for row in islice(rows, num_skipped, None):
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


def _declared_delimiter(file: Path, encoding: Encoding) -> str | None:
    """The delimiter that a first line such as ``sep=;`` declares, as Excel writes it."""
    with open_text(file, encoding, is_strict=True) as stream:
        declared = DECLARATION.fullmatch(stream.readline(MAX_DECLARATION).removeprefix(BOM))
    return declared.group(1) if declared else None


def _find_delimiter(file: Path, encoding: Encoding) -> str:
    """The delimiter that alone splits the header; else the comma."""
    if ".tsv" in map(str.lower, file.suffixes):
        return TAB
    found = [sign for sign in DELIMITERS if _splits_header(file, encoding, sign)]
    if len(found) != 1 or found == [COMMA]:
        return COMMA
    log.info("%s: the header is split at %r; data.delimiter names another", file, found[0])
    return found[0]


def _splits_header(file: Path, encoding: Encoding, delimiter: str) -> bool:
    with open_text(file, encoding, is_strict=True) as stream:
        rows = csv.reader(stream, strict=True, delimiter=delimiter)
        try:
            return len(next(filter(None, rows), [])) > 1
        except csv.Error:
            return False


def _check_header(file: Path, names: list[str]) -> list[str]:
    named = [name for name in names if name]
    twice = next((name for name in named if named.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{file}: two columns are called '{twice}'; rename one")
    renamed = [name or f"column_{number}" for number, name in enumerate(names, 1)]
    twice = next((name for name in renamed if renamed.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{file}: a column without a name would be called '{twice}'; name it")
    return renamed


def _record(file: Path, header: list[str], row: list[str], line: int) -> RawRecord:
    if len(row) > len(header):
        raise UserError(
            f"{file}: not readable as csv (line {line}: {len(row)} fields, but {len(header)} "
            'columns); a field with a comma or a quote must be quoted, as in "say ""hi"""'
        )
    values = (None if value == NULL else value for value in row)
    fields = dict(zip(header, values, strict=False))
    text = as_json(fields)
    if len(row) < len(header):
        return RawRecord(text, fault=f"{len(row)} fields, but {len(header)} columns")
    plain = [name.removeprefix(BOM).strip('"') for name in row]
    if [name or f"column_{number}" for number, name in enumerate(plain, 1)] == header:
        return RawRecord(text, fault="the header again")
    return RawRecord(text, fields)
