"""JSON records to Parquet: each column gets one type that changes no value."""

import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from cherry_vllm.errors import UserError

log = logging.getLogger(__name__)

KINDS: dict[type, str] = {
    bool: "true or false",
    int: "whole numbers",
    float: "decimals",
    str: "text",
    list: "lists",
    dict: "objects",
}
PLAIN: dict[type, type[pl.DataType]] = {bool: pl.Boolean, float: pl.Float64, str: pl.String}
MAX_SHOWN_CHARS = 40


class Inexact(NamedTuple):
    """A number that no finite 64-bit float equals: NaN, infinite, or with too many digits."""

    text: str


class Changes(NamedTuple):
    """What a table alters without changing a value, by place."""

    mixed: list[str]  # columns where whole numbers become decimals
    filled: list[str]  # fields that are null where they were missing


class MisfitError(Exception):
    """The values of a field do not fit in one column."""


def write_parquet(records: Iterable[str], path: Path, output: Path) -> None:
    """Writes records (JSON objects, as text) to the Parquet file ``path``.

    A field that a record lacks is null. Errors name ``output``, the path that ``path`` will be
    renamed to.

    Raises:
        UserError: the values of a field have no common type, or a column would change a value.
    """
    respelled: list[str] = []

    def parse(text: str) -> float | Inexact:
        value = parse_decimal(text)
        if isinstance(value, float) and repr(value) != text:
            respelled.append(text)
        return value

    objects = [json.loads(text, parse_float=parse, parse_constant=Inexact) for text in records]
    if respelled:
        log.warning(
            "%s: %d numbers such as %s are kept as numbers, not as they were written; choose a "
            ".jsonl output if they are read as text",
            *(output, len(respelled), _show(respelled[0])),
        )
    changes = Changes([], [])
    names = Counter(name for fields in objects for name in fields)
    changes.filled.extend(name for name, count in names.items() if count < len(objects))
    columns = {
        name: _column(name, [fields.get(name) for fields in objects], output, changes)
        for name in names
    }
    pl.DataFrame(columns).write_parquet(path)
    _tell(changes, output)


def _tell(changes: Changes, output: Path) -> None:
    for place in changes.mixed:
        log.warning(
            "%s: column '%s' holds whole numbers and decimals; all are written as decimals",
            *(output, place),
        )
    if changes.filled:
        log.warning(
            "%s: %d fields that some records or objects lack are null there, such as '%s'",
            *(output, len(changes.filled), changes.filled[0]),
        )


def _column(name: str, values: list[Any], output: Path, changes: Changes) -> pl.Series:
    try:
        dtype = _find_dtype(values, name, changes)
        column = pl.Series(name, values, dtype)
    except UnicodeEncodeError:
        raise _refusal(
            output, f"column '{name}' contains a lone surrogate, which is not valid text"
        ) from None
    except MisfitError as misfit:
        raise _refusal(output, str(misfit)) from None
    return column


def _refusal(output: Path, fault: str) -> UserError:
    return UserError(f"{output}: {fault}; Parquet would change it, so choose a .jsonl output")


def _find_dtype(values: Sequence[Any], place: str, changes: Changes) -> pl.DataType:
    """The type that holds all the values; ``changes`` notes what it alters."""
    present = [value for value in values if value is not None]
    kinds = {type(value) for value in present}
    if Inexact in kinds:
        odd = next(value for value in present if isinstance(value, Inexact))
        raise MisfitError(f"column '{place}' holds the number {_show(odd.text)}")
    if kinds == {int, float}:
        return _find_float(present, place, changes)
    if len(kinds) > 1:
        names = " and ".join(name for kind, name in KINDS.items() if kind in kinds)
        raise MisfitError(f"column '{place}' holds {names}")
    kind = next(iter(kinds), None)
    if kind is None:
        return pl.Null()
    if kind is int:
        return _find_integer(present, place)
    if kind is list:
        items = [item for value in present for item in value]
        return pl.List(_find_dtype(items, f"{place}[]", changes))
    if kind is dict:
        return _find_struct(present, place, changes)
    return PLAIN[kind]()


def _find_float(numbers: Sequence[Any], place: str, changes: Changes) -> pl.DataType:
    for number in numbers:
        if isinstance(number, int) and not _is_float(number):
            raise MisfitError(
                f"column '{place}' holds decimals and {_show(number)}, not a 64-bit float"
            )
    changes.mixed.append(place)
    return pl.Float64()


def _show(number: int | str) -> str:
    text = str(number)
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}..."


def _is_float(number: int) -> bool:
    try:
        return float(number) == number
    except OverflowError:
        return False


def _find_integer(numbers: Sequence[int], place: str) -> pl.DataType:
    low, high = min(numbers), max(numbers)
    if low >= -(2**63) and high < 2**63:
        return pl.Int64()
    if low >= 0 and high < 2**64:
        return pl.UInt64()
    widest = max(low, high, key=abs)
    raise MisfitError(f"column '{place}' holds {_show(widest)}, beyond 64 bits")


def _find_struct(objects: Sequence[dict[str, Any]], place: str, changes: Changes) -> pl.DataType:
    names = Counter(name for fields in objects for name in fields)
    if not names:
        raise MisfitError(f"column '{place}' holds objects without fields")
    if any(list(fields) != [name for name in names if name in fields] for fields in objects):
        raise MisfitError(f"column '{place}' holds objects whose keys come in several orders")
    lacking = [name for name, count in names.items() if count < len(objects)]
    changes.filled.extend(f"{place}.{name}" for name in lacking)
    return pl.Struct(
        {
            name: _find_dtype([fields.get(name) for fields in objects], f"{place}.{name}", changes)
            for name in names
        }
    )


def parse_decimal(text: str) -> float | Inexact:
    """The float that a JSON number spells, or an :class:`Inexact` if no float equals it."""
    value = float(text)
    is_exact = math.isfinite(value) and (
        repr(value) == text or Decimal(repr(value)) == Decimal(text)
    )
    return value if is_exact else Inexact(text)
