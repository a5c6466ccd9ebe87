"""JSON and JSON Lines to records: an array, one object per line, or objects one after another.

Polars' JSON readers turn 42 and ["x"] into text and reject a whole file for one bad line, so the
records are decoded one by one.
"""

import json
import re
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path

from cherry_vllm.errors import UserError
from cherry_vllm.options import DataFormat
from cherry_vllm.sources.fields import legible
from cherry_vllm.sources.formats import BOM, NOT_UTF8, Encoding, Layout, find_encoding, open_text
from cherry_vllm.sources.json_values import BETWEEN, JsonValues
from cherry_vllm.sources.records import RawRecord
from cherry_vllm.sources.values import DECODER, DuplicateKeyError, is_utf8

HEAD_CHARS = 2**20
WHOLE = "."  # as data.field: the whole object holds the records


class Shape(Enum):
    """How the records of a file follow each other."""

    lines = "lines"
    array = "array"
    objects = "objects"


def read_json_records(file: Path, layout: Layout) -> Iterator[RawRecord]:
    """The records of a JSON or JSON Lines file.

    Raises:
        UserError: the file as a whole is not in this format.
        READ_ERRORS: the file is damaged.
    """
    encoding = find_encoding(file, layout.encoding)
    try:
        for text in _texts(file, layout, encoding):
            yield decode_record(text, encoding.fault)
    except UnicodeDecodeError:
        raise UserError(f"{file}: {encoding.fault}") from None


def _texts(file: Path, layout: Layout, encoding: Encoding) -> Iterator[str]:
    """The text of each record, on one line."""
    with open_text(file, encoding, is_strict=False) as stream:
        shape = _shape_of(file, stream.read(HEAD_CHARS), layout.format)
    with open_text(file, encoding, is_strict=False) as stream:
        values = JsonValues(stream, file, encoding)
        if layout.field is not None:
            yield from _within(values, layout.field, file)
        elif shape is Shape.lines:
            yield from _lines(stream)
        elif shape is Shape.array:
            yield from _numbered(values.items(), values)
            if values.peek():
                raise UserError(
                    f"{file}: more content after the array's end; put each array in its own file"
                )
        else:
            while values.peek():
                yield from _numbered(iter([values.value()]), values)


def _shape_of(file: Path, head: str, data_format: DataFormat) -> Shape:
    text = head.lstrip(BETWEEN)
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
    except (ValueError, RecursionError) as error:
        return Shape.objects if _goes_on(error, first, rest, text) else Shape.lines
    return Shape.objects if first[end:].strip(BETWEEN).startswith("{") else Shape.lines


def _goes_on(error: Exception, first: str, rest: str, text: str) -> bool:
    """Whether a value whose first line raised ``error`` goes on after it."""
    try:
        json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        # The head may be too short. After an object over several lines comes a key; after a line
        # that was cut off, a record.
        is_cut = isinstance(error, json.JSONDecodeError) and error.pos >= len(first.rstrip()) - 1
        return is_cut and bool(rest) and not rest.startswith("{")
    return True


def _lines(stream: Iterable[str]) -> Iterator[str]:
    """The lines of a JSON Lines file, blank ones left out."""
    for line in stream:
        text = line.strip().lstrip(BOM).strip()
        if text:
            yield text.removesuffix(",") if text.endswith("},") else text


def _numbered(texts: Iterator[str], values: JsonValues) -> Iterator[str]:
    for text in texts:
        yield text
        values.num_rows += 1


def _within(values: JsonValues, field: str, file: Path) -> Iterator[str]:
    """The texts of the records in a field of each object of the file."""
    while values.peek():
        yield from _records_at(values, "" if field == WHOLE else field, file, field)


def _records_at(values: JsonValues, name: str, file: Path, field: str) -> Iterator[str]:
    """The texts of the records below ``name``, or of this value itself if that is empty."""
    place = f"{file}: data.field={field}"
    first = values.peek()
    if not name and first == "[":
        yield from _numbered(values.items(), values)
        return
    if first != "{":
        raise UserError(f"{place}: leads to neither a list nor an object; check the name")
    seen: list[str] = []
    num_found = 0
    for key in values.each_key():
        seen.append(key)
        if not name:
            yield from _numbered(iter([values.value()]), values)
        elif key == name or name.startswith(f"{key}."):
            num_found += 1
            yield from _records_at(values, name[len(key) + 1 :], file, field)
        else:
            values.skip()
    if name and num_found != 1:
        lack = "occurs twice" if num_found else "no such field"
        raise UserError(f"{place}: {lack} (found: {legible(seen)}); check the name")


def decode_record(text: str, not_text: str = NOT_UTF8) -> RawRecord:
    """A record from its JSON; ``not_text`` is its fault if bytes of the file are not text."""
    if not is_utf8(text):
        return RawRecord(text.encode("utf-8", errors="replace").decode(), fault=not_text)
    try:
        fields = DECODER.decode(text)
    except DuplicateKeyError as error:
        return RawRecord(text, fault=str(error))
    except (ValueError, RecursionError) as error:
        return RawRecord(text, fault=f"broken JSON ({error})")
    return RawRecord(text, fields)
