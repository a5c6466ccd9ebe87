"""Parquet and Arrow through Polars: a column has one type, so a wrong type refuses the file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from cherry_vllm.errors import UserError
from cherry_vllm.options import DataFormat
from cherry_vllm.sources.columns import CONVERT, Columns, missing_field
from cherry_vllm.sources.findings import Findings

BATCH_ROWS = 10_000
TEXT = (pl.String, pl.Categorical, pl.Enum, pl.Null)
ARROW_FILE = b"ARROW1"  # the beginning of Arrow's file format; its stream format has no such mark


def read_table(
    file: Path,
    data_format: DataFormat,
    columns: Columns,
    findings: Findings,
    max_rows: int | None = None,
) -> Iterator[pl.DataFrame]:
    """Yields frames of record, instruction, input, answer and malformed.

    Raises:
        UserError: the file is not readable, or lacks a column, or a column is not text.
    """
    try:
        table = _scan(file, data_format)
        table = table if max_rows is None else table.head(max_rows)
        schema = table.collect_schema()
        fault = missing_field(columns, schema) or _type_fault(schema, columns)
        if fault:
            raise UserError(f"{file}: {fault}")
        for name, dtype in schema.items():
            if name not in columns.names().values() and _is_unknown_to_json(dtype):
                findings.converted(name, str(dtype))
        num_rows = 0
        for frame in table.select(_row_of(schema, columns)).collect_batches(
            chunk_size=BATCH_ROWS, maintain_order=True
        ):
            yield _take_notes(frame, file, num_rows, findings)
            num_rows += frame.height
        # If a worker of collect_batches fails, the stream may end as if the file were done.
        if num_rows != table.select(pl.len()).collect().item():
            raise UserError(f"{file}: only {num_rows} rows could be read; remove unusual columns")
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{file}: not readable as {data_format.value} ({reason})") from None
    names = dict.fromkeys(schema)
    findings.file_read(file, num_rows, names, has_input=columns.input in schema)


def _scan(file: Path, data_format: DataFormat) -> pl.LazyFrame:
    if data_format is DataFormat.parquet:
        return pl.scan_parquet(file, glob=False)
    with file.open("rb") as stream:
        is_file = stream.read(len(ARROW_FILE)) == ARROW_FILE
    return pl.scan_ipc(file, glob=False) if is_file else pl.read_ipc_stream(file).lazy()


def _row_of(schema: pl.Schema, columns: Columns) -> list[pl.Expr]:
    """A row's parts, and columns to count by: "number NAME", "unread NAME" and "odd NAME"."""
    named = columns.names()
    texts = {
        key: _as_text(pl.col(name), schema[name]) if name in schema else pl.lit(None, pl.String)
        for key, name in named.items()
    }
    are_lost = [texts[key].is_null() & ~_is_missing(name, schema) for key, name in named.items()]
    read = {named[key]: text for key, text in texts.items() if named[key] in schema}
    record = [
        _record_field(name, dtype, read.get(name)).alias(name) for name, dtype in schema.items()
    ]
    unread = [name for name in columns.unread_context() if name in schema]
    numbers = [name for name in read if _is_number(schema[name])]
    floats = [name for name in schema if schema[name].is_float() and name not in read]
    return [
        pl.struct(record).struct.json_encode().alias("record"),
        texts["instruction"].alias("instruction"),
        texts.get("input", pl.lit(None, pl.String)).fill_null("").alias("input"),
        texts["output"].alias("answer"),
        (texts["instruction"].is_null() | pl.any_horizontal(are_lost)).alias("malformed"),
        *(_holds_something(name, schema[name]).alias(f"unread {name}") for name in unread),
        *(read[name].is_not_null().alias(f"number {name}") for name in numbers),
        *((~pl.col(name).is_finite()).alias(f"odd {name}") for name in floats),
    ]


