"""What other programs read differently, or not at all, in JSON that is kept as it was written."""

import json
from collections.abc import Iterable
from typing import Any

from cherry_vllm.selection.parquet import Inexact, parse_decimal

MAX_BITS = 64


def find_oddities(records: Iterable[str]) -> dict[str, str]:
    """What is odd in records (JSON objects, as text): the number of records and an example.

    ``datasets`` and Polars round or refuse such numbers, end at text that is not valid, and at a
    key that an object has twice.
    """
    counts: dict[str, int] = {}
    examples: dict[str, str] = {}
    for text in records:
        for kind, example in _oddities_of(text).items():
            counts[kind] = counts.get(kind, 0) + 1
            examples.setdefault(kind, example)
    return {kind: f"{count} records, as in {examples[kind]}" for kind, count in counts.items()}


def _oddities_of(text: str) -> dict[str, str]:
    found: dict[str, str] = {}

    def note_number(number: str) -> None:
        found["numbers that no 64-bit number equals"] = number[:40]

    def parse_integer(number: str) -> int:
        value = int(number)
        if value.bit_length() >= MAX_BITS:
            note_number(number)
        return value

    def parse_float(number: str) -> float:
        if isinstance(parse_decimal(number), Inexact):
            note_number(number)
        return 0.0

    def read_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            names = [name for name, _ in pairs]
            found["a key twice"] = next(repr(name) for name in names if names.count(name) > 1)
        return fields

    value = json.loads(
        text,
        parse_int=parse_integer,
        parse_float=parse_float,
        parse_constant=note_number,
        object_pairs_hook=read_object,
    )
    if "\\u" in text and not _is_valid(value):
        found["a lone surrogate, which is not valid text"] = ascii(text[:40])
    return found


def _is_valid(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
