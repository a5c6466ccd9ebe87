"""CSV and Parquet through Polars: a column has one type, so a wrong one is the file's fault."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from cherry_vllm.errors import UserError
from cherry_vllm.sources.columns import Columns, check_required
from cherry_vllm.sources.files import DataFormat

TEXT = (pl.String, pl.Categorical, pl.Enum, pl.Null)


def read_table(
    file: Path, data_format: DataFormat, columns: Columns, batch_rows: int
) -> Iterator[pl.DataFrame]:
    """Yields frames of record, instruction, input, answer and malformed.

    Raises:
        UserError: the file is not readable, or lacks a column, or a column is not text.
    """
    try:
        if data_format is DataFormat.csv:
            table = pl.scan_csv(file, infer_schema=False).with_columns(pl.all().fill_null(""))
        else:
            table = pl.scan_parquet(file, glob=False)
        schema = table.collect_schema()
        _check(file, schema, columns)
        has_input = columns.input is not None and columns.input in schema
        rows = table.select(
            record=pl.struct(_json_ready(schema)).struct.json_encode(),
            instruction=pl.col(columns.instruction).cast(pl.String),
            input=pl.col(columns.input or "").cast(pl.String).fill_null("")
            if has_input
            else pl.lit(""),
            answer=pl.col(columns.output).cast(pl.String),
            malformed=pl.col(columns.instruction).is_null(),
        )
        yield from rows.collect_batches(chunk_size=batch_rows, maintain_order=True)
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{file}: not readable as {data_format.value} ({reason})") from None


def _json_ready(schema: pl.Schema) -> list[pl.Expr]:
    """JSON has no bytes: they travel as base64."""
    return [
        pl.col(name).bin.encode("base64") if dtype == pl.Binary else pl.col(name)
        for name, dtype in schema.items()
    ]


def _check(file: Path, schema: pl.Schema, columns: Columns) -> None:
    check_required(file, columns, list(schema))
    for field, name in columns._asdict().items():
        if name in schema and not isinstance(schema[name], TEXT):
            raise UserError(
                f"{file}: column '{name}' is {schema[name]}, not text; "
                f"convert it, or name another with data.columns.{field}=..."
            )