def _take_notes(
    frame: pl.DataFrame, file: Path, first_row: int, findings: Findings
) -> pl.DataFrame:
    for place in frame["malformed"].arg_true():
        findings.malformed(
            file, first_row + int(place), "the instruction is null, or bytes are not UTF-8"
        )
    counts = {
        "unread": findings.unread_context,
        "number": findings.number,
        "odd": findings.not_finite,
    }
    notes = [name for name in frame.columns if " " in name]
    for note in notes:
        kind, _, name = note.partition(" ")
        counts[kind](name, int(frame[note].sum()))
    return frame.drop(notes)


def _as_text(value: pl.Expr, dtype: Any) -> pl.Expr:
    """The value as text: text, a number, or bytes that are UTF-8; else null."""
    if isinstance(dtype, pl.Binary):
        return value.map_batches(_decode, return_dtype=pl.String)
    if dtype.is_float():
        value = pl.when(value.is_not_nan()).then(value)
    return value.cast(pl.String)


def _decode(values: pl.Series) -> pl.Series:
    # Polars' own cast fails for all values if a single one is not UTF-8.
    return pl.Series(values.name, [_decode_one(value) for value in values], dtype=pl.String)


def _decode_one(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def _is_missing(name: str, schema: pl.Schema) -> pl.Expr:
    if name not in schema:
        return pl.lit(value=True)
    value = pl.col(name)
    return value.is_null() | value.is_nan() if schema[name].is_float() else value.is_null()


def _is_number(dtype: Any) -> bool:
    return bool(dtype.is_numeric() or isinstance(dtype, pl.Boolean))


def _holds_something(name: str, dtype: Any) -> pl.Expr:
    value = pl.col(name)
    if isinstance(dtype, pl.Null):
        return pl.lit(value=False)
    if isinstance(dtype, pl.String):
        value = value.str.strip_chars() != ""
    elif isinstance(dtype, pl.List):
        value = value.list.len() > 0
    elif dtype.is_float():
        value = value.is_not_nan()
    else:
        value = value.is_not_null()
    return value.fill_null(value=False)


def _record_field(name: str, dtype: Any, text: pl.Expr | None) -> pl.Expr:
    value = _json_ready(pl.col(name), dtype)
    is_bytes = text is not None and isinstance(dtype, pl.Binary)
    return pl.coalesce(text, value) if is_bytes else value


def _json_ready(value: pl.Expr, dtype: Any) -> pl.Expr:
    """The value with its bytes, however deeply nested, as base64: JSON has no bytes."""
    if isinstance(dtype, pl.Binary):
        return value.bin.encode("base64")
    if isinstance(dtype, pl.Array):
        return _json_ready(value.arr.to_list(), pl.List(dtype.inner))
    if isinstance(dtype, pl.List):
        return value.list.eval(_json_ready(pl.element(), dtype.inner))
    if isinstance(dtype, pl.Struct):
        fields = [
            _json_ready(value.struct.field(field.name), field.dtype).alias(field.name)
            for field in dtype.fields
        ]
        return pl.when(value.is_not_null()).then(pl.struct(fields))
    return value


def _is_unknown_to_json(dtype: Any) -> bool:
    if isinstance(dtype, pl.List | pl.Array):
        return _is_unknown_to_json(dtype.inner)
    if isinstance(dtype, pl.Struct):
        return any(_is_unknown_to_json(field.dtype) for field in dtype.fields)
    return bool(dtype.is_temporal() or dtype.is_decimal() or isinstance(dtype, pl.Binary))


def _type_fault(schema: pl.Schema, columns: Columns) -> str | None:
    for key, name in columns.names().items():
        dtype = schema.get(name)
        if dtype is None or isinstance(dtype, (*TEXT, pl.Binary)) or _is_number(dtype):
            continue
        if isinstance(dtype, pl.List) and isinstance(dtype.inner, pl.Struct):
            return f"column '{name}' is a list of messages; {CONVERT}"
        return (
            f"column '{name}' is {dtype}, not text; convert it, or name another with "
            f"data.columns.{key}=..."
        )
    return None
