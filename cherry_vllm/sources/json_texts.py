"""JSON and JSON Lines to records: an array, one object per line, or objects one after another.

Polars' JSON readers turn 42 and ["x"] into text and reject a whole file for one bad line, so the
records are decoded one by one.
"""

import io
import json
import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import IO, Any

from cherry_vllm.errors import UserError
from cherry_vllm.options import DataFormat
from cherry_vllm.sources.formats import NOT_UTF8, open_bytes, read_head
from cherry_vllm.sources.records import RawRecord
from cherry_vllm.sources.shapes import Number, is_utf8

MAX_ELEMENT_CHARS = 64 * 2**20  # a longer array element means that the file is broken
READ_CHARS = 2**20
LINE_BREAK = re.compile(r"\s*[\r\n]\s*")
BOM = "\ufeff"
BETWEEN = f" \t\r\n,{BOM}"  # what may stand between two records


class Shape(Enum):
    """How the records of a file follow each other."""

    lines = "lines"
    array = "array"
    objects = "objects"


class DuplicateKeyError(ValueError):
    """A key occurs twice in an object, with two values; programs disagree on which one counts."""


def read_json_records(file: Path, data_format: DataFormat) -> Iterator[RawRecord]:
    """The records of a JSON or JSON Lines file.

    Raises:
        UserError: the file as a whole is not in this format.
        READ_ERRORS: the file is damaged.
    """
    shape = _shape_of(file, read_head(file), data_format)
    with open_bytes(file) as stream:
        texts = _lines(stream) if shape is Shape.lines else _values(stream, file, shape)
        for text in texts:
            yield decode_record(text)


def _shape_of(file: Path, head: bytes, data_format: DataFormat) -> Shape:
    text = head.decode("utf-8", errors="surrogateescape").lstrip(BETWEEN)
    is_json = data_format is DataFormat.json
    if text.startswith("["):
        is_array = is_json or re.match(r"\[\s*\{", text)
        return Shape.array if is_array else Shape.lines
    if not text.startswith("{"):
        if is_json and text:
            raise UserError(f"{file}: neither a JSON array nor JSON objects; check data.format")
        return Shape.lines
    first, _, rest = text.partition("\n")
    rest = rest.lstrip(BETWEEN)
    try:
        _, end = json.JSONDecoder().raw_decode(first)
    except RecursionError:
        return Shape.lines
    except json.JSONDecodeError as error:
        # After an object over several lines comes a key; after a line that was cut off, a record.
        goes_on = error.pos >= len(first.rstrip()) - 1 and rest and not rest.startswith("{")
        return Shape.objects if goes_on else Shape.lines
    except ValueError:  # a number of too many digits
        return Shape.lines
    return Shape.objects if first[end:].strip(BETWEEN).startswith("{") else Shape.lines


def _lines(stream: IO[bytes]) -> Iterator[str]:
    """The lines of a JSON Lines file, blank ones left out."""
    for line in stream:
        # A byte that is not UTF-8 becomes a lone surrogate, which decode_record recognizes.
        text = line.decode("utf-8", errors="surrogateescape").strip().lstrip(BOM).strip()
        if text:
            yield text.removesuffix(",") if text.endswith("},") else text


def _values(stream: IO[bytes], file: Path, shape: Shape) -> Iterator[str]:
    """The texts of consecutive JSON values, without holding them all in memory."""
    reader = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape")
    decoder = json.JSONDecoder()
    buffer = reader.read(READ_CHARS).lstrip(BETWEEN)
    start, row, exhausted = int(shape is Shape.array), 0, False
    while True:
        while start < len(buffer) and buffer[start] in BETWEEN:
            start += 1
        if shape is Shape.array and buffer.startswith("]", start):
            _check_nothing_follows(file, buffer[start + 1 :], reader)
            return
        if shape is Shape.objects and exhausted and start == len(buffer):
            return
        try:
            _, end = decoder.raw_decode(buffer, start)
            # A number that ends where the buffer ends may continue after it.
            is_whole = end < len(buffer) or exhausted
        except (ValueError, RecursionError) as error:
            if exhausted or len(buffer) - start > MAX_ELEMENT_CHARS:
                raise UserError(
                    f"{file}: row {row}: {_describe(error, buffer, start)}; repair the file, or "
                    "convert it to JSON Lines, where one bad row costs only itself"
                ) from None
            is_whole = False
        if is_whole:
            # One line per record; a JSON string contains no raw line break.
            yield LINE_BREAK.sub(" ", buffer[start:end])
            start, row = end, row + 1
        else:
            # Doubling the buffer keeps the work linear in an element's length.
            more = reader.read(max(READ_CHARS, len(buffer) - start))
            exhausted = not more
            buffer, start = buffer[start:] + more, 0


def _describe(error: Exception, buffer: str, start: int) -> str:
    if len(buffer) - start > MAX_ELEMENT_CHARS:
        return f"no end within {MAX_ELEMENT_CHARS:,} characters"
    if not is_utf8(buffer[start:]):
        return NOT_UTF8
    return f"broken JSON ({error})"


def _check_nothing_follows(file: Path, rest: str, reader: IO[str]) -> None:
    while not rest.strip():
        rest = reader.read(READ_CHARS)
        if not rest:
            return
    raise UserError(f"{file}: more content after the array's end; put each array in its own file")


def decode_record(text: str) -> RawRecord:
    """A record from its JSON."""
    if not is_utf8(text):
        return RawRecord(text.encode("utf-8", errors="replace").decode(), fault=NOT_UTF8)
    try:
        fields = DECODER.decode(text)
    except DuplicateKeyError as error:
        return RawRecord(text, fault=str(error))
    except (ValueError, RecursionError) as error:
        return RawRecord(text, fault=f"broken JSON ({error})")
    return RawRecord(text, fields)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        for key, value in pairs:
            if repr(fields[key]) != repr(value):
                raise DuplicateKeyError(f"key '{key}' occurs twice, with two values")
    return fields


def _constant(name: str) -> Number | None:
    """The value of NaN or an infinity: NaN, which pandas writes, is a missing value."""
    return None if name == "NaN" else Number(name)


DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=Number, parse_constant=_constant)
