"""Parquet and Arrow through Polars: each row as JSON, which is then read like any other record."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from cherry_vllm.errors import UserError
from cherry_vllm.options import DataFormat
from cherry_vllm.runtime.text import first_line
from cherry_vllm.sources.fields import CONVENTIONS, Columns
from cherry_vllm.sources.findings import Findings
from cherry_vllm.sources.json_texts import decode_record
from cherry_vllm.sources.records import RawRecord

BATCH_ROWS = 10_000
ODD = "odd "  # before a column's name: whether its number is NaN or infinite
ARROW_FILE = b"ARROW1"  # the beginning of Arrow's file format; its stream format has no such mark


def read_table_records(
    file: Path,
    data_format: DataFormat,
    columns: Columns,
    findings: Findings,
    max_rows: int | None = None,
) -> Iterator[RawRecord]:
    """The records of a Parquet or Arrow file.

    Raises:
        UserError: the file is not readable.
    """
    try:
        table = _scan(file, data_format)
        table = table if max_rows is None else table.head(max_rows)
        schema = table.collect_schema()
        known = {name for names in CONVENTIONS.values() for name in names}
        known |= {name.partition(".")[0] for name in columns.named().values()}
        read = {name for name in schema if name in {*known, *columns.named().values()}}
        for name, dtype in schema.items():
            if _is_unknown_to_json(_as_text(dtype) if name in read else dtype):
                findings.converted(name, str(dtype))
        nested = [name for name in read if schema[name].is_nested()]
        num_rows = 0
        for frame in table.select(_row_of(schema, read)).collect_batches(
            chunk_size=BATCH_ROWS, maintain_order=True
        ):
            for note in (name for name in frame.columns if name.startswith(ODD)):
                findings.not_finite(note.removeprefix(ODD), int(frame[note].sum()))
            for text, fault in frame.select("record", "fault").iter_rows():
                record = RawRecord(text, fault=fault) if fault else decode_record(text)
                for name in nested if record.fields else ():
                    record.fields[name] = _without_nulls(record.fields[name])
                yield record
            num_rows += frame.height
        # If a worker of collect_batches fails, the stream may end as if the file were done.
        if num_rows != table.select(pl.len()).collect().item():
            raise UserError(f"{file}: only {num_rows} rows could be read; remove unusual columns")
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise UserError(
            f"{file}: not readable as {data_format.value} ({first_line(error)})"
        ) from None


def _scan(file: Path, data_format: DataFormat) -> pl.LazyFrame:
    if data_format is DataFormat.parquet:
        return pl.scan_parquet(file, glob=False)
    with file.open("rb") as stream:
        is_file = stream.read(len(ARROW_FILE)) == ARROW_FILE
    return pl.scan_ipc(file, glob=False) if is_file else pl.read_ipc_stream(file).lazy()


def _row_of(schema: pl.Schema, read: set[str]) -> list[pl.Expr]:
    """The record as JSON, a fault, and whether a column of floats that is not read is odd.

    Bytes in the columns ``read`` are text if they are UTF-8, and a fault if they are not.
    """
    texts = {
        name: pl.col(name).map_batches(_decode, return_dtype=_as_text(schema[name]))
        for name in schema
        if name in read and _holds_bytes(schema[name])
    }
    record = [
        texts.get(name, _json_ready(pl.col(name), dtype)).alias(name)
        for name, dtype in schema.items()
    ]
    are_lost = [
        pl.when(text.is_null() & pl.col(name).is_not_null()).then(
            pl.lit(f"field '{name}' holds bytes that are not UTF-8")
        )
        for name, text in texts.items()
    ]
    floats = [name for name in schema if _holds_floats(schema[name])]
    return [
        pl.struct(record).struct.json_encode().alias("record"),
        pl.coalesce(pl.lit(None, pl.String), *are_lost).alias("fault"),
        *(_is_odd(name, schema[name], is_read=name in read) for name in floats),
    ]


def _is_odd(name: str, dtype: Any, *, is_read: bool) -> pl.Expr:
    """Whether a number is lost; NaN in a column of numbers that is read is a missing value."""
    value = pl.col(name)
    is_lost = value.is_infinite() if is_read and dtype.is_float() else _is_lost(value, dtype)
    return is_lost.alias(f"{ODD}{name}")


def _is_lost(value: pl.Expr, dtype: Any) -> pl.Expr:
    """Whether a value is NaN or infinite, or holds such a number, however deeply nested."""
    if dtype.is_float():
        return ~value.is_finite()
    if isinstance(dtype, pl.Array):
        return _is_lost(value.arr.to_list(), pl.List(dtype.inner))
    if isinstance(dtype, pl.List):
        return value.list.eval(_is_lost(pl.element(), dtype.inner)).list.any()
    fields = [field for field in dtype.fields if _holds_floats(field.dtype)]
    return pl.any_horizontal(
        _is_lost(value.struct.field(field.name), field.dtype) for field in fields
    )


def _holds_floats(dtype: Any) -> bool:
    if isinstance(dtype, pl.List | pl.Array):
        return _holds_floats(dtype.inner)
    if isinstance(dtype, pl.Struct):
        return any(_holds_floats(field.dtype) for field in dtype.fields)
    return bool(dtype.is_float())


def _holds_bytes(dtype: Any) -> bool:
    return bool(_as_text(dtype) != dtype)


def _as_text(dtype: Any) -> Any:
    """The type with text in place of bytes."""
    if isinstance(dtype, pl.Binary):
        return pl.String()
    if isinstance(dtype, pl.List | pl.Array):
        return pl.List(_as_text(dtype.inner)) if _holds_bytes(dtype.inner) else dtype
    if isinstance(dtype, pl.Struct):
        return pl.Struct({field.name: _as_text(field.dtype) for field in dtype.fields})
    return dtype


def _decode(values: pl.Series) -> pl.Series:
    # Polars' own cast fails for all values if a single one is not UTF-8.
    texts = [_decode_one(value) for value in values.to_list()]
    return pl.Series(values.name, texts, dtype=_as_text(values.dtype))


def _decode_one(value: Any) -> Any:
    """A value with its bytes as text; None if they are not UTF-8."""
    try:
        return _decode_within(value)
    except UnicodeDecodeError:
        return None


def _decode_within(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list):
        return [_decode_within(item) for item in value]
    if isinstance(value, dict):
        return {key: _decode_within(item) for key, item in value.items()}
    return value


def _without_nulls(value: Any) -> Any:
    """A nested value without null fields, which are there only because other rows have them."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _json_ready(value: pl.Expr, dtype: Any) -> pl.Expr:
    """The value with its bytes, however deeply nested, as base64: JSON has no bytes."""
    if isinstance(dtype, pl.Binary):
        return value.bin.encode("base64")
    if isinstance(dtype, pl.Array):
        return _json_ready(value.arr.to_list(), pl.List(dtype.inner))
    if isinstance(dtype, pl.List):
        return value.list.eval(_json_ready(pl.element(), dtype.inner))
    if isinstance(dtype, pl.Struct) and dtype.fields:
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
