"""CSV and Parquet through Polars: a column has one type, so a wrong one is the file's fault."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from cherry_vllm.errors import UserError
from cherry_vllm.options import DataFormat
from cherry_vllm.sources.columns import Columns, check_required

BATCH_ROWS = 10_000
TEXT = (pl.String, pl.Categorical, pl.Enum, pl.Null)


def read_table(file: Path, data_format: DataFormat, columns: Columns) -> Iterator[pl.DataFrame]:
    """Yields frames of record, instruction, input, answer and malformed.

    Raises:
        UserError: the file is not readable, or lacks a column, or a column is not text.
    """
    try:
        if data_format is DataFormat.csv:
            table = pl.scan_csv(file, glob=False, infer_schema=False)
            table = table.with_columns(pl.all().fill_null(""))
        else:
            table = pl.scan_parquet(file, glob=False)
        schema = table.collect_schema()
        _check(file, schema, columns)
        has_input = columns.input is not None and columns.input in schema
        fields = [_json_ready(pl.col(name), dtype).alias(name) for name, dtype in schema.items()]
        rows = table.select(
            record=pl.struct(fields).struct.json_encode(),
            instruction=pl.col(columns.instruction).cast(pl.String),
            input=pl.col(columns.input or "").cast(pl.String).fill_null("")
            if has_input
            else pl.lit(""),
            answer=pl.col(columns.output).cast(pl.String),
            malformed=pl.col(columns.instruction).is_null(),
        )
        num_rows = 0
        for frame in rows.collect_batches(chunk_size=BATCH_ROWS, maintain_order=True):
            num_rows += frame.height
            yield frame
        # A worker of collect_batches that fails may end the stream as if the file were done.
        if num_rows != table.select(pl.len()).collect().item():
            raise UserError(f"{file}: only {num_rows} rows could be read; drop its unusual columns")
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{file}: not readable as {data_format.value} ({reason})") from None


def _json_ready(value: pl.Expr, dtype: Any) -> pl.Expr:
    """JSON has no bytes: they travel as base64, wherever they are nested."""
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


def _check(file: Path, schema: pl.Schema, columns: Columns) -> None:
    check_required(file, columns, list(schema))
    for field, name in columns._asdict().items():
        if name in schema and not isinstance(schema[name], TEXT):
            raise UserError(
                f"{file}: column '{name}' is {schema[name]}, not text; "
                f"convert it, or name another with data.columns.{field}=..."
            )
